//! The number of files that this process may have open: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::exit::say_warning;

/// The files beside connections: the store, the listener, standard streams, the runtime.
const BESIDE_CONNECTIONS: u64 = 64;

/// Raises the limit on open files as far as this user may. Warns if it is still too low for
/// `connections_max`.
pub(crate) fn allow_connections(connections_max: usize, json: bool) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // No limit is `None`. A limit that cannot be raised stays, and is reported below.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let limit = if raised { maximum } else { current };
    let needed =
        u64::try_from(connections_max).unwrap_or(u64::MAX).saturating_add(BESIDE_CONNECTIONS);
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        let sentence = format!(
            "this process may have {limit} files open, too few for {connections_max} connections: \
             raise the hard limit (`ulimit -Hn`, \
             LimitNOFILE= of systemd) to {needed}, or lower server.connections_max"
        );
        say_warning(json, "open_files", &sentence);
    }
}
