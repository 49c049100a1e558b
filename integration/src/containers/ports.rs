//! Ports of this machine that stay ours while nothing listens on them.

use std::fs::{File, OpenOptions, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;

use rand::Rng as _;

/// Below the ports that the kernel gives to outgoing connections, so that none of those takes the
/// port of a server that is stopped.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port that no other test takes while this value lives: a locked file stands for it, since a
/// stopped server leaves the port itself free.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    _locked: File,
}

impl Port {
    /// Reserves a port that is free on 127.0.0.1.
    ///
    /// # Panics
    /// When a thousand tries find none.
    pub(super) fn reserve() -> Self {
        let directory = std::env::temp_dir().join("lockservice-test-ports");
        if std::fs::create_dir(&directory).is_ok() {
            // For all users of this machine. A file of another user cannot be opened, and counts as
            // taken.
            std::fs::set_permissions(&directory, Permissions::from_mode(0o1777))
                .expect("the mode of a directory just made");
        }
        for _ in 0..1_000 {
            let number = rand::rng().random_range(RANGE);
            let Ok(file) = OpenOptions::new()
                .create(true)
                .append(true)
                .open(directory.join(number.to_string()))
            else {
                continue;
            };
            if file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _locked: file };
            }
        }
        panic!("no free port among {RANGE:?}");
    }

    /// Its number.
    pub(super) fn number(&self) -> u16 {
        self.number
    }
}
