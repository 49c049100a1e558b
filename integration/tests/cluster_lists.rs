//! Lists over three nodes as processes on one PostgreSQL or Redis, one of which is killed.

use std::process::Output;
use std::time::Duration;

use integration::server::{Place, Server};
use integration::{binary, json_lines, within};
use lockservice::client::{LockGuard, Session};
use lockservice::core::service::LockSpec;
use lockservice::core::{Key, LockItem, TableRef};
use tokio::process::Command;

integration::on_each_server! {
    a_list_is_of_all_nodes_and_names_the_one_that_was_killed;
}

/// The node that is killed is in the lists as long as its lease lasts: for some commands.
const LEASE_OF_KILLED: Duration = Duration::from_secs(9);

/// Locks `k` of a table at the node at `place`, which then owns the table.
async fn hold(place: &Place, table: &str) -> (LockGuard, Session) {
    let session = place.client().await.session(None).await.expect("it serves");
    let item = LockItem::Row(Key::new("k").expect("a key"));
    let spec = LockSpec::new(TableRef::new("default", table).expect("a name"), vec![item]);
    (session.lock(spec).await.expect("free"), session)
}

/// A command of an operator, at the node at `place`.
async fn run(place: &Place, args: &[&str]) -> Output {
    let mut command = Command::new(binary::lockservice());
    command.args(args).args(["--server", &place.address]);
    place.run(&mut command).await
}

mod check {
    use super::*;

    pub(super) async fn a_list_is_of_all_nodes_and_names_the_one_that_was_killed(store: &str) {
        let (mut places, mut servers, mut held) = (Vec::new(), Vec::<Server>::new(), Vec::new());
        for name in ["a", "b", "c"] {
            let place = Place::joining(store, name).with_lease(LEASE_OF_KILLED);
            servers.push(place.start().await);
            places.push(place);
        }
        for (place, table) in places.iter().zip(["at-a", "at-b", "at-c"]) {
            held.push(within("a table is bound", hold(place, table)).await);
        }
        let shown = |output: &Output| -> Vec<String> {
            let lines = json_lines(output);
            let locks = lines.iter().filter(|line| line["missing"].is_null());
            locks.map(|line| format!("{} {}", line["node"], line["table"])).collect()
        };
        let all = [r#""a" "at-a""#, r#""b" "at-b""#, r#""c" "at-c""#];
        for place in &places {
            let output = run(place, &["--json", "locks"]).await;
            assert_eq!(
                (output.status.code(), &*shown(&output)),
                (Some(0), &all.map(String::from)[..])
            );
            let one = run(place, &["--json", "locks", "--node", "b"]).await;
            assert_eq!(shown(&one), [all[1]]);
        }
        let key = run(&places[0], &["--json", "locks", "at-b", "k"]).await;
        assert_eq!(shown(&key), [all[1]], "a key is found at any node");
        let unknown = run(&places[0], &["locks", "--node", "d"]).await;
        let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
        assert_eq!(unknown.status.code(), Some(64));
        assert!(said.contains("the nodes are a, b, c"), "{said}");
        let text = run(&places[0], &["sessions"]).await;
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.lines().next().expect("a header").ends_with("NODE"), "{text}");
        assert_eq!(text.lines().count(), 4, "{text}");

        // It leads nothing, and owns a table until its lease has run out.
        servers.remove(2).kill().await;
        for list in [&["--json", "locks"][..], &["--json", "waits", "--tree"]] {
            let output = run(&places[0], list).await;
            let lines = json_lines(&output);
            let last = lines.last().expect("a last object");
            assert_eq!(output.status.code(), Some(69), "{list:?}: {output:?}");
            assert!(
                list.len() > 2 || shown(&output) == all[..2],
                "those of the others: {output:?}"
            );
            assert_eq!(last["missing"][0]["node"], "c", "{output:?}");
            assert_eq!(last["missing"][0]["address"], places[2].address, "{output:?}");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("nodes_missing") && said.contains("node c at "), "{said}");
        }
        // Then the list is complete without it.
        within("the list is complete again", async {
            while run(&places[1], &["locks"]).await.status.code() != Some(0) {}
        })
        .await;

        // A kill finds the node by the id, wherever it is called.
        let listed = json_lines(&run(&places[0], &["--json", "sessions"]).await);
        let session = listed.iter().find(|line| line["node"] == "b").expect("it is held");
        let handle = session["session"].as_str().expect("text");
        let how = ["--reason", "the test", "--now"];
        let killed = run(&places[0], &[&["session", "kill", handle], &how[..]].concat()).await;
        assert_eq!(killed.status.code(), Some(0), "{killed:?}");
        let listed = json_lines(&run(&places[1], &["--json", "txns"]).await);
        let txn = listed.iter().find(|line| line["node"] == "a").expect("it is held");
        let txn = txn["txn"].as_str().expect("text");
        let killed = run(&places[1], &[&["txn", "kill", txn], &how[..]].concat()).await;
        assert_eq!(killed.status.code(), Some(0), "{killed:?}");
        let left = run(&places[1], &["--json", "locks"]).await;
        assert!(shown(&left).is_empty(), "{left:?}");
        // What no node has is not found at the one that was asked.
        let gone = run(&places[0], &[&["session", "kill", "s1-1"], &how[..]].concat()).await;
        assert_eq!(gone.status.code(), Some(64), "{gone:?}");
        drop(held);
    }
}
