//! `lockservice bench`: what it prints, what it refuses, and how it ends early.

mod cli_support;

use cli_support::{
    DEADLINE, Running, Server, code, json_lines, lockservice, now, run, stderr, wait_for_end_of,
};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// The median of a figure is a number above zero, and inside its spread.
fn is_measured(figure: &Value) -> bool {
    let [median, lowest, highest] = ["median", "lowest", "highest"].map(|key| figure[key].as_f64());
    median > Some(0.0) && lowest <= median && median <= highest
}

#[test]
fn every_workload_is_measured_on_both_sides_with_their_spread_and_ratio() {
    let output = run(&[
        "bench",
        "--json",
        "--workload=rows,hot,mixed,batch",
        "--callers=1,4",
        "--seconds=1",
        "--rounds=2",
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let runs = json_lines(&output);
    let which: Vec<_> = runs
        .iter()
        .map(|run| (run["workload"].as_str().unwrap(), run["callers"].as_u64().unwrap()))
        .collect();
    let expected = ["rows", "hot", "mixed", "batch"].map(|workload| [(workload, 1), (workload, 4)]);
    assert_eq!(which, expected.concat());
    for run in &runs {
        assert_eq!((&run["rounds"], &run["turn_s"]), (&2.into(), &0.5.into()), "{run}");
        let [ours, echo] = [0, 1].map(|at| &run["sides"][at]);
        assert_eq!((&ours["side"], &echo["side"]), (&"lockservice".into(), &"echo".into()));
        // Processes of the benchmark can be distinguished by it.
        for figure in ["cycles_per_s", "p50_us", "p99_us", "client_cpu_us", "server_cpu_us"] {
            for object in [ours, echo, &echo["ratio"]] {
                assert!(is_measured(&object[figure]), "{figure} of {object}");
            }
        }
    }
}

#[test]
fn framed_tcp_is_a_side() {
    let output =
        run(&["bench", "--json", "--beside=tcp", "--callers=4", "--seconds=1", "--rounds=1"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let side = &json_lines(&output)[0]["sides"][1];
    assert_eq!(side["side"], "tcp");
    assert!(is_measured(&side["ratio"]["server_cpu_us"]), "{side}");
}

#[test]
fn memory_is_measured_for_each_waiter_and_each_lock() {
    let output = run(&["bench", "--json", "--memory=2000"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines = json_lines(&output);
    let measured: Vec<_> = lines.iter().map(|line| line["memory"].as_str().unwrap()).collect();
    assert_eq!(measured, ["waiting calls", "locks with a transaction each"]);
    for line in lines {
        assert_eq!(line["count"], 2_000);
        assert!(line["bytes"].as_u64() > Some(0) && line["left_percent"].is_u64(), "{line}");
    }
    assert_eq!(code(&run(&["bench", "--memory", "--callers=3"])), 64, "it has no callers");
}

#[test]
fn people_get_a_table() {
    let output = run(&["bench", "--callers=1", "--seconds=1", "--rounds=1"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("rows, 1 caller, 1 round of 1.00 s: median (lowest – highest)\n"),
        "{text}"
    );
    for label in ["cycles/s", "p50 µs", "p99 µs", "client CPU µs", "server CPU µs"] {
        assert!(text.contains(label), "{label}: {text}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_and_a_password_in_it_is_not_repeated() {
    for args in [
        &["--beside=nonsense"][..],
        &["--beside=ftp://me:hidden@host"],
        &["--beside=etcd://me:hidden@host"],
        &["--beside=etcd://host:hidden"],
        &["--workload=nonsense"],
        &["--callers=0"],
        &["--rounds=0"],
        &["--seconds=0"],
    ] {
        let output = run(&[&["bench", "--json"], args].concat());
        assert_eq!(code(&output), 64, "{args:?}");
        let error: Value = serde_json::from_slice(&output.stderr).expect("one object");
        assert_eq!(error["kind"], "usage", "{error}");
        assert!(!stderr(&output).contains("hidden"), "{error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_server_that_does_not_respond_is_no_benchmark() {
    let output = run(&["bench", "--json", "--server=127.0.0.1:1"]);
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    let error: Value = serde_json::from_slice(&output.stderr).expect("one object");
    assert_eq!(error["kind"], "unavailable", "{error}");
}

#[test]
fn an_etcd_that_does_not_respond_is_no_other_side() {
    let output = run(&["bench", "--json", "--beside=etcd://127.0.0.1:1"]);
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    let error: Value = serde_json::from_slice(&output.stderr).expect("one object");
    assert_eq!(error["kind"], "unavailable", "{error}");
    let sentence = error["error"].as_str().expect("a sentence");
    assert!(sentence.starts_with("etcd cannot be reached"), "it is that side: {error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_server_that_is_no_etcd_is_refused() {
    // It speaks gRPC, but does not know the calls of etcd.
    let server = Server::start();
    let output = run(&["bench", "--json", &format!("--beside=etcd://{}", server.address)]);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    let error: Value = serde_json::from_slice(&output.stderr).expect("one object");
    assert_eq!(error["kind"], "invalid_argument", "{error}");
    let sentence = error["error"].as_str().expect("a sentence");
    assert!(sentence.starts_with("the server is no etcd"), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn interrupted_it_prints_what_was_measured_and_leaves_nothing_locked() {
    let server = Server::start();
    let args =
        ["bench", "--json", "--workload=hot", "--callers=4,4,4", "--seconds=1", "--rounds=1"];
    let mut bench = Running::start(&mut server.command(&args));
    let first: Value = serde_json::from_str(&bench.line()).expect("one object");
    assert_eq!(first["rounds"], 1);
    assert!(is_measured(&first["sides"][0]["server_cpu_us"]), "it is on this machine: {first}");
    let give_up = now() + DEADLINE;
    while json_lines(&server.run(&["locks", "--json"])).is_empty() {
        assert!(now() < give_up, "nothing is locked");
    }
    bench.signal(Signal::INT);
    let (status, said) = bench.wait();
    // So that a shell ends its loop.
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(2), "{said}");
    for list in ["locks", "waits"] {
        assert_eq!(json_lines(&server.run(&[list, "--json"])), Vec::<Value>::new(), "{list}");
    }
}

#[test]
fn the_servers_that_it_started_end_with_it_also_if_it_is_killed() {
    let bench = Running::start(&mut lockservice(&["bench", "--seconds=60"]));
    let pid = bench.child.id();
    let children = || -> Vec<Pid> {
        // Each thread has its own.
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let lists = tasks.flatten().map(|task| task.path().join("children"));
        let text: String = lists.flat_map(std::fs::read_to_string).collect();
        text.split_ascii_whitespace()
            .map(|pid| Pid::from_raw(pid.parse().expect("a number")).expect("not zero"))
            .collect()
    };
    let give_up = now() + DEADLINE;
    let servers = loop {
        let servers = children();
        if servers.len() == 2 {
            break servers;
        }
        assert!(now() < give_up, "{servers:?}");
    };
    bench.signal(Signal::KILL);
    servers.into_iter().for_each(wait_for_end_of);
}
