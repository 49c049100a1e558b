//! All processes of a command end with its lock, over every way to leave the command, and over the
//! death of any watcher.
//!
//! The worker appends its token to a journal a hundred times a second and is deaf to SIGTERM. The
//! next holder does the same for a while: the journal shows whether both worked at once.

mod cli_support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;

use cli_support::{Running, Server, lockservice, now, wait_for_end_of};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

const WORKER: &str = r#"
trap '' HUP INT TERM
echo $$ >"$FOLDER/worker.new"; mv "$FOLDER/worker.new" "$FOLDER/worker"
while :; do echo "$MINE" >>"$FOLDER/journal"; sleep 0.01; done
"#;

const NEXT: &str = r#"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    echo "$LOCKSERVICE_TOKEN" >>"$FOLDER/journal"; sleep 0.01
done
echo "$LOCKSERVICE_TOKEN"
"#;

/// The events that befall a holder.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    ServerIsKilled,
    ServerStops,
    WrapperIsKilled,
    SupervisorIsKilled,
    GroupIsKilled,
}

const FAULTS: [Fault; 5] = [
    Fault::ServerIsKilled,
    Fault::ServerStops,
    Fault::WrapperIsKilled,
    Fault::SupervisorIsKilled,
    Fault::GroupIsKilled,
];

/// One holder whose command starts a worker, and what comes after it.
struct Scene {
    server: Server,
    holder: Running,
    worker: Pid,
}

impl Scene {
    /// `start` is shell that starts `$WORK`, the command line of the worker.
    fn new(start: &str) -> Self {
        // Short, but longer than a busy machine keeps anybody from renewing.
        let server = Server::start_with(&["--lease-ttl", "3s", "--session-ttl", "3s"]);
        let folder = server.folder.path();
        std::fs::write(folder.join("work.sh"), WORKER).expect("there is room");
        // For a worker of another user.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777))
            .expect("it is ours");
        let journal = std::fs::File::create(folder.join("journal")).expect("there is room");
        journal.set_permissions(std::fs::Permissions::from_mode(0o666)).expect("it is ours");

        let script = format!(
            "export MINE=$LOCKSERVICE_TOKEN FOLDER='{folder}' WORK='sh {folder}/work.sh'\n{start}",
            folder = folder.display()
        );
        let mut command = lockservice(&[
            "lock",
            "--server",
            &server.address,
            "t",
            "k",
            "--",
            "bash",
            "-c",
            &script,
        ]);
        command.env("SELF", env!("CARGO_BIN_EXE_lockservice"));
        // A group of its own, as `timeout` and shells make it.
        let holder = Running::start(command.process_group(0).stdin(Stdio::null()));
        let worker =
            contents_of(&folder.join("worker"), &holder).trim().parse().expect("a process number");
        Self { server, holder, worker: Pid::from_raw(worker).expect("not zero") }
    }

    fn next(&self) -> Running {
        let mut command =
            self.server.command(&["lock", "--timeout", "60s", "t", "k", "--", "sh", "-c", NEXT]);
        Running::start(command.env("FOLDER", self.server.folder.path()))
    }

    /// The fault happens, and the next holder comes in after the work has ended.
    fn play(mut self, fault: Fault) {
        let restarts = matches!(fault, Fault::ServerIsKilled | Fault::ServerStops);
        let mut next = None;
        if !restarts {
            next = Some(self.next());
            self.server.waits(1);
        }
        match fault {
            Fault::ServerIsKilled => self.server = self.server.crash_and_restart(),
            Fault::ServerStops => self.server = self.server.stop_and_restart(),
            Fault::WrapperIsKilled => self.holder.signal(Signal::KILL),
            Fault::SupervisorIsKilled => {
                kill_process(self.holder.supervisor(), Signal::KILL).expect("it runs");
            }
            Fault::GroupIsKilled => {
                kill_process_group(self.holder.pid(), Signal::KILL).expect("it runs")
            }
        }
        let mut next = next.unwrap_or_else(|| self.next());
        let token = next.line();
        assert!(next.wait().0.success(), "{fault:?}");
        let journal = std::fs::read_to_string(self.server.folder.path().join("journal"))
            .expect("it is there");
        assert_ne!(journal.lines().next(), Some(&*token), "{fault:?}: the worker worked");
        assert_no_line_beside(&journal, &token, fault);
        wait_for_end_of(self.worker);
        self.holder.end_of_output();
    }
}

/// The content of a file, as soon as `writer` has made it.
fn contents_of(path: &Path, writer: &Running) -> String {
    let give_up = now() + cli_support::DEADLINE;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) => return text,
            Err(_) => assert!(
                now() < give_up,
                "{} does not appear: {:?}",
                path.display(),
                writer.errors()
            ),
        }
        std::thread::yield_now();
    }
}

fn on_every_fault(start: &str) {
    for fault in FAULTS {
        Scene::new(start).play(fault);
    }
}

#[test]
fn a_plain_child_ends_with_the_lock() {
    on_every_fault("$WORK & wait");
}

#[test]
fn a_child_of_timeout_ends_with_the_lock() {
    on_every_fault("timeout 1000 $WORK; true");
}

#[test]
fn a_job_of_a_shell_with_job_control_ends_with_the_lock() {
    on_every_fault("set -m; $WORK & wait");
}

#[test]
fn a_process_in_a_session_of_its_own_ends_with_the_lock() {
    on_every_fault("setsid $WORK & wait");
}

#[test]
fn a_daemon_ends_with_the_lock() {
    on_every_fault("(setsid bash -c '$WORK & exit' &); exec sleep 1000");
}

#[test]
fn a_job_of_an_interactive_shell_on_a_terminal_of_its_own_ends_with_the_lock() {
    on_every_fault("script -qfec \"bash -ic '$WORK & wait'\" /dev/null");
}

#[test]
fn what_runs_as_another_user_ends_with_the_lock() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: this test runs a command as another user, for which it must be run as root"
        );
        return;
    }
    on_every_fault("su nobody -s /bin/sh -c \"$WORK\"; true");
}

#[test]
fn what_runs_under_a_nested_lock_ends_with_the_outer_one() {
    on_every_fault("\"$SELF\" lock inner k -- $WORK; true");
}

#[test]
fn what_forks_and_exits_all_the_time_ends_with_the_lock() {
    // Each generation starts the next in a session of its own and ends: no look at it finds all.
    let generation =
        r#"echo "$MINE" >>"$FOLDER/journal"; setsid sh "$FOLDER/generation.sh" & exit"#;
    on_every_fault(&format!(
        "printf '%s' '{generation}' >$FOLDER/generation.sh; sh $FOLDER/generation.sh; exec $WORK"
    ));
}

#[test]
fn what_the_caller_had_before_is_left_alone() {
    let server = Server::start();
    let script = format!(
        "sleep 1000 & echo $!; exec {} lock t k -- sh -c 'sleep 1000 & echo $!; wait'",
        env!("CARGO_BIN_EXE_lockservice")
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).env("LOCKSERVICE_SERVER", &server.address).stdin(Stdio::null());
    let mut holder = Running::start(&mut command);
    let [before, worker] = [holder.process(), holder.process()];
    kill_process(holder.supervisor(), Signal::KILL).expect("it runs");
    wait_for_end_of(worker);
    wait_for_end_of(holder.pid());
    assert!(server.run(&["locks", "--json"]).stdout.is_empty(), "it was released");
    kill_process(before, Signal::KILL).expect("it still runs");
    assert_eq!(holder.wait().0.code(), Some(71));
}

#[test]
fn a_daemon_that_a_command_leaves_behind_is_ended_before_the_lock_is_released() {
    let scene = Scene::new(
        "(setsid bash -c '$WORK & exit' &); until [ -e $FOLDER/worker ]; do sleep 0.01; done",
    );
    let mut next = scene.next();
    let token = next.line();
    assert!(next.wait().0.success());
    assert_eq!(scene.holder.wait().0.code(), Some(0));
    let journal =
        std::fs::read_to_string(scene.server.folder.path().join("journal")).expect("it is there");
    assert_no_line_beside(&journal, &token, "daemon");
    wait_for_end_of(scene.worker);
}

/// Nothing but the next holder wrote after its first line.
fn assert_no_line_beside(journal: &str, token: &str, why: impl std::fmt::Debug) {
    let beside =
        journal.lines().skip_while(|line| *line != token).filter(|line| *line != token).count();
    assert_eq!(beside, 0, "{why:?}: lines of the old worker after the next holder's first");
}
