//! A store that is full, or is removed while it is open.

use std::collections::BTreeMap;
use std::time::Duration;

use lockservice::client::Client;
use lockservice_core::service::LockSpec;
use lockservice_core::{Key, LockItem, TableRef};
use rustix::process::Signal;
use serde_json::Value;

use crate::cli_support::{Server, code, json_lines, run, serve, stderr};
use crate::disk;

#[test]
fn a_full_disk_is_said_loses_nothing_and_is_forgotten_when_there_is_space() {
    let Some(disk) = disk::small_disk(24 << 20) else { return };
    let store = format!("file:{}", disk.path().join("db").display());
    let (server, address) = serve(&store, &[]);
    let lock = |address: &str, table: &str| {
        run(&[
            "lock",
            table,
            "k",
            "--timeout",
            "5s",
            "--server",
            address,
            "--",
            "sh",
            "-c",
            "echo $LOCKSERVICE_TOKEN",
        ])
    };
    let binds = |address: &str| {
        let binds = json_lines(&run(&["binds", "--json", "--server", address]));
        let bind = |bind: &Value| {
            (bind["table"].as_str().unwrap().to_owned(), bind["version"].as_u64().unwrap())
        };
        binds.iter().map(bind).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(code(&lock(&address, "before")), 0);
    disk.fill();
    // The file has some space of its own left.
    let (bound, refused) = fill_with_tables(&address);
    assert!(refused.contains("is full: free space"), "{refused}");
    // A limit that was too low for many at once may be enough for a few.
    let small = |n: u32| format!("small-{n}");
    let (fitted, output) = (0..1_000)
        .map(|n| (n, lock(&address, &small(n))))
        .find(|(_, output)| code(output) != 0)
        .expect("the disk is full");
    assert_eq!(code(&output), 74, "{}", stderr(&output));
    assert!(stderr(&output).contains("is full: free space"), "{}", stderr(&output));
    assert_eq!(code(&lock(&address, "before")), 0, "what is bound needs no space");
    disk.free();
    assert_eq!(code(&lock(&address, &small(fitted))), 0, "it goes on by itself");
    let acknowledged = binds(&address);
    for table in bound.into_iter().chain((0..=fitted).map(small)).chain(["before".to_owned()]) {
        assert!(acknowledged.contains_key(&table), "{table} is lost");
    }
    server.signal(Signal::KILL);
    let (_, text) = server.wait();
    let logged = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert!(
        logged("the store cannot be written") > 0 && logged("is full: free space") > 0,
        "{text}"
    );
    assert!(
        logged("the store can be written again") > 0 && text.lines().count() < 20,
        "said, and not each time: {text}"
    );
    let (server, address) = serve(&store, &[]);
    assert_eq!(binds(&address), acknowledged, "after a crash as well");
    server.signal(Signal::TERM);
    server.wait();
}

/// Locks a row of ever new tables until that fails: the tables, and why it failed.
fn fill_with_tables(address: &str) -> (Vec<String>, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("threads");
    runtime.block_on(async {
        let client = Client::connect(address).await.expect("it serves");
        let session = client.session(None).await.expect("a session");
        let mut bound = Vec::new();
        for batch in 0..1_000 {
            let names: Vec<String> =
                (0..64).map(|n| format!("{batch}-{n}-{}", "x".repeat(200))).collect();
            let calls = names.iter().map(|name| {
                let table = TableRef::new("default", name).expect("a name");
                let row = LockItem::Row(Key::new("k").expect("a key"));
                session.lock(LockSpec {
                    timeout: Some(Duration::from_secs(20)),
                    ..LockSpec::new(table, vec![row])
                })
            });
            let mut why = None;
            for (name, result) in names.iter().zip(futures::future::join_all(calls).await) {
                match result {
                    Ok(lock) => {
                        drop(lock);
                        bound.push(name.clone());
                    }
                    Err(error) => why = Some(format!("{error:?}")),
                }
            }
            if let Some(why) = why {
                return (bound, why);
            }
        }
        panic!("the disk never was full")
    })
}

/// Somebody who does not know that a server has the store open.
type Meddler = fn(&std::path::Path);

fn meddlers() -> [(&'static str, Meddler); 3] {
    use std::fs::{copy, remove_file, rename};
    [
        ("removed", |db| remove_file(db).expect("done")),
        ("renamed", |db| rename(db, db.with_extension("old")).expect("done")),
        ("replaced", |db| {
            copy(db, db.with_extension("new")).expect("done");
            rename(db.with_extension("new"), db).expect("done");
        }),
    ]
}

#[test]
fn a_store_that_is_removed_renamed_or_replaced_lets_no_second_server_in_and_ends_the_first_with_a_sentence()
 {
    for (what, meddle) in meddlers() {
        let server = Server::start();
        let db = server.folder.path().join("db");
        let store = format!("file:{}", db.display());
        let (mut holder, _) = server.hold(&["t", "k"]);
        // It cannot notice before the second one was refused.
        server.running.signal(Signal::STOP);
        meddle(&db);
        let second = run(&["serve", "--listen", "127.0.0.1:0", "--store", &store]);
        let said = stderr(&second);
        assert_eq!(code(&second), 75, "{what}: {said}");
        assert!(
            said.contains(db.to_str().unwrap()) && said.contains("stop that process"),
            "{what}: {said}"
        );
        server.running.signal(Signal::CONT);
        let (status, said) = server.running.wait();
        assert_eq!(status.code(), Some(70), "{what}: {said}");
        assert!(
            said.contains("removed, renamed or replaced") && said.contains(db.to_str().unwrap()),
            "{what}: {said}"
        );
        holder.end_of_output();
        drop(serve(&store, &[]));
    }
}

#[test]
fn a_server_whose_store_is_removed_together_with_its_lock_file_or_folder_ends_with_a_sentence() {
    let acts: [(&str, Meddler); 2] = [
        ("lock file", |db| std::fs::remove_file(db.with_extension("lock")).unwrap()),
        ("folder", |db| std::fs::remove_dir_all(db.parent().unwrap()).unwrap()),
    ];
    for (what, act) in acts {
        let server = Server::start();
        act(&server.folder.path().join("db"));
        let (status, said) = server.running.wait();
        assert_eq!(status.code(), Some(70), "{what}: {said}");
        assert!(said.contains("removed, renamed or replaced"), "{what}: {said}");
    }
}
