//! `lockservice lock` at a terminal: Ctrl-C, Ctrl-Z, `fg` and pagers work as without it.

mod cli_support;
#[path = "cli_support/terminal.rs"]
mod terminal;

use cli_support::{Server, now};
use terminal::Terminal;

#[test]
fn a_job_that_reads_the_terminal_in_the_background_is_shown_as_stopped_and_goes_on_with_fg() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    terminal.run("$lock t k -- sh -c 'read line; echo \"got<$line>\"' &");
    terminal.wait_for_job("Stopped");
    terminal.type_in("fg\n");
    terminal.type_in("hello\n");
    terminal.expect("got<hello>");
    terminal.expect("ready> ");
    assert!(terminal.run("echo status=$?").contains("status=0"));
}

#[test]
fn a_job_that_may_not_write_in_the_background_is_shown_as_stopped_and_goes_on_with_fg() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    terminal.run("stty tostop");
    terminal.run("$lock t k -- sh -c 'echo o\"\"ut; exit 7' &");
    terminal.wait_for_job("Stopped");
    terminal.type_in("fg\n");
    terminal.expect("out");
    terminal.expect("ready> ");
    assert!(terminal.run("echo status=$?").contains("status=7"));
}

#[test]
fn ctrl_z_stops_the_job_and_fg_goes_on_with_it() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    terminal.type_in("$lock t k -- sh -c 'echo i\"\"n; read line; echo \"got<$line>\"'\n");
    terminal.expect("in\r");
    terminal.type_in("\x1a");
    terminal.expect("Stopped");
    terminal.expect("ready> ");
    terminal.type_in_at_prompt("fg\n");
    terminal.type_in("hello\n");
    terminal.expect("got<hello>");
    terminal.expect("ready> ");
    assert!(terminal.run("echo status=$?").contains("status=0"));
}

#[test]
fn a_job_that_stays_stopped_is_ended_before_the_lock_goes_to_others() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    terminal.type_in("$lock --ttl 3s t k -- sh -c 'echo i\"\"n; read line; echo \"got<$line>\"'\n");
    terminal.expect("in\r");
    terminal.type_in("\x1a");
    terminal.expect("Stopped");
    terminal.expect("ready> ");
    assert!(server.run(&["lock", "t", "k", "--", "true"]).status.success());
    terminal.type_in("fg\n");
    terminal.expect("the lock was lost");
    terminal.expect("ready> ");
    assert!(terminal.run("echo status=$?").contains("status=70"));
}

#[test]
fn a_command_that_stops_alone_as_su_does_stops_its_job_too() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    terminal.type_in("$lock t k -- sh -c 'kill -STOP $$; echo go\"\"es on'\n");
    terminal.expect("Stopped");
    terminal.expect("ready> ");
    terminal.type_in_at_prompt("fg\n");
    terminal.expect("goes on");
    terminal.expect("ready> ");
}

#[test]
fn ctrl_c_ends_the_script_around_it() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    let script = "for i in 1 2 3; do $lock t k -- sh -c \"echo i''n; exec sleep 1000\"; done; \
        echo sur''vived";
    terminal.type_in(&format!("bash -c '{}'\n", script.replace('\'', "'\\''")));
    terminal.expect("in\r");
    terminal.type_in("\x03");
    terminal.expect("ready> ");
    let shown = terminal.run("echo status=$?");
    assert!(shown.contains("status=130"), "{shown}");
    // And of one that waits for its turn.
    let (_holder, _) = server.hold(&["t", "k"]);
    terminal.type_in("bash -c '$lock t k -- true; $lock t k -- true; echo sur\"\"vived'\n");
    server.waits(1);
    terminal.type_in("\x03");
    terminal.expect("ready> ");
    let shown = terminal.run("echo status=$?");
    assert!(shown.contains("status=130") && !shown.contains("survived"), "{shown}");
}

#[test]
fn a_pager_behind_it_keeps_the_keyboard() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    // A pager reads a screenful, and the rest when a key is pressed.
    let pager = "sh -c 'read first; echo page; read key </dev/tty; tail -n 1; echo e\"\"nd'";
    terminal.type_in(&format!("$lock t k -- seq 1 100000 | {pager}\n"));
    terminal.expect("page\r");
    terminal.type_in("G\n");
    terminal.expect("100000");
    terminal.expect("end\r");
    terminal.expect("ready> ");
}

#[test]
fn ctrl_z_in_the_moment_of_the_start_never_hangs_the_terminal() {
    let server = Server::start();
    let mut terminal = Terminal::open(&server);
    let started = now();
    terminal.run("$lock t k -- true");
    let whole = now().since(started);
    const ROUNDS: u32 = 40;
    for round in 0..ROUNDS {
        terminal.type_in(&format!("$lock t k{round} -- sleep 1000\n"));
        terminal.expect("1000\r\n");
        // From before it asks for the lock to after the command runs.
        let press = now() + whole * round / ROUNDS;
        while now() < press {
            std::thread::yield_now();
        }
        terminal.press_until("\x1a", "Stopped");
        terminal.expect("ready> ");
        terminal.run("kill -KILL %%; fg");
    }
}
