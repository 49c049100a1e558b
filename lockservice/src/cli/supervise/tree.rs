//! Everything that this process started, directly or not: it is found, ended and reaped here.
//!
//! # Implementation details
//! This process is a subreaper: a descendant that loses its parent becomes its child. So each
//! descendant stays below it, also after a change of group or session, or two forks and an exit.
//! None is left exactly when this process has no child left, which `wait` reports for certain.
//! `/proc` only names the processes to signal. One reading of it may miss a process whose parent
//! ends meanwhile. The next one finds it, so everything here is repeated until nothing new is
//! found.

use std::collections::{HashMap, HashSet};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid, kill_process,
    pidfd_open, pidfd_send_signal, wait, waitid,
};

/// The largest number of rounds of a signal, for processes that were started meanwhile. The next
/// call finds later ones: nothing counts as ended before all have gone.
const ROUNDS_MAX: usize = 64;

/// A process as `/proc` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    name: String,
    state: char,
    parent: i32,
    /// Its process group.
    pub(super) group: i32,
    /// The foreground group of its terminal; -1 if it has none.
    pub(super) foreground: i32,
    threads: u32,
    /// The time of its start, which distinguishes it from a later process of the same number.
    started: u64,
}

impl Process {
    /// The process of this number, if there is one.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Self::read(pid.as_raw_nonzero().get())
    }

    fn read(pid: i32) -> Option<Self> {
        Self::parse(
            pid,
            &String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?),
        )
    }

    /// The name stands in brackets and may contain anything.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let (head, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            name: head.split_once('(')?.1.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            foreground: fields.get(5)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// True if it was stopped by a signal.
    pub(super) fn is_stopped(&self) -> bool {
        self.state == 'T'
    }

    /// True if none of its threads runs any more, and it only waits to be reaped. (A first thread
    /// may end before the others.)
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    /// Signals this process, and no later one of the same number.
    fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let file = pidfd_open(pid, PidfdFlags::empty());
        match Self::read(self.pid) {
            Some(now) if now.started == self.started => {}
            _ => return Err(Errno::SRCH),
        }
        match file {
            Ok(file) => pidfd_send_signal(file, signal),
            // The kernel has no such files, or no more files may be open.
            Err(Errno::NOSYS | Errno::MFILE | Errno::NFILE) => kill_process(pid, signal),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Display for Process {
    /// Its number and its name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name: String = self.name.chars().flat_map(char::escape_default).collect();
        write!(f, "{} ({name})", self.pid)
    }
}

/// The descendants of this process.
#[derive(Debug)]
pub(super) struct Tree {
    /// Children from before it started anything: those of the program that became this one.
    spared: Vec<i32>,
}

impl Tree {
    /// The descendants that this process starts from now on.
    pub(super) fn from_now() -> Self {
        let any = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::CONTINUED;
        let looked = waitid(WaitId::All, any | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
        if looked.is_err_and(|error| error == Errno::CHILD) {
            return Self { spared: Vec::new() };
        }
        let own = own_number();
        Self {
            spared: processes()
                .into_iter()
                .filter(|it| it.parent == own)
                .map(|it| it.pid)
                .collect(),
        }
    }

    /// Those that still run.
    pub(super) fn living(&self) -> Vec<Process> {
        let mut found =
            self.walk().unwrap_or_else(|| descendants(&processes(), own_number(), &self.spared));
        found.retain(|process| !process.is_dead());
        found
    }

    /// Goes from parent to children. The cost grows with the number of descendants; a search of all
    /// processes takes too long beside ten thousand others. `None` if the kernel does not list
    /// children.
    fn walk(&self) -> Option<Vec<Process>> {
        let own = own_number();
        let mut found = Vec::new();
        let mut seen = HashSet::from([own]);
        let mut parents = vec![own];
        while let Some(parent) = parents.pop() {
            let children = children(parent);
            if parent == own && children.is_none() {
                return None;
            }
            for child in children.unwrap_or_default() {
                if (parent == own && self.spared.contains(&child)) || !seen.insert(child) {
                    continue;
                }
                parents.push(child);
                found.extend(Process::read(child));
            }
        }
        Some(found)
    }

    /// Sends `signal` to all processes for which `chosen` is true. Returns those that may not be
    /// signalled, because they belong to another user.
    pub(super) fn signal(&self, signal: Signal, chosen: impl Fn(&Process) -> bool) -> Vec<Process> {
        let mut seen = HashSet::new();
        let mut refused = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let mut new = self.living();
            new.retain(|process| chosen(process) && seen.insert((process.pid, process.started)));
            if new.is_empty() {
                break;
            }
            for process in new {
                if process.signal(signal) == Err(Errno::PERM) {
                    refused.push(process);
                }
            }
        }
        refused
    }

    /// Kills all. They are stopped first, for a stopped process starts no other.
    pub(super) fn kill(&self) {
        let mut stopped = HashSet::new();
        let mut living = self.living();
        for _ in 0..ROUNDS_MAX {
            let before = stopped.len();
            for process in &living {
                if stopped.insert((process.pid, process.started)) {
                    // A process that may not be signalled is named in the end.
                    let _ = process.signal(Signal::STOP);
                }
            }
            if stopped.len() == before {
                break;
            }
            living = self.living();
        }
        for process in living {
            let _ = process.signal(Signal::KILL);
        }
    }

    /// Reaps the processes that have ended, and calls `saw` with each change of a child. True if no
    /// process is left, not even a dead one.
    pub(super) fn reap(&self, mut saw: impl FnMut(Pid, WaitStatus)) -> bool {
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) => saw(pid, status),
                // A child is left, which may be one of the spared. Every process below this one is
                // below a child of it, and that one does not go before it is reaped, which is here.
                Ok(None) => {
                    let own = own_number();
                    let ours = |it: &Process| it.parent == own && !self.spared.contains(&it.pid);
                    return !self.spared.is_empty() && !processes().iter().any(ours);
                }
                Err(Errno::INTR) => {}
                // No child at all.
                Err(_) => return true,
            }
        }
    }
}

fn own_number() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// The children of a process, dead ones included; `None` where `/proc` does not list them.
fn children(pid: i32) -> Option<Vec<i32>> {
    let mut listed = None;
    // Each thread lists the children that it started.
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        if let Ok(children) = std::fs::read_to_string(thread.path().join("children")) {
            let numbers =
                children.split_ascii_whitespace().filter_map(|number| number.parse::<i32>().ok());
            listed.get_or_insert_with(Vec::new).extend(numbers);
        }
    }
    listed
}

/// The processes of `all` below `root`, but for `spared` of its children and what is below them.
fn descendants(all: &[Process], root: i32, spared: &[i32]) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        // The children are taken out of the map: if numbers were reused during the reading, the
        // tree may look like a circle.
        for child in children.remove(&parent).unwrap_or_default() {
            if !(parent == root && spared.contains(&child.pid)) {
                parents.push(child.pid);
                found.push(child.clone());
            }
        }
    }
    found
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    // A process that has gone meanwhile is not left.
    entries.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        let stat = format!("{pid} (a) Z (b) T {parent} 5 5 0 -1 4 0 0 0 0 0 0 0 0 20 0 2 0 9");
        Process::parse(pid, &stat).expect("a process")
    }

    #[test]
    fn a_name_with_brackets_and_spaces_is_no_state() {
        let process = process(7, 3);
        assert_eq!((process.state, process.parent, process.group), ('T', 3, 5));
        assert_eq!((process.foreground, process.threads, process.started), (-1, 2, 9));
        assert!(process.is_stopped() && !process.is_dead());
        assert_eq!(process.to_string(), "7 (a) Z (b)");
    }

    #[test]
    fn all_below_are_found_in_any_order_and_what_the_caller_had_before_is_spared() {
        let all = [
            process(9, 4),
            process(4, 2),
            process(2, 1),
            process(3, 1),
            process(5, 3),
            process(6, 8),
        ];
        let found = |root, spared: &[i32]| {
            let mut found: Vec<i32> =
                descendants(&all, root, spared).into_iter().map(|it| it.pid).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found(1, &[]), [2, 3, 4, 5, 9]);
        assert_eq!(found(1, &[3]), [2, 4, 9]);
        assert_eq!(found(2, &[3]), [4, 9]);
    }

    #[test]
    fn a_walk_and_a_scan_of_all_processes_find_the_same() {
        let tree = Tree { spared: Vec::new() };
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 1000 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)
            .expect("a line");
        let root = i32::try_from(child.id()).expect("a number");
        // Other tests of this process have children too.
        let below = |found: Vec<Process>| {
            let mut found: Vec<_> = found
                .into_iter()
                .filter(|it| it.pid == root || it.parent == root)
                .map(|it| it.pid)
                .collect();
            found.sort_unstable();
            found
        };
        let walked = below(tree.walk().expect("this kernel lists children"));
        assert_eq!(walked.len(), 2);
        assert_eq!(walked, below(descendants(&processes(), own_number(), &[])));
        for pid in walked.iter().rev() {
            Process::read(*pid).expect("it runs").signal(Signal::KILL).expect("it is ours");
        }
        child.wait().expect("it ends");
    }

    #[test]
    fn numbers_that_form_a_circle_end_the_search() {
        let all = [process(2, 1), process(3, 2), process(2, 3)];
        assert!(descendants(&all, 1, &[]).len() <= all.len());
    }
}
