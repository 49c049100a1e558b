//! `lockservice serve`, the lists, and wrong usage.

mod cli_support;
#[path = "store_kit/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use cli_support::{
    DEADLINE, Running, Server, code, ends_within, full_pipe, json_lines, lockservice, now, run,
    serve, stderr, wait_for_end_of,
};
use lockservice::client::Client;
use lockservice_core::service::LockSpec;
use lockservice_core::{Key, LockItem, TableRef};
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use serde_json::Value;

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    for args in [
        &["nonsense"][..],
        &[],
        &["lock", "t", "k"],
        &["lock", "t", "--", "true"],
        &["lock", "t", "k", "--range", "a", "b", "--", "true"],
        &["lock", "t", "k", "--timeout", "soon", "--", "true"],
        &["lock", "", "k", "--", "true"],
        &["lock", "a\nb", "k", "--", "true"],
        &["lock", "t", "", "--", "true"],
        &["lock", "t", "--range", "b", "a", "--", "true"],
        &["locks", "--server", "ftp://x"],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 64, "{args:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty());
    }
    let long = "k".repeat(4097);
    assert_eq!(code(&run(&["lock", "t", &long, "--", "true"])), 64);
    for args in [&["--help"][..], &["--version"], &["lock", "--help"], &["serve", "--help"]] {
        assert_eq!(code(&run(args)), 0, "{args:?}");
    }
    let json = run(&["lock", "t", "--json"]);
    let object: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!((code(&json), object["kind"].as_str()), (64, Some("usage")));
}

#[test]
fn without_a_server_the_status_is_69() {
    // Bound and closed again: no listener is there.
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for args in [&["locks"][..], &["waits"], &["binds"], &["lock", "t", "k", "--", "true"]] {
        let output = lockservice(args).env("LOCKSERVICE_SERVER", &free).output().unwrap();
        assert_eq!(code(&output), 69, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "));
    }
}

#[test]
fn what_is_configured_wrongly_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "lisen = \"127.0.0.1:0\"\n").unwrap();
    let output = run(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("lisen"), "{}", stderr(&output));

    let output = lockservice(&["serve"]).env("LOCKSERVICE_STROE", "memory:").output().unwrap();
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("LOCKSERVICE_STROE"), "{}", stderr(&output));

    std::fs::write(&file, "[server]\nconnections_max = 0\n").unwrap();
    let output = run(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 78);
    assert!(stderr(&output).contains("server.connections_max"), "{}", stderr(&output));

    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", "cassandra://x"]);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(stderr(&output).contains("file:"), "it says what there is: {}", stderr(&output));

    let output = run(&["serve", "--listen", "0.0.0.0:0", "--store", "memory:"]);
    assert_eq!(code(&output), 64);
    assert!(stderr(&output).contains("--insecure"));
}

#[test]
fn a_port_or_store_in_use_is_an_error_that_says_what_to_do() {
    let server = Server::start();
    let output = run(&["serve", "--listen", &server.address, "--store", "memory:"]);
    assert_eq!(code(&output), 71);
    assert!(stderr(&output).contains("--listen"), "{}", stderr(&output));

    let store = format!("file:{}", server.folder.path().join("db").display());
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", &store]);
    assert_eq!(code(&output), 75, "{}", stderr(&output));
    assert!(stderr(&output).contains("db"), "it names the path: {}", stderr(&output));
}

#[test]
fn a_store_in_memory_says_what_it_means() {
    let mut server = Running::start(&mut lockservice(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--store",
        "memory:",
    ]));
    assert!(server.line().contains("store memory:"));
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success());
    assert!(text.contains("the store is memory"), "{text}");
}

#[test]
fn the_lists_are_tables_or_objects() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["accounts", "alice"]);
    let lock: Value =
        serde_json::from_slice(&server.run(&["locks", "accounts", "--json"]).stdout).unwrap();
    assert_eq!(
        (lock["table"].as_str(), lock["key"].as_str(), lock["mode"].as_str()),
        (Some("accounts"), Some("alice"), Some("exclusive"))
    );
    assert!(server.run(&["locks", "others", "--json"]).stdout.is_empty());
    let bind: Value = serde_json::from_slice(&server.run(&["binds", "--json"]).stdout).unwrap();
    for field in ["group", "table", "partition", "owner", "version", "state"] {
        assert!(!bind[field].is_null(), "{field}");
    }
    assert_eq!(bind["state"], "bound");
    let table = String::from_utf8(server.run(&["locks"]).stdout).unwrap();
    assert!(
        table.lines().next().unwrap().starts_with("GROUP") && table.contains("alice"),
        "{table}"
    );
}

#[test]
fn every_command_finds_the_server_behind_an_address_that_is_frozen() {
    let server = Server::start();
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = format!("{},{}", frozen.local_addr().unwrap(), server.address);
    for args in [&["locks"][..], &["waits"], &["binds"], &["lock", "t", "k", "--", "true"]] {
        let output = lockservice(args).env("LOCKSERVICE_SERVER", &addresses).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let server = Server::start();
    let (_holder, _) = server.hold(&["t", "k"]);
    for args in [&["locks"][..], &["binds", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = server
            .command(args)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn a_list_that_was_cut_says_so_on_stderr_and_its_lines_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "[server]\nlist_lines_max = 2\n").unwrap();
    let server = Server::start_with(&["--config", file.to_str().unwrap()]);
    let (_holder, _) = server.hold(&["t", "a", "b", "c"]);
    let json = server.run(&["locks", "--json"]);
    let keys: Vec<_> =
        json_lines(&json).iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!((code(&json), keys), (0, vec!["a".to_owned(), "b".to_owned()]));
    let warning: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(warning["kind"], "list_cut");
    let people = server.run(&["locks"]);
    assert!(
        stderr(&people).starts_with("warning: there are more locks than the 2 shown"),
        "{}",
        stderr(&people)
    );
    assert_eq!(stderr(&server.run(&["binds"])), "", "this list is whole");

    let output = {
        std::fs::write(&file, "[server]\nlist_lines_max = 0\n").unwrap();
        run(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "memory:",
            "--config",
            file.to_str().unwrap(),
        ])
    };
    assert!(
        code(&output) == 78 && stderr(&output).contains("server.list_lines_max"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn help_lists_every_setting_with_its_default() {
    let help = String::from_utf8(run(&["serve", "--help"]).stdout).unwrap();
    for setting in [
        "listen = \"127.0.0.1:7654\"",
        "server.connections_max = 10000",
        "service.engine.victim = ",
    ] {
        assert!(help.contains(setting), "{setting}: {help}");
    }
    let short = String::from_utf8(run(&["serve", "-h"]).stdout).unwrap();
    assert!(!short.contains("connections_max") && short.contains("--help"), "{short}");
}

/// The server under a soft and a hard limit on open files.
fn serve_limited(soft: u32, hard: u32) -> Running {
    let script = format!(
        "ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" serve --json --listen 127.0.0.1:0 \
            --store memory:"
    );
    let mut command = lockservice(&[]);
    let program = command.get_program().to_owned();
    command = std::process::Command::new("sh");
    command.arg("-c").arg(script).arg(program);
    Running::start(&mut command)
}

#[test]
fn the_limit_on_open_files_is_raised_and_said_if_it_is_too_low() {
    let limits = |running: &mut Running| {
        running.line();
        let path = format!("/proc/{}/limits", running.pid().as_raw_nonzero());
        let limits = std::fs::read_to_string(path).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    let mut low = serve_limited(100, 200);
    assert_eq!(limits(&mut low), "200");
    low.signal(Signal::TERM);
    let (_, text) = low.wait();
    let warning = text.lines().find(|line| line.contains("open_files")).expect("said at the start");
    assert!(warning.contains("200 files") && warning.contains("10000 connections"), "{text}");
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if hard.is_none_or(|hard| hard >= 20_000) {
        let mut enough = serve_limited(100, 20_000);
        assert_eq!(limits(&mut enough), "20000");
        enough.signal(Signal::TERM);
        let (_, text) = enough.wait();
        assert!(!text.contains("open_files"), "{text}");
    }
}

#[test]
fn an_environment_that_is_not_utf_8_or_of_kubernetes_or_empty_keeps_no_server_from_starting() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut command = lockservice(&["serve", "--json", "--listen", "127.0.0.1:0"]);
    command
        .env("OTHER", std::ffi::OsString::from_vec(vec![0xff]))
        .env("LOCKSERVICE_PORT", "tcp://10.0.0.11:7654")
        .env("LOCKSERVICE_SERVICE_HOST", "10.0.0.11")
        .env("LOCKSERVICE_CONFIG", "")
        .env("LOCKSERVICE_STORE", "memory:")
        .env("LOCKSERVICE_NODE", "");
    let mut server = Running::start(&mut command);
    let ready: Value = serde_json::from_str(&server.line()).unwrap();
    let address = ready["address"].as_str().unwrap();
    // The flag is not needed, and an empty variable does not replace the default.
    let output = lockservice(&["locks", "--server", address])
        .env("LOCKSERVICE_SERVER", "")
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output = lockservice(&["locks"]).env("LOCKSERVICE_SERVER", "").output().unwrap();
    assert!([0, 69].contains(&code(&output)), "the default address: {}", stderr(&output));
    let output = lockservice(&["serve"])
        .env("LOCKSERVICE_NODE", std::ffi::OsString::from_vec(vec![0xff]))
        .output()
        .unwrap();
    assert!(
        code(&output) == 78 && stderr(&output).contains("LOCKSERVICE_NODE"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_server_whose_stderr_has_no_reader_starts_serves_and_stops() {
    let (mut reader, writer) = full_pipe();
    // In this mode a note comes before it is ready, and then very many lines.
    let mut command = lockservice(&["serve", "--listen", "127.0.0.1:0", "--store", "memory:"]);
    command.env("RUST_LOG", "trace");
    let mut server = Running::start_with_stderr(&mut command, writer);
    let ready = server.line();
    let address = ready
        .split_whitespace()
        .find_map(|word| word.strip_suffix(',').filter(|word| word.contains(':')));
    let address = address.unwrap_or_else(|| panic!("{ready}"));
    let keys: Vec<String> = (0..1_000).map(|key| key.to_string()).collect();
    let mut args = vec!["lock", "t", "--server", address];
    args.extend(keys.iter().map(String::as_str));
    args.extend(["--", "true"]);
    for _ in 0..10 {
        let output = run(&args);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
    server.signal(Signal::TERM);
    wait_for_end_of(server.pid());
    drop(command);
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut text).unwrap();
    assert!(text.iter().all(|byte| *byte == b'\n'), "it was full all the time");
    assert!(server.wait().0.success(), "everything was given back");
}

#[test]
fn a_doubled_signal_is_one_wish_to_stop_in_order() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    let (other, _) = server.hold(&["t", "other"]);
    holder.signal(Signal::STOP);
    let Server { running, .. } = server;
    for _ in 0..2 {
        running.signal(Signal::TERM);
        running.signal(Signal::INT);
    }
    assert_eq!(other.wait().0.code(), Some(70), "it was heard");
    holder.signal(Signal::CONT);
    assert_eq!(holder.wait().0.code(), Some(70));
    let (status, text) = running.wait();
    // Stopped at once it would say so.
    assert!(status.success(), "{status}: {text}");
}

#[test]
fn a_hang_up_stops_a_server_of_a_terminal_in_order_and_is_nothing_to_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |setsid: &[&str]| {
        let program = lockservice(&[]).get_program().to_owned();
        let mut command = std::process::Command::new("setsid");
        command.args(setsid).arg(program).args([
            "serve",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "memory:",
        ]);
        command
    };
    let mut daemon = Running::start(serve(&[]).stdin(Stdio::null()));
    let ready: Value = serde_json::from_str(&daemon.line()).unwrap();
    let address = ready["address"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        assert_eq!(code(&run(&["lock", "t", "k", "--server", &address, "--", "true"])), 0);
    }
    daemon.signal(Signal::TERM);
    let (status, text) = daemon.wait();
    assert!(status.success() && text.contains("SIGHUP changes nothing"), "{text}");

    let terminal =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .unwrap();
    rustix::pty::grantpt(&terminal).unwrap();
    rustix::pty::unlockpt(&terminal).unwrap();
    let name = rustix::pty::ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let other_end = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let mut of_terminal = serve(&["--ctty"]);
    let mut server = Running::start(of_terminal.stdin(other_end));
    drop(of_terminal);
    server.line();
    drop(terminal);
    let (status, text) = server.wait();
    assert!(status.success() && !text.contains("SIGHUP"), "{status:?} {text}");
    drop(folder);
}

#[test]
fn a_wrong_log_filter_is_said_and_log_lines_are_json_if_all_is() {
    let mut command =
        lockservice(&["serve", "--json", "--listen", "127.0.0.1:0", "--store", "memory:"]);
    let mut server = Running::start(command.env("RUST_LOG", "lockservice=loud"));
    server.line();
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success() && text.contains("RUST_LOG is wrong"), "{text}");

    let mut server = Running::start(command.env("RUST_LOG", "debug"));
    server.line();
    server.signal(Signal::TERM);
    let (status, text) = server.wait();
    assert!(status.success() && text.lines().count() > 0, "{text}");
    for line in text.lines() {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("one object: {line}"));
        assert!(object.is_object());
    }
}

#[test]
fn the_second_signal_stops_the_server_at_once() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    let (other, _) = server.hold(&["t", "other"]);
    // It cannot confirm that its work has ended, so a stop in order takes the whole grace.
    holder.signal(Signal::STOP);
    let Server { running, .. } = server;
    running.signal(Signal::TERM);
    assert_eq!(other.wait().0.code(), Some(70), "the first signal was heard");
    // One that follows within a second is the same wish.
    let again = now();
    while !ends_within(running.pid(), Duration::from_millis(100)) {
        assert!(now().since(again) < DEADLINE);
        running.signal(Signal::TERM);
    }
    let (status, text) = running.wait();
    assert_eq!(status.code(), Some(69), "{text}");
    assert!(text.contains("stopped at once: the next start waits"), "{text}");
    holder.signal(Signal::CONT);
    assert_eq!(holder.wait().0.code(), Some(70));
}

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
