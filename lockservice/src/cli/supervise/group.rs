//! What is left of a process group.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process_group};

/// What `/proc` shows of a process.
struct Stat {
    state: char,
    parent: i32,
    group: i32,
    threads: u32,
}

impl Stat {
    /// Parsed from behind the program's name, which may contain anything.
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            threads: fields.nth(14)?.parse().ok()?,
        })
    }

    /// True if nothing of it runs any more: it only waits to be reaped. (A first thread may end before the others.)
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// True if `group` has no members, not even dead ones.
pub(super) fn is_empty(group: Pid) -> bool {
    // A member that may not be signalled is another error.
    test_kill_process_group(group) == Err(Errno::SRCH)
}

/// True if no process of `group` can do anything any more. Said only of what is certain: a process that may not be signalled counts.
pub(super) fn is_gone(group: Pid) -> bool {
    if is_empty(group) {
        return true;
    }
    // What is left may be dead, but unreaped by a parent that is none of our business.
    let mut dead = 0;
    for stat in processes().filter(|stat| stat.group == group.as_raw_nonzero().get()) {
        if !stat.is_dead() {
            return false;
        }
        dead += 1;
    }
    dead > 0
}

/// The group, not its own, of a child of process `parent`, if it has such a child.
pub(super) fn of_child(parent: Pid, own: Pid) -> Option<Pid> {
    let (parent, own) = (parent.as_raw_nonzero().get(), own.as_raw_nonzero().get());
    processes().find(|stat| stat.parent == parent && stat.group != own).and_then(|stat| Pid::from_raw(stat.group))
}

fn processes() -> impl Iterator<Item = Stat> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        // Gone meanwhile: then it is not left.
        Stat::parse(&std::fs::read_to_string(entry.path().join("stat")).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use rustix::process::{WaitIdOptions, getpgrp, getpid, waitid};

    use super::*;

    #[test]
    fn a_group_whose_last_member_is_dead_but_unreaped_is_gone() {
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().expect("it starts");
        let group = Pid::from_child(&child);
        assert!(!is_gone(group));
        assert_eq!(of_child(getpid(), getpgrp()), Some(group));
        child.kill().expect("it runs");
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(rustix::process::WaitId::Pid(group), ended).expect("it ends");
        assert_eq!(test_kill_process_group(group), Ok(()), "it can still be signalled");
        assert!(is_gone(group));
        child.wait().expect("it ends");
        assert!(is_gone(group));
    }

    #[test]
    fn a_name_with_brackets_and_spaces_is_no_state() {
        let stat = Stat::parse("7 (a) Z (b) S 3 5 5 0 -1 4 0 0 0 0 0 0 0 0 20 0 2 0 9").expect("a process");
        assert_eq!((stat.state, stat.parent, stat.group, stat.threads), ('S', 3, 5, 2));
        assert!(!stat.is_dead());
    }
}
