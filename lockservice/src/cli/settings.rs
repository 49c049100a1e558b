//! The text of `serve --help` about every setting.

use serde_json::Value;

use super::config::Config;

/// Each key of [`Config`] and its meaning, in the order in which they are shown. Defaults are read
/// from `Config` itself.
const SETTINGS: &[(&str, &str)] = &[
    ("listen", "address to listen on"),
    ("advertise", "where clients reach this node; empty: where it listens"),
    ("peer_listen", "where to listen to other nodes; empty: loopback, the port after listen's"),
    ("peer_advertise", "where other nodes reach this one; empty: where it listens for them"),
    ("metrics", "address for metrics and health over HTTP; empty: none"),
    ("traces", "URL of the OTLP collector for traces of lock calls; empty: none"),
    ("store", "where bindings are kept"),
    ("node", "name of this node; empty: the machine's"),
    ("state_dir", "folder by which the next process takes over; empty: the user's state"),
    ("insecure", "serve addresses other than loopback without TLS, or to everyone"),
    ("drain_stop", "stop for good: have the clients stop their work, and wait for them"),
    ("tls.cert", "PEM file of this node's certificate; empty: no TLS"),
    ("tls.key", "PEM file of its private key"),
    ("tls.client_ca", "PEM file of the CAs of clients and nodes; empty: they need no certificate"),
    ("tls.client_cert_optional", "clients may come with a token instead of a certificate"),
    ("peer_token_file", "file of the token that this node presents to other nodes"),
    ("identity_file", "TOML file with more [[identity]] tables"),
    ("identity", "who may do what: [[identity]] tables; empty: everyone everything"),
    ("tls.peer_ca", "PEM file of the CAs of the other nodes; empty: that of client_ca"),
    ("log", "what is logged, for example info; empty: as RUST_LOG says, or warn"),
    ("log_format", "text or json; empty: json with --json"),
    ("start_ms_max", "how long a start may wait for the store and a leader; 0: without an end"),
    ("limit", "limits of tables: [[limit]] tables; empty: none"),
    ("server.message_bytes_max", "largest message that is accepted"),
    ("server.items_per_request_max", "most rows and ranges in one request"),
    ("server.ops_under_way_max", "most operations under way in one session stream"),
    ("server.write_ms_max", "how long a client that does not read its responses is waited for"),
    ("server.hello_ms_max", "how long a new connection may stay silent"),
    ("server.connections_max", "most connections at once"),
    ("server.connections_per_address_max", "most connections of one address at once"),
    ("server.sessions_per_connection_max", "most sessions that one connection has opened"),
    (
        "server.ops_per_connection_max",
        "most operations under way in the sessions of one connection",
    ),
    (
        "server.calls_per_connection_max",
        "most open calls of one connection; as many again of releases",
    ),
    (
        "server.kept_bytes_per_connection_max",
        "memory for its messages and what is queued or kept of them",
    ),
    ("server.sessions_per_client_max", "most sessions of one client: an identity, or an address"),
    ("server.txns_per_client_max", "most transactions in the sessions of one client"),
    ("server.ops_per_client_max", "most operations under way there, waits included"),
    ("server.calls_per_client_max", "most open calls of one client; as many again of releases"),
    (
        "server.kept_bytes_per_client_max",
        "memory for its messages and what is queued or kept of them",
    ),
    ("server.lock_bytes_per_client_max", "memory for the locks of one client"),
    ("server.list_lines_max", "most lines in a list of locks, waits or binds"),
    ("server.grace_ms", "how long a stop waits for the sessions to close"),
    ("service.session_ttl_ms", "how long a silent client's locks are kept"),
    ("service.session_ttl_ms_min", "least that a client may request"),
    ("service.session_ttl_ms_max", "most that a client may request"),
    ("service.wait_ms_max", "longest wait for a lock"),
    ("service.sessions_max", "most sessions at once"),
    ("service.txns_per_session_max", "most transactions of one session"),
    ("service.txns_max", "most transactions at once"),
    (
        "service.ops_per_txn_max",
        "most operations of one transaction that are queued or kept for a replay",
    ),
    ("service.kept_bytes_per_session_max", "memory for those of one session"),
    ("service.kept_bytes_max", "memory for those of all sessions together"),
    ("service.table_idle_ms", "how long a table without locks is kept; 0: for ever"),
    ("service.slow_wait_ms", "a wait of so long is logged, with the holder; 0: none"),
    ("service.hot_keys_max", "rows and ranges whose waits are counted, for `hot`; 0: none"),
    ("service.engine.items_per_request_max", "most rows and ranges in one request, of any caller"),
    ("service.engine.lock_bytes_max", "memory for the locks and waits of this node"),
    ("service.engine.txn_lock_bytes_max", "memory for the locks of one transaction"),
    ("service.engine.waiters_max", "most calls that wait at once"),
    ("service.engine.victim", "the transaction that fails in a deadlock: fewest-locks or youngest"),
    (
        "allocator.constants.leadership_ttl_ms",
        "how long a silent leader leads; the same on every node",
    ),
    (
        "allocator.constants.lease_ttl_ms",
        "how long a silent node keeps its tables, on every node; 5000 in a cluster",
    ),
    ("allocator.tables_max", "most lock tables"),
    (
        "allocator.table_idle_ms",
        "how long a table may have no owner before it is forgotten; 0: for ever",
    ),
    ("allocator.nodes_max", "most nodes known at one time"),
    ("allocator.queue_max", "most changes that wait for the store"),
    ("allocator.batch_max", "most changes in one write to the store"),
    ("allocator.commit_binds_max", "most binds that one commit presents"),
    (
        "allocator.commits_max",
        "most transactions of one node that are committing, or were made unable to",
    ),
];

/// Each setting with its default, and its meaning below: narrow, so that no terminal wraps it.
pub(crate) fn help() -> String {
    let defaults = serde_json::to_value(Config::default()).expect("settings are plain data");
    let lines = SETTINGS
        .iter()
        .map(|(key, what)| format!("  {key} = {}\n      {what}\n", default(&defaults, key)));
    format!(
        "Settings and their defaults (durations in milliseconds, sizes in bytes):\n{}",
        lines.collect::<String>()
    )
}

fn default<'a>(defaults: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(defaults, |value, part| &value[part])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(section) => {
                for (key, value) in section {
                    keys(
                        value,
                        &if path.is_empty() { key.clone() } else { format!("{path}.{key}") },
                        found,
                    );
                }
            }
            _ => drop(found.insert(path.to_owned())),
        }
    }

    #[test]
    fn every_setting_is_listed_once_with_its_default() {
        let mut real = BTreeSet::new();
        keys(&serde_json::to_value(Config::default()).unwrap(), "", &mut real);
        let listed: BTreeSet<String> = SETTINGS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(
            listed, real,
            "a setting that is new or gone: add it to SETTINGS, or remove it there"
        );
        assert_eq!(listed.len(), SETTINGS.len());
        assert!(help().contains("server.connections_max = 10000\n"), "{}", help());
    }
}
