//! The arguments of `serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::duration;
use crate::cli::log::LogFormat;
use crate::cli::settings;

const SERVE_NOTES: &str = "\
Every setting can stand in the TOML file of --config (listen, store, node, …), or in the \
environment \
(LOCKSERVICE_LISTEN, …, LOCKSERVICE_ALLOCATOR__TABLES_MAX for a key of a section). Flags go \
before \
the environment, and that before the file. A variable that is empty is not set.

A password in --store can be read by every user of the machine (ps). Give the URL as \
LOCKSERVICE_STORE instead, or as `store` in a --config file that only this user may read. For \
PostgreSQL the URL can do without it: PGPASSWORD, or the password file of PGPASSFILE (~/.pgpass).

SIGINT or SIGTERM stops the server for a restart, in less than a second: nobody's work ends, and \
what is held stays held if the next start comes before the clients' time is up. With --drain-stop \
or a store in memory it has the clients stop their work, and gives all locks up. Another signal, \
a second later or more, stops it at once. SIGHUP means that the \
terminal \
has gone if the server was started from one; else certificates, identities, limits of tables and \
the setting `log` of --config are read again. The first three are read again without it too, some \
seconds after they have changed. Without --log RUST_LOG says what is logged; lines that are not \
read are dropped and counted.

With identities only callers that they name are served. Each is a table of the file of --config or \
--identity-file, and is known by a token (lockservice token new) or by the common name of its \
certificate:
  [[identity]]
  name = 'billing'
  roles = ['client']           # also: operator, and peer for other nodes
  token_sha256 = '4f0c…'       # or several: ['4f0c…', '91ab…']
  certificates = 'billing'
  groups = ['bank']            # only tables of this group …
  tables = ['accounts']        # … whose names begin so; without them all
  limits = { sessions_max = 100 }   # instead of those of the server

A client is an identity, or an address of callers without one. The settings \
server.…_per_client_max bound what one client may use, and limits of an identity replace them: \
sessions_max, txns_max, \
ops_max, calls_max, kept_bytes_max, lock_bytes_max.

Limits of tables are tables of the file of --config. The one with the longest prefix counts, and \
what it does not set is not limited. A transaction that reaches a limit of holds is ended, as by \
lockservice txn kill:
  [[limit]]
  prefix = 'jobs/'             # of the names; with group = 'g' only there
  longest-wait = '30s'         # of a call
  longest-hold = '10m'         # from the first lock to the last there
  longest-idle-hold = '1m'     # without a call of the transaction

Exit status: 0 stopped in order, 64 wrong usage, 65 the store is damaged or of a newer version, 69 \
the store does not respond, or stopped at once, 70 the service failed, 71 the operating system \
refused something, 74 the store cannot be read or written, 75 it is in use, 78 the settings are \
wrong.

Examples:
  lockservice serve
  lockservice serve --store rocks:/var/lib/lockservice --node a
  lockservice serve --store memory:    # for one process; forgets everything

`lockservice serve --help` lists every setting; -h only these lines.";

#[derive(Clone, Debug, Default, Args)]
#[command(after_help = SERVE_NOTES)]
#[command(after_long_help = format!("{SERVE_NOTES}\n\n{}", settings::help()))]
pub(crate) struct ServeArgs {
    /// Address to listen on [default: 127.0.0.1:7654].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// The address at which clients reach this node, HOST:PORT
    /// [default: the address it listens on].
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Address to listen on for other nodes, which own the cluster [default: 127.0.0.1, the port
    /// after that of --listen].
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_listen: Option<String>,
    /// The address at which other nodes reach this one, HOST:PORT
    /// [default: the address it listens on for them].
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer_advertise: Option<String>,
    /// Address for metrics (/metrics, for Prometheus) and health (/healthz, /readyz) over HTTP
    /// [default: none].
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<String>,
    /// Export traces of lock calls to this collector of OpenTelemetry, for example
    /// http://127.0.0.1:4317 (OTLP over gRPC) [default: none].
    #[arg(long, value_name = "URL")]
    pub(crate) traces: Option<String>,
    /// The store of the binds: file:PATH, rocks:PATH, postgres://…, redis://… or memory:
    /// [default: file:./lockservice.db]. For one with a password see below.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Name of this node, the same over its restarts [default: the machine's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The folder of the file by which the next process of this node replaces this one at once if
    /// it crashes; only for stores that nodes share [default: $XDG_STATE_HOME/lockservice].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// A TOML file with settings.
    #[arg(long, env = "LOCKSERVICE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The PEM file of this node's certificate: clients and other nodes connect with TLS.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The PEM file of the certificate's private key.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The PEM file of the CAs of clients and nodes, which must present certificates then.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// The PEM file of the CAs of the other nodes' certificates [default: that of --tls-client-ca].
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_peer_ca: Option<PathBuf>,
    /// Let clients without a certificate in, who present a token.
    #[arg(long)]
    pub(crate) tls_client_cert_optional: bool,
    /// A TOML file that says who may do what: see below. It can stand in the file of --config too.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity_file: Option<PathBuf>,
    /// The file of the token that this node presents to other nodes.
    #[arg(long, value_name = "FILE")]
    pub(crate) peer_token_file: Option<PathBuf>,
    /// Serve addresses other than loopback without TLS, or to everyone.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// What is logged to stderr: warn, info, lockservice=debug, … [default: warn].
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// The format of the log [default: text, or json with --json].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Log each lock call that has waited for so long, with who holds the lock, for example 10s.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) slow_wait: Option<Duration>,
    /// How long a node that fell silent keeps its tables, and the longest that a holder may be
    /// without its server, for example 30s [default: 15s; 5s with a store that nodes share].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) lease_ttl: Option<Duration>,
    /// How long to wait at the start for the store and for a leader, for example 60s
    /// [default: without an end].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) start_timeout: Option<Duration>,
    /// How long a client that fell silent keeps its locks if it does not request another time
    /// [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) session_ttl: Option<Duration>,
    /// Stop for good: tell the sessions to stop their work, and wait for them [default: what is
    /// held stays held over a restart].
    #[arg(long)]
    pub(crate) drain_stop: bool,
    /// How long a table is kept in which nothing is locked, for example 12h; 0 for ever [default:
    /// 1d].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) table_idle: Option<Duration>,
}

impl ServeArgs {
    /// The flags that were given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        [
            ("--listen", self.listen.is_some()),
            ("--advertise", self.advertise.is_some()),
            ("--peer-listen", self.peer_listen.is_some()),
            ("--peer-advertise", self.peer_advertise.is_some()),
            ("--metrics", self.metrics.is_some()),
            ("--traces", self.traces.is_some()),
            ("--store", self.store.is_some()),
            ("--node", self.node.is_some()),
            ("--state-dir", self.state_dir.is_some()),
            ("--config", self.config.is_some()),
            ("--tls-cert", self.tls_cert.is_some()),
            ("--tls-key", self.tls_key.is_some()),
            ("--tls-client-ca", self.tls_client_ca.is_some()),
            ("--tls-peer-ca", self.tls_peer_ca.is_some()),
            ("--tls-client-cert-optional", self.tls_client_cert_optional),
            ("--identity-file", self.identity_file.is_some()),
            ("--peer-token-file", self.peer_token_file.is_some()),
            ("--insecure", self.insecure),
            ("--log", self.log.is_some()),
            ("--log-format", self.log_format.is_some()),
            ("--slow-wait", self.slow_wait.is_some()),
            ("--lease-ttl", self.lease_ttl.is_some()),
            ("--start-timeout", self.start_timeout.is_some()),
            ("--session-ttl", self.session_ttl.is_some()),
            ("--drain-stop", self.drain_stop),
            ("--table-idle", self.table_idle.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, given)| given.then_some(flag))
        .collect()
    }
}
