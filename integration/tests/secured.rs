//! The bank over mutual TLS, while every certificate is replaced.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use integration::server::Place;
use integration::store::StoreKind;
use integration::{binary, json_lines, within, within_limit};
use tokio::process::Command;

/// How long the bank works.
const SECONDS: u64 = 12;

/// Makes a CA of its own, and certificates, in `folder`.
async fn certs(folder: &Path) {
    let made = Command::new(binary::lockservice()).arg("certs").arg(folder).output().await;
    let made = made.expect("it can be started");
    assert!(made.status.success(), "{made:?}");
}

/// Puts the files of `new` in the place of those in `folder`, one after the other.
fn replace(folder: &Path, new: &Path) {
    for name in ["ca.pem", "server-key.pem", "server.pem", "client-key.pem", "client.pem"] {
        std::fs::copy(new.join(name), folder.join("copy")).expect("it is there");
        std::fs::rename(folder.join("copy"), folder.join(name)).expect("one folder");
    }
}

fn with_certs<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .env("LOCKSERVICE_CA", folder.join("ca.pem"))
        .env("LOCKSERVICE_CERT", folder.join("client.pem"))
        .env("LOCKSERVICE_CERT_KEY", folder.join("client-key.pem"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bank_loses_no_session_while_every_certificate_is_replaced() {
    let place = Place::new(StoreKind::File);
    let (used, new) = (place.directory().join("used"), place.directory().join("new"));
    for folder in [&used, &new] {
        certs(folder).await;
    }
    let mut serve = place.serve();
    for (flag, file) in [
        ("--tls-cert", "server.pem"),
        ("--tls-key", "server-key.pem"),
        ("--tls-client-ca", "ca.pem"),
    ] {
        serve.arg(flag).arg(used.join(file));
    }
    let server = place.start_with(serve).await;
    let mut bank = Command::new(binary::bank());
    bank.args(["--server", &place.address, "--seconds", &SECONDS.to_string(), "--journal"])
        .arg(place.directory().join("journal"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let bank = with_certs(&mut bank, &used).spawn().expect("the bank can be started");
    let locks = async |folder: &Path| {
        let mut command = Command::new(binary::lockservice());
        command.args(["locks", "--json", "--server", &place.address]);
        with_certs(&mut command, folder).output().await.expect("it can be started")
    };
    within("the bank locks", async { while json_lines(&locks(&used).await).is_empty() {} }).await;
    replace(&used, &new);
    within("the new certificates are served", async {
        while !locks(&new).await.status.success() {}
    })
    .await;
    within("the bank works on", async { while json_lines(&locks(&new).await).is_empty() {} }).await;
    let limit = Duration::from_secs(SECONDS + 60);
    let ended = within_limit(limit, "the bank ends", bank.wait_with_output()).await;
    let output = ended.expect("a child can be waited for");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("the sum is right"), "{output:?}");
    assert!(said.contains(" 0 lost sessions"), "{said}");
    assert!(server.stop().await.success());
}
