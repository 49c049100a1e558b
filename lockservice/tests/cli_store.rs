//! `lockservice store check`, `migrate`, `dump` and `restore`.

mod cli_support;
#[allow(dead_code, reason = "only the ways to spoil a store are used here")]
mod store_kit;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use cli_support::{Server, code, json_lines, lockservice, run, serve, stderr};
use rustix::process::Signal;
use serde_json::Value;

use self::store_kit::disk::small_disk;
use self::store_kit::{Kind, Site, spoil};

/// A folder with a store `db` that a server used, and was stopped in order.
fn used() -> tempfile::TempDir {
    let server = Server::start();
    for table in ["accounts", "jobs"] {
        assert!(server.run(&["lock", table, "k", "--", "true"]).status.success());
    }
    let Server { running, folder, .. } = server;
    running.signal(Signal::TERM);
    assert!(running.wait().0.success(), "it stops in order");
    folder
}

fn file(folder: &Path, name: &str) -> String {
    format!("file:{}", folder.join(name).display())
}

/// `store COMMAND --store URL ARGS`.
fn store(command: &str, url: &str, args: &[&str]) -> Output {
    run(&[&["store", command, "--store", url], args].concat())
}

fn restore(url: &str, dump: &Path) -> Output {
    store("restore", url, &["--input", dump.to_str().expect("a path in text")])
}

/// The dump of a store, in a file beside it.
fn dumped(folder: &Path, url: &str) -> (PathBuf, Vec<Value>) {
    let output = store("dump", url, &[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let path = folder.join("binds.dump");
    fs::write(&path, &output.stdout).expect("a file");
    (path, json_lines(&output))
}

/// A dump's records, without what a restore changes.
fn records(dump: &[Value]) -> Vec<Value> {
    let mut records = dump[1..].to_vec();
    for record in &mut records {
        if let Some(service) = record.get_mut("service") {
            service["state"] = Value::Null;
        }
    }
    records
}

#[test]
fn a_used_store_is_clean_and_a_store_in_use_or_missing_says_so() {
    let folder = used();
    let url = file(folder.path(), "db");
    let (_, before) = dumped(folder.path(), &url);
    let output = store("check", &url, &["--json"]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stdout));
    let summary = &json_lines(&output)[0];
    assert_eq!(
        (summary["format"].as_u64(), summary["tables"].as_u64()),
        (Some(1), Some(2)),
        "{summary}"
    );
    assert_eq!(
        (&summary["problems"], &summary["leader"]),
        (&Value::from(0), &Value::Null),
        "it was stopped in order"
    );
    let people = String::from_utf8(store("check", &url, &[]).stdout).unwrap();
    assert!(people.starts_with("store ") && people.contains("tables          2\n"), "{people}");
    assert_eq!(dumped(folder.path(), &url).1[1..], before[1..], "nothing was changed");

    let server = Server::start();
    let in_use = file(server.folder.path(), "db");
    for command in ["check", "migrate", "dump", "restore"] {
        let input = folder.path().join("one.dump");
        fs::write(&input, store("dump", &url, &[]).stdout).unwrap();
        let output = if command == "restore" {
            restore(&in_use, &input)
        } else {
            store(command, &in_use, &[])
        };
        assert_eq!(code(&output), 75, "{command}: {}", stderr(&output));
        assert!(stderr(&output).contains("another process"), "{command}: {}", stderr(&output));

        let output = store(command, "memory:", &[]);
        assert_eq!(code(&output), 64, "{command}: {}", stderr(&output));
        if command != "restore" {
            let missing = folder.path().join("missing");
            let output = store(command, &format!("file:{}", missing.display()), &[]);
            assert_eq!(code(&output), 74, "{command}: {}", stderr(&output));
            assert!(
                stderr(&output).contains("missing") && !missing.exists(),
                "{command}: {}",
                stderr(&output)
            );
        }
    }
    let output = store("migrate", &url, &["--json"]);
    assert_eq!((code(&output), json_lines(&output)[0]["before"].as_u64()), (0, Some(1)));
    // The store of the configuration, as of serve.
    let output =
        lockservice(&["store", "check", "--json"]).env("LOCKSERVICE_STORE", &url).output().unwrap();
    assert_eq!(json_lines(&output)[0]["tables"], 2, "{}", stderr(&output));
}

#[test]
fn damage_is_found_and_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    // Its binds name owners that have no records.
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1.db"),
        folder.path().join("db"),
    )
    .unwrap();
    let url = file(folder.path(), "db");
    let output = store("check", &url, &["--json"]);
    let found = json_lines(&output);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert_eq!(found[0]["problems"], found.len() - 1);
    assert!(
        found[1..]
            .iter()
            .any(|line| line["problem"] == "unknown_owner"
                && line["record"] == "table group/table-2")
    );
    let people = String::from_utf8(store("check", &url, &[]).stdout).unwrap();
    assert!(people.contains("problem: table group/table-2: "), "{people}");

    let mut bytes = fs::read(folder.path().join("db")).unwrap();
    let at = bytes.windows(7).position(|window| window == b"table-2").unwrap();
    bytes[at] ^= 1;
    fs::write(folder.path().join("db"), bytes).unwrap();
    let output = store("check", &url, &["--json"]);
    assert_eq!(
        (code(&output), json_lines(&output)[0]["problem"].as_str()),
        (1, Some("store_corrupt")),
        "{}",
        stderr(&output)
    );
    let output = store("dump", &url, &[]);
    assert_eq!((code(&output), output.stdout.as_slice()), (65, &b""[..]), "{}", stderr(&output));
}

#[test]
fn every_damaged_record_is_named_and_what_could_be_read_is_counted() {
    let site = Site::from_fixture(Kind::File);
    spoil(&site);
    let output = store("check", &site.url(), &["--json"]);
    let found = json_lines(&output);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert_eq!(
        (&found[0]["tables"], &found[0]["problems"]),
        (&Value::from(5), &Value::from(3)),
        "{}",
        found[0]
    );
    let named: Vec<_> = found[1..].iter().map(|line| (&line["problem"], &line["record"])).collect();
    let expected = [
        ("store_newer", "incarnation 7"),
        ("store_corrupt", "table group/table-3"),
        ("store_corrupt", "tombstone 7-1"),
    ]
    .map(|(kind, record)| (Value::from(kind), Value::from(record)));
    assert_eq!(named, expected.iter().map(|(kind, record)| (kind, record)).collect::<Vec<_>>());
    let people = String::from_utf8(store("check", &site.url(), &[]).stdout).unwrap();
    assert!(
        people.contains("problem: table group/table-3: a record in the store is damaged"),
        "{people}"
    );
    assert_eq!(code(&store("dump", &site.url(), &[])), 65, "a half of a store is not dumped");
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", &site.url()]);
    assert_eq!(code(&output), 65, "and not served from: {}", stderr(&output));
}

#[test]
fn a_dump_restored_into_another_file_serves_the_same_tables_with_larger_tokens() {
    let folder = used();
    let (from, to) = (file(folder.path(), "db"), file(folder.path(), "new"));
    let (path, dump) = dumped(folder.path(), &from);
    let token = |url: &str| {
        let (running, address) = serve(url, &[]);
        let script = "echo $LOCKSERVICE_TOKEN";
        let output =
            run(&["lock", "accounts", "k", "--server", &address, "--", "sh", "-c", script]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        running.signal(Signal::TERM);
        assert!(running.wait().0.success());
        String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap()
    };
    let old = token(&from);
    let output = restore(&to, &path);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(records(&dumped(folder.path(), &to).1), records(&dump));
    let output = restore(&to, &path);
    assert_eq!(code(&output), 64, "not empty: {}", stderr(&output));
    assert!(stderr(&output).contains("into an empty one"), "{}", stderr(&output));
    let new = token(&to);
    assert!(
        new > old,
        "the token of a leadership after the dump was {old}, that of the restored store {new}"
    );
    let output = store("check", &to, &["--json"]);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stdout));
}

#[cfg(feature = "rocks")]
#[test]
fn a_dump_of_a_file_restores_into_rocksdb_and_back() {
    let folder = used();
    let rocks = format!("rocks:{}", folder.path().join("rocks").display());
    let (path, dump) = dumped(folder.path(), &file(folder.path(), "db"));
    // A folder that is there and empty is no store, and may become one.
    fs::create_dir(folder.path().join("rocks")).unwrap();
    assert_eq!(code(&store("check", &rocks, &[])), 74);
    let output = restore(&rocks, &path);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let (path, again) = dumped(folder.path(), &rocks);
    assert_eq!(records(&again), records(&dump));
    let back = file(folder.path(), "back");
    assert_eq!(code(&restore(&back, &path)), 0);
    assert_eq!(records(&dumped(folder.path(), &back).1), records(&dump));
    let epoch = |dump: &[Value]| dump[0]["dump"]["epoch"].as_u64().unwrap();
    assert!(epoch(&again) > epoch(&dump) + 1_024);
}

#[test]
fn a_dump_that_is_none_leaves_nothing_behind() {
    let folder = used();
    let to = folder.path().join("new");
    let (_, dump) = dumped(folder.path(), &file(folder.path(), "db"));
    let whole = dump.iter().map(|line| format!("{line}\n")).collect::<String>();
    let input = folder.path().join("bad.dump");
    for (text, status, said) in [
        ("\u{fffd} garbage".to_owned(), 65, "no dump"),
        (String::new(), 65, "empty"),
        (whole[..whole.len() - 9].to_owned(), 65, "cut off in the middle of a line"),
        (whole.lines().take(3).map(|line| format!("{line}\n")).collect(), 65, "cut off"),
        (whole.replacen("\"format\":1", "\"format\":9", 1), 65, "newer version"),
        (whole.replacen("\"jobs\"", "\"accounts\"", 1), 65, "contradicts itself"),
    ] {
        fs::write(&input, text).unwrap();
        let output = restore(&format!("file:{}", to.display()), &input);
        assert_eq!(code(&output), status, "{said}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{said}: {}", stderr(&output));
        assert!(!to.exists(), "{said}");
    }
    let output = restore(&format!("file:{}", to.display()), &folder.path().join("none"));
    assert_eq!((code(&output), to.exists()), (74, false), "{}", stderr(&output));
    // From standard input.
    let url = format!("file:{}", to.display());
    let mut command = lockservice(&["store", "restore", "--json", "--store", &url]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(whole.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (code(&output), json_lines(&output)[0]["records"].as_u64()),
        (0, Some(dump.len() as u64 - 2))
    );
}

#[test]
fn a_dump_that_is_not_read_to_its_end_is_a_failure_and_no_panic() {
    let folder = used();
    let url = file(folder.path(), "db");
    for to in [
        {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            Stdio::from(writer)
        },
        Stdio::from(File::options().write(true).open("/dev/full").unwrap()),
    ] {
        let output = lockservice(&["store", "dump", "--store", &url])
            .stdout(to)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(code(&output), 74, "{}", stderr(&output));
        assert!(stderr(&output).contains("not written to its end"), "{}", stderr(&output));
    }
}

#[test]
fn a_restore_onto_a_full_disk_is_never_served_from_and_is_finished_when_there_is_room() {
    let Some(disk) = small_disk(6 << 20) else { return };
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("big.dump");
    let table = |at: u64| {
        format!(
            "{{\"table\":{{\"table\":{{\"group\":\"g\",\"name\":\"{at:0200}\"}},\
             \"id\":{},\"partitions\":1,\
             \"tokens_reserved_to\":0,\
             \"binds\":[{{\"owner\":4294967296,\"version\":4294967297}}]}}}}\n",
            (1u64 << 32) + at
        )
    };
    let tables = 20_000;
    let mut text = "{\"dump\":{\"format\":1,\"version\":\"0\",\"source\":\"test\",\
         \"epoch\":1,\"applied\":1}}\n"
        .to_owned();
    text.extend((0..tables).map(table));
    text.push_str(&format!(
        "{{\"end\":{{\"constants\":0,\"services\":0,\"tables\":{tables},\"tombstones\":0}}}}\n"
    ));
    fs::write(&dump, text).unwrap();
    let small = file(disk.path(), "db");
    let output = restore(&small, &dump);
    assert_eq!(code(&output), 74, "{}", stderr(&output));
    assert!(stderr(&output).contains("full"), "{}", stderr(&output));
    // Moved to where there is room: still unfinished.
    fs::copy(disk.path().join("db"), folder.path().join("db")).unwrap();
    let url = file(folder.path(), "db");
    let output = run(&["serve", "--listen", "127.0.0.1:0", "--store", &url]);
    assert_eq!(code(&output), 74, "{}", stderr(&output));
    assert!(stderr(&output).contains("was not finished"), "{}", stderr(&output));
    let output = store("check", &url, &["--json"]);
    assert_eq!(code(&output), 1);
    assert!(json_lines(&output)[1..].iter().any(|line| line["problem"] == "unfinished_restore"));
    assert_eq!(code(&store("dump", &url, &[])), 74);
    let output = restore(&url, &dump);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(json_lines(&store("check", &url, &["--json"]))[0]["tables"], tables);
}

/// The fixture was written by a version that knew no clusters.
#[test]
fn a_store_gets_a_cluster_at_its_first_leadership_and_keeps_it_and_a_restored_one_gets_another() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1.db"),
        folder.path().join("old"),
    )
    .unwrap();
    let (old, new) = (file(folder.path(), "old"), file(folder.path(), "new"));
    let cluster = |url: &str| json_lines(&store("check", url, &["--json"]))[0]["cluster"].clone();
    let lead = |url: &str| {
        let (running, _) = serve(url, &[]);
        running.signal(Signal::TERM);
        assert!(running.wait().0.success());
    };
    assert_eq!(cluster(&old), Value::Null);
    lead(&old);
    let first = cluster(&old);
    assert_eq!(first.as_str().expect("an id").len(), 32);
    lead(&old);
    assert_eq!(cluster(&old), first);
    let (path, dump) = dumped(folder.path(), &old);
    assert_eq!(dump[0]["dump"]["cluster"], first, "it says whose it is");
    let output = store("restore", &new, &["--json", "--input", path.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let second = cluster(&new);
    assert_eq!(json_lines(&output)[0]["cluster"], second);
    assert!(second.is_string() && second != first, "{second}");
    lead(&new);
    assert_eq!((cluster(&new), cluster(&old)), (second, first));
}
