//! CPU time, user and system, of this process and of a server.
//!
//! # Implementation details
//! The kernel shows the time of another process in `/proc/PID/stat`, in ticks of 10 ms. A turn is
//! much longer, and the time of a cycle is an average over thousands of them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tonic::transport::Uri;

/// One tick. `USER_HZ` is 100 on every architecture of Linux that Rust supports.
const TICK: Duration = Duration::from_millis(10);

/// `st` of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// The CPU time of this process so far, all threads.
pub(super) fn own() -> Duration {
    let at = clock_gettime(ClockId::ProcessCPUTime);
    // The kernel promises non-negative seconds and nanoseconds below 10^9 for this clock.
    Duration::new(at.tv_sec as u64, at.tv_nsec as u32)
}

/// The processes of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ServerProcess {
    /// One process does all the work.
    One(u32),
    /// A process and its children.
    #[cfg_attr(not(feature = "pg"), allow(dead_code, reason = "PostgreSQL is such a server"))]
    WithChildren(u32),
    /// Not known, for this reason.
    Unknown(String),
}

impl ServerProcess {
    /// The process `pid`, if it is on this machine and its program is one of `names`: a number of
    /// another machine, or of a container, may be that of another process here.
    #[cfg(any(feature = "pg", feature = "redis"))]
    pub(super) fn named(pid: u32, names: &[&str]) -> Self {
        match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(comm) if names.contains(&comm.trim_end()) => Self::One(pid),
            _ => {
                Self::Unknown(format!("its process {pid} is on another machine or in a container"))
            }
        }
    }

    /// The process that listens at the host and port of `uri`, as [`listening`](Self::listening)
    /// finds it. Of a name's addresses it is the first one whose process is found.
    pub(super) async fn at(uri: &Uri, name: &str) -> Self {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let addresses = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await;
        let mut unknown = None;
        for address in addresses.into_iter().flatten() {
            match Self::listening(address, name) {
                Self::Unknown(why) => unknown = unknown.or(Some(why)),
                found => return found,
            }
        }
        Self::Unknown(unknown.unwrap_or_else(|| format!("{host} has no address")))
    }

    /// The process that listens on `address`, if it is on loopback and its program is called
    /// `name`: a forwarder (a proxy, an SSH tunnel, Docker's) is not the server.
    pub(super) fn listening(address: SocketAddr, name: &str) -> Self {
        if !address.ip().is_loopback() {
            return Self::Unknown(format!("{address} is not on this machine's loopback"));
        }
        let sockets = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .flat_map(|table| listeners(&table, address))
            .collect();
        let Some(pid) = owner(&sockets) else {
            return Self::Unknown(format!(
                "the process that listens on {address} is another user's, or in a container"
            ));
        };
        match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(comm) if comm.trim_end() == name => Self::One(pid),
            Ok(comm) => Self::Unknown(format!(
                "{} listens on {address}, which is not called {name}",
                comm.trim_end()
            )),
            Err(error) => Self::Unknown(format!("process {pid} cannot be read: {error}")),
        }
    }

    /// The CPU time so far. `None` if it is not known.
    pub(super) fn cpu(&self) -> Option<Duration> {
        match self {
            Self::One(pid) => Some(stat(*pid)?.own),
            Self::WithChildren(parent) => {
                let stat_of_parent = stat(*parent)?;
                let children = processes()
                    .filter_map(stat)
                    .filter(|stat| stat.parent == *parent)
                    .map(|stat| stat.own);
                // Children that have ended count too. Otherwise the time would fall with each end.
                let own = stat_of_parent.own + stat_of_parent.ended_children;
                Some(children.fold(own, |sum, child| sum + child))
            }
            Self::Unknown(_) => None,
        }
    }
}

/// The parent of a process.
#[cfg(feature = "pg")]
pub(super) fn parent(pid: u32) -> Option<u32> {
    Some(stat(pid)?.parent)
}

/// The contents of `/proc/PID/stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stat {
    parent: u32,
    own: Duration,
    ended_children: Duration,
}

fn stat(pid: u32) -> Option<Stat> {
    Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The name of the program stands in parentheses, and may itself contain parentheses.
        let (_, after_name) = line.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let ticks = |at: usize| -> Option<Duration> {
            let ticks = [fields.get(at)?, fields.get(at + 1)?].map(|n| n.parse::<u32>().ok());
            Some(TICK * (ticks[0]? + ticks[1]?))
        };
        // Behind the name: state, parent, …; user and system time, and those of ended children.
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)?,
            ended_children: ticks(13)?,
        })
    }
}

/// True if `host` is a name of this machine that only it knows.
#[cfg(any(feature = "pg", feature = "redis"))]
pub(super) async fn is_loopback(host: &str) -> bool {
    match tokio::net::lookup_host((host.trim_matches(['[', ']']), 0)).await {
        Ok(mut addresses) => addresses.all(|address| address.ip().is_loopback()),
        Err(_) => false,
    }
}

/// The numbers of all processes.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The inodes of the sockets of a `/proc/net/tcp` on which a connection to `address` ends.
fn listeners(table: &str, address: SocketAddr) -> Vec<u64> {
    let listener = |line: &str| -> Option<u64> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (ip, port) = local.rsplit_once(':')?;
        let ip = ip_of(ip)?;
        let meant = ip == address.ip() || ip.is_unspecified();
        let port = u16::from_str_radix(port, 16).ok()?;
        (*state == LISTENS && port == address.port() && meant).then(|| inode.parse().ok())?
    };
    table.lines().filter_map(listener).collect()
}

/// An address as `/proc/net/tcp` writes it: words of 32 bits, each in the machine's byte order.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for at in (0..hex.len()).step_by(8) {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => Some(Ipv4Addr::from(v4).into()),
        Err(_) => {
            let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            Some(v6.to_canonical())
        }
    }
}

/// A process that has one of these sockets open.
fn owner(sockets: &BTreeSet<u64>) -> Option<u32> {
    let names: BTreeSet<String> = sockets.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has_one = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_str().is_some_and(|target| names.contains(target)))
    };
    processes().find(has_one)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_times_are_read_behind_a_name_with_parentheses() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 3 4 20 0 1 0 9 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.parent, 7);
        assert_eq!(stat.own, Duration::from_secs(2));
        assert_eq!(stat.ended_children, Duration::from_millis(70));
        assert_eq!(Stat::parse("42 (a) S 7"), None);
    }

    #[test]
    fn a_process_is_found_by_the_address_on_which_it_listens_and_only_under_its_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pid = std::process::id();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let found = ServerProcess::listening(address, comm.trim_end());
        assert_eq!(found, ServerProcess::One(pid));
        assert!(found.cpu().is_some());
        let forwarder = ServerProcess::listening(address, "lockservice-server");
        assert!(matches!(forwarder, ServerProcess::Unknown(_)), "{forwarder:?}");
        assert_eq!(forwarder.cpu(), None);
        let elsewhere = ServerProcess::listening("192.0.2.1:80".parse().unwrap(), "x");
        assert!(matches!(elsewhere, ServerProcess::Unknown(why) if why.contains("loopback")));
    }

    #[test]
    fn a_listener_on_every_address_is_that_of_loopback_too() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0100007F:1F90 0100007F:AAAA 01 00000000:00000000 00:00000000 00000000     0        0 13 1
";
        // The table is in the byte order of the machine.
        let table = if cfg!(target_endian = "little") {
            table.to_owned()
        } else {
            table.replace("0100007F", "7F000001")
        };
        assert_eq!(listeners(&table, "127.0.0.1:8080".parse().unwrap()), [11]);
        assert_eq!(listeners(&table, "127.0.0.1:8081".parse().unwrap()), [12]);
        assert!(listeners(&table, "127.0.0.2:8081".parse().unwrap()).is_empty());
    }

    #[test]
    fn the_time_of_children_counts_also_when_they_have_ended() {
        let pid = std::process::id();
        let before = ServerProcess::WithChildren(pid).cpu().unwrap();
        let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh").args(["-c", burn]).status().unwrap();
        assert!(status.success());
        assert!(ServerProcess::WithChildren(pid).cpu().unwrap() > before);
    }

    #[cfg(feature = "pg")]
    #[test]
    fn the_parent_of_this_process_is_found() {
        let expected = rustix::process::getppid().unwrap().as_raw_nonzero().get() as u32;
        assert_eq!(parent(std::process::id()), Some(expected));
    }
}
