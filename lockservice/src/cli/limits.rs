//! Limits that do not fit together: the number of files that this process may have open, of which
//! each connection is one; and what one client may use of the node.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::Config;
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

/// Warns of each limit of the node that one client may reach alone.
pub(crate) fn warn_of_shares(config: &Config, json: bool) {
    let (server, service) = (&config.server, &config.service);
    let engine = &service.engine;
    for (of_client, may, of_node, has) in [
        ("sessions", server.sessions_per_client_max, "sessions_max", service.sessions_max),
        ("txns", server.txns_per_client_max, "txns_max", service.txns_max),
        ("ops", server.ops_per_client_max, "engine.waiters_max", engine.waiters_max),
        ("kept_bytes", server.kept_bytes_per_client_max, "kept_bytes_max", service.kept_bytes_max),
        (
            "lock_bytes",
            server.lock_bytes_per_client_max,
            "engine.lock_bytes_max",
            engine.lock_bytes_max,
        ),
    ] {
        if may >= has {
            let sentence = format!(
                "one client may shut all others out: server.{of_client}_per_client_max is {may}, \
                 and the node's service.{of_node} is {has}; lower the first, or raise the other"
            );
            say_warning(json, "client_limit", &sentence);
        }
    }
}
