//! What a server is told: one TOML file, the environment, flags, in rising priority.

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use lockservice_core::NodeName;
use lockservice_core::allocator::AllocatorSettings;
use lockservice_core::service::ServiceSettings;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::ServeArgs;
use super::exit::{self, Failure, say_event};
use crate::server::ServerSettings;

/// Environment variables with our prefix that are not settings of a server.
const NOT_SETTINGS: [&str; 8] = [
    "LOCKSERVICE_SERVER",
    "LOCKSERVICE_CONFIG",
    "LOCKSERVICE_TOKEN",
    "LOCKSERVICE_TABLE",
    "LOCKSERVICE_GROUP",
    "LOCKSERVICE_KEYS",
    "LOCKSERVICE_HELD",
    "LOCKSERVICE_CACHE",
];

const PREFIX: &str = "LOCKSERVICE_";

/// Settings of `serve`. The sections' keys end in their units.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Address to listen on, HOST:PORT. Default `127.0.0.1:7654`.
    pub(crate) listen: String,
    /// Where clients reach this node, HOST:PORT. Default (empty): the address it listens on.
    pub(crate) advertise: String,
    /// Address to listen on for other nodes, HOST:PORT; not used with a store that one node has to
    /// itself. Default (empty): 127.0.0.1, at the port after that of `listen`.
    pub(crate) peer_listen: String,
    /// Where other nodes reach this one, HOST:PORT. Default (empty): the address it listens on for
    /// them.
    pub(crate) peer_advertise: String,
    /// Where bindings are kept: `file:PATH`, `rocks:PATH`, `postgres://…`, `redis://…` or
    /// `memory:`. Default `file:./lockservice.db`.
    pub(crate) store: String,
    /// The node's name, the same over its restarts. Default (empty): the machine's name.
    pub(crate) node: String,
    /// Serve addresses other than loopback without encryption and passwords. Default false.
    pub(crate) insecure: bool,
    /// How long a start may wait for the store and for a leader, in milliseconds; 0: without an
    /// end. Default 0.
    pub(crate) start_ms_max: u64,
    /// Limits of the gRPC server.
    pub(crate) server: ServerSettings,
    /// Limits and defaults of the lock service.
    pub(crate) service: ServiceSettings,
    /// Limits and constants of the allocator.
    pub(crate) allocator: AllocatorSettings,
}

/// Where the settings of a server came from: names only, for a value may be a secret.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Origin {
    /// The configuration file.
    pub(crate) file: Option<String>,
    /// Variables of the environment.
    pub(crate) variables: Vec<String>,
    /// Flags.
    pub(crate) flags: Vec<&'static str>,
}

impl Origin {
    /// Says it on stderr, for whoever wonders later why the server does what it does.
    pub(crate) fn say(&self, json: bool) {
        let object = json.then(|| {
            json!({
                "event": "started_from",
                "config": self.file,
                "environment": self.variables,
                "flags": self.flags,
            })
        });
        say_event("started from ", &self.to_string(), object);
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.iter().map(|file| format!("the configuration file {file}"));
        let variables = (!self.variables.is_empty())
            .then(|| format!("the environment ({})", self.variables.join(", ")));
        let flags = (!self.flags.is_empty()).then(|| format!("flags ({})", self.flags.join(", ")));
        let all: Vec<String> = file.chain(variables).chain(flags).collect();
        f.write_str(&if all.is_empty() { "the defaults".to_owned() } else { all.join(", ") })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7654".to_owned(),
            advertise: String::new(),
            peer_listen: String::new(),
            peer_advertise: String::new(),
            store: "file:./lockservice.db".to_owned(),
            node: String::new(),
            insecure: false,
            start_ms_max: 0,
            server: ServerSettings::default(),
            service: ServiceSettings::default(),
            allocator: AllocatorSettings::default(),
        }
    }
}

impl Config {
    /// Merges everything; also tells where it came from. Fails naming the key, and where it stands.
    pub(crate) fn load(
        args: &ServeArgs,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Origin), Failure> {
        let config = |sentence: String| Failure::new(exit::CONFIG, "config", sentence);
        let defaults = Figment::from(Serialized::defaults(Self::default()));
        let mut figment = defaults.clone();
        let file = args.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        if let Some(path) = &args.config {
            let text = std::fs::read_to_string(path).map_err(|error| {
                config(format!(
                    "cannot read the configuration file {file}: {error}; check --config and \
                        LOCKSERVICE_CONFIG"
                ))
            })?;
            figment = figment.merge(Toml::string(&text));
        }
        let environment = Environment::new(&defaults, env)?;
        let origin = Origin {
            file: args.config.as_ref().map(|_| file.clone()),
            variables: environment.names.clone(),
            flags: args.given(),
        };
        figment = figment.merge(environment);
        let mut merged: Self = figment.extract().map_err(|errors| {
            let all: Vec<String> =
                errors.into_iter().map(|error| describe(&error, &file)).collect();
            config(all.join("; "))
        })?;
        merged.apply(args);
        merged.check()?;
        Ok((merged, origin))
    }

    fn apply(&mut self, args: &ServeArgs) {
        let set = |field: &mut String, flag: &Option<String>| {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        };
        set(&mut self.listen, &args.listen);
        set(&mut self.advertise, &args.advertise);
        set(&mut self.peer_listen, &args.peer_listen);
        set(&mut self.peer_advertise, &args.peer_advertise);
        set(&mut self.store, &args.store);
        set(&mut self.node, &args.node);
        self.insecure |= args.insecure;
        let ms =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if let Some(ttl) = args.lease_ttl {
            self.allocator.constants.lease_ttl_ms = ms(ttl);
        }
        if let Some(time) = args.start_timeout {
            self.start_ms_max = ms(time).max(1);
        }
        if let Some(idle) = args.table_idle {
            // One with an owner and one without: to whoever sets this they are the same.
            (self.service.table_idle_ms, self.allocator.table_idle_ms) = (ms(idle), ms(idle));
        }
        if let Some(ttl) = args.session_ttl {
            self.service.session_ttl_ms = ms(ttl);
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let checked = self
            .allocator
            .check()
            .and_then(|()| self.service.check())
            .and_then(|()| self.server.check());
        checked.map_err(|error| Failure { status: exit::CONFIG, ..Failure::from(error) })
    }

    /// The addresses to listen on, tried in this order. Refused if one can be reached from other
    /// machines, unless told `insecure`.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let addresses = resolve(&self.listen, "--listen")?;
        if !self.insecure && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(Failure::usage(format!(
                "{} can be reached from other machines, and this server has neither encryption \
                 nor passwords: \
                 listen on 127.0.0.1, or say --insecure if the network is trusted",
                self.listen
            )));
        }
        Ok(addresses)
    }

    /// The addresses to listen on for other nodes, tried in this order, if clients are listened to
    /// on `clients`; `None` if there can be no other nodes. Refused if one can be reached from
    /// other machines, unless told `insecure`.
    pub(crate) fn peer_addresses(
        &self,
        clients: SocketAddr,
    ) -> Result<Option<Vec<SocketAddr>>, Failure> {
        if !crate::store::is_shared(&self.store) {
            return Ok(None);
        }
        if self.peer_listen.is_empty() {
            if !clients.ip().is_loopback() {
                return Err(Failure::usage(
                    "nodes that share a store must reach each other, and by default only those on \
                     this machine do: say with \
                     --peer-listen HOST:PORT where this node listens to other nodes \
                     (127.0.0.1:PORT if it is alone). Whoever reaches that \
                     port owns the cluster",
                ));
            }
            // Port 0 stays any that is free.
            let port = resolve(&self.listen, "--listen")?.first().map_or(0, SocketAddr::port);
            let port = match port {
                0 => 0,
                port => port.checked_add(1).ok_or_else(|| {
                    Failure::usage(
                        "there is no port after that of --listen: say with \
                        --peer-listen where to listen to other nodes",
                    )
                })?,
            };
            return Ok(Some(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))]));
        }
        let addresses = resolve(&self.peer_listen, "--peer-listen")?;
        if !self.insecure && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(Failure::usage(format!(
                "{} can be reached from other machines, and whoever reaches it owns the cluster: \
                 let only its nodes reach it, and \
                 say --insecure",
                self.peer_listen
            )));
        }
        Ok(Some(addresses))
    }

    /// Where clients reach a node that listens on `address`. Refused if several nodes share the
    /// store and no client could follow a table there.
    pub(crate) fn advertised(&self, address: SocketAddr) -> Result<String, Failure> {
        self.reached_at(&self.advertise, "--advertise", address)
    }

    /// Where other nodes reach a node that listens to them on `address`. Refused if none could.
    pub(crate) fn peer_advertised(&self, address: SocketAddr) -> Result<String, Failure> {
        self.reached_at(&self.peer_advertise, "--peer-advertise", address)
    }

    fn reached_at(&self, given: &str, flag: &str, address: SocketAddr) -> Result<String, Failure> {
        if !given.is_empty() {
            crate::channel::endpoint(given, std::time::Duration::ZERO).map_err(|_| {
                Failure::usage(format!(
                    "nobody can connect to {given:?}: write HOST:PORT in {flag}"
                ))
            })?;
            return Ok(given.to_owned());
        }
        if crate::store::is_shared(&self.store) && address.ip().is_unspecified() {
            return Err(Failure::usage(format!(
                "nodes that share a store must reach each other, and {address} is no address to \
                 connect to: \
                 say with {flag} HOST:PORT where this node is reached"
            )));
        }
        Ok(address.to_string())
    }

    /// The node's name.
    pub(crate) fn node(&self) -> Result<NodeName, Failure> {
        if !self.node.is_empty() {
            return Ok(NodeName::new(&self.node)?);
        }
        let uname = rustix::system::uname();
        let host = uname.nodename().to_string_lossy();
        Ok(NodeName::new(&*host).or_else(|_| NodeName::new("node-1"))?)
    }
}

fn resolve(address: &str, flag: &str) -> Result<Vec<SocketAddr>, Failure> {
    let address = address.strip_prefix("http://").unwrap_or(address);
    let resolved = address.to_socket_addrs().map_err(|error| {
        Failure::usage(format!(
            "cannot listen on {address:?}: {error}; write HOST:PORT in {flag}, for example \
                127.0.0.1:7654"
        ))
    })?;
    Ok(resolved.collect())
}

fn describe(error: &figment::Error, file: &str) -> String {
    let path = error.path.join(".");
    let from_env =
        error.metadata.as_ref().is_some_and(|metadata| metadata.name == Environment::NAME);
    let place = |key: &str| {
        if from_env {
            format!("the environment variable {PREFIX}{}", key.replace('.', "__").to_uppercase())
        } else {
            format!("the configuration file {file}")
        }
    };
    match &error.kind {
        Kind::UnknownField(name, expected) => {
            let full = if path.is_empty() || path.ends_with(name.as_str()) {
                path.clone()
            } else {
                format!("{path}.{name}")
            };
            let full = if full.is_empty() { name.clone() } else { full };
            format!(
                "unknown key {full:?} in {}: remove it, or use one of {}",
                place(&full),
                expected.join(", ")
            )
        }
        _ if path.is_empty() => format!("{}: {}; correct it", place(""), error.kind),
        kind => format!("the key {path:?} in {} is wrong: {kind}; correct it", place(&path)),
    }
}

/// `LOCKSERVICE_KEY` and `LOCKSERVICE_SECTION__KEY`, read as what the key's default is: a node may
/// be called `007`.
struct Environment {
    settings: Dict,
    /// The variables that were taken.
    names: Vec<String>,
}

impl Environment {
    const NAME: &str = "environment";

    /// Takes what is a setting. Empty means not set. Fails for a setting that is no text.
    fn new(
        defaults: &Figment,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Failure> {
        let (mut settings, mut names) = (Dict::new(), Vec::new());
        for (name, value) in env {
            let name = name.to_string_lossy();
            let Some(key) = name.strip_prefix(PREFIX).filter(|_| !NOT_SETTINGS.contains(&&*name))
            else {
                continue;
            };
            if value.is_empty() || is_service_link(key, &value.to_string_lossy()) {
                continue;
            }
            let Some(text) = value.to_str() else {
                let sentence = format!("the environment variable {name} is not UTF-8: correct it");
                return Err(Failure::new(exit::CONFIG, "config", sentence));
            };
            let key = key.to_lowercase().replace("__", ".");
            let value = match defaults.find_value(&key) {
                Ok(Value::Num(..)) => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
                Ok(Value::Bool(..)) => {
                    text.parse::<bool>().map_or_else(|_| text.into(), Value::from)
                }
                _ => text.into(),
            };
            insert(&mut settings, &key, value);
            names.push(name.into_owned());
        }
        names.sort_unstable();
        Ok(Self { settings, names })
    }
}

/// True for what Kubernetes sets in every pod about a service that is named `lockservice` or
/// `lockservice-…`.
///
/// Of a service `lockservice` those are, behind our prefix: `SERVICE_HOST`, `SERVICE_PORT`,
/// `SERVICE_PORT_GRPC`, `PORT` (a URL), `PORT_7654_TCP`, and `PORT_7654_TCP_ADDR`, `_PORT`,
/// `_PROTO`.
fn is_service_link(key: &str, value: &str) -> bool {
    let key = format!("_{key}");
    let of_a_port = key.rsplit_once("_PORT_").is_some_and(|(_, rest)| {
        let (number, protocol) = rest.split_once('_').unwrap_or((rest, ""));
        let protocol = protocol.split('_').next().unwrap_or_default();
        number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol)
    });
    of_a_port
        || key.ends_with("_SERVICE_HOST")
        || key.ends_with("_SERVICE_PORT")
        || key.contains("_SERVICE_PORT_")
        || (key.ends_with("_PORT") && value.contains("://"))
}

fn insert(dict: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            dict.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let entry = dict.entry(section.to_owned()).or_insert_with(|| Dict::new().into());
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named(Self::NAME)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.settings.clone())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn load(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, Failure> {
        let cli =
            crate::cli::args::Cli::try_parse_from(["lockservice", "serve"].iter().chain(flags))
                .unwrap();
        let crate::cli::args::Command::Serve(args) = cli.command else { panic!("serve") };
        load_os(&args, env.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn load_os(
        args: &ServeArgs,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Failure> {
        Config::load(args, env).map(|(config, _)| config)
    }

    #[test]
    fn where_the_settings_came_from_is_told_without_their_values() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_path_buf();
        let args = ServeArgs {
            config: Some(path.clone()),
            store: Some("postgres://me:secret@h/d".to_owned()),
            insecure: true,
            ..ServeArgs::default()
        };
        let env = [
            ("LOCKSERVICE_NODE", "a"),
            ("LOCKSERVICE_LISTEN", ""),
            ("LOCKSERVICE_ADVERTISE", "h:1"),
            ("HOME", "/"),
        ];
        let env = env.into_iter().map(|(name, value)| (name.into(), value.into()));
        let (_, origin) = Config::load(&args, env).unwrap();
        let expected = format!(
            "the configuration file {}, the environment (LOCKSERVICE_ADVERTISE, \
                LOCKSERVICE_NODE), flags (--store, --config, --insecure)",
            path.display()
        );
        assert_eq!(origin.to_string(), expected);
        let (_, origin) = Config::load(&ServeArgs::default(), std::iter::empty()).unwrap();
        assert_eq!(origin.to_string(), "the defaults");
    }

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "listen = \"127.0.0.1:1\"\nnode = \"f\"\nstore = \"memory:\"\n",
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let config = load(
            &["--config", path, "--listen", "127.0.0.1:3"],
            &[
                ("LOCKSERVICE_LISTEN", "127.0.0.1:2"),
                ("LOCKSERVICE_NODE", "007"),
                ("LOCKSERVICE_SERVICE__SESSIONS_MAX", "9"),
            ],
        )
        .unwrap();
        assert_eq!(
            (config.listen.as_str(), config.node.as_str(), config.store.as_str()),
            ("127.0.0.1:3", "007", "memory:")
        );
        assert_eq!(config.service.sessions_max, 9);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, key) in
            [("lisen = \"x\"\n", "lisen"), ("[service]\nsession_max = 3\n", "session_max")]
        {
            std::fs::write(file.path(), text).unwrap();
            let failure = load(&["--config", file.path().to_str().unwrap()], &[]).unwrap_err();
            assert_eq!(failure.status, exit::CONFIG);
            assert!(failure.sentence.contains(key), "{}", failure.sentence);
        }
        let failure = load(&[], &[("LOCKSERVICE_LISEN", "x")]).unwrap_err();
        assert!(failure.sentence.contains("LOCKSERVICE_LISEN"), "{}", failure.sentence);
        assert!(load(&[], &[("LOCKSERVICE_TOKEN", "7"), ("LOCKSERVICE_TABLE", "t")]).is_ok());
    }

    #[test]
    fn what_kubernetes_sets_about_a_service_of_our_name_is_no_setting() {
        let links = [
            ("LOCKSERVICE_SERVICE_HOST", "10.0.0.11"),
            ("LOCKSERVICE_SERVICE_PORT", "7654"),
            ("LOCKSERVICE_SERVICE_PORT_GRPC", "7654"),
            ("LOCKSERVICE_PORT", "tcp://10.0.0.11:7654"),
            ("LOCKSERVICE_PORT_7654_TCP", "tcp://10.0.0.11:7654"),
            ("LOCKSERVICE_PORT_7654_TCP_PROTO", "tcp"),
            ("LOCKSERVICE_PORT_7654_TCP_PORT", "7654"),
            ("LOCKSERVICE_PORT_7654_TCP_ADDR", "10.0.0.11"),
            ("LOCKSERVICE_NODE_SERVICE_HOST", "10.0.0.12"),
            ("LOCKSERVICE_NODE_PORT_7654_TCP_ADDR", "10.0.0.12"),
        ];
        assert_eq!(load(&[], &links).unwrap(), Config::default());
        for wrong in [
            ("LOCKSERVICE_PORT", "7655"),
            ("LOCKSERVICE_SERVICE_SESSIONS_MAX", "9"),
            ("LOCKSERVICE_STORE_PORT", "1"),
        ] {
            let refused = load(&[], &[wrong]).unwrap_err();
            assert!(
                refused.status == exit::CONFIG && refused.sentence.contains(wrong.0),
                "{}",
                refused.sentence
            );
        }
    }

    #[test]
    fn an_environment_that_is_not_utf_8_is_read_and_only_a_setting_of_ours_must_be_text() {
        use std::os::unix::ffi::OsStringExt as _;
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let args = ServeArgs::default();
        let foreign = [
            (bytes(b"OTHER"), bytes(b"\xff")),
            (bytes(b"\xff"), bytes(b"x")),
            (bytes(b"LOCKSERVICE_KEYS"), bytes(b"\xff")),
        ];
        assert_eq!(load_os(&args, foreign.into_iter()).unwrap(), Config::default());
        let ours = [(bytes(b"LOCKSERVICE_NODE"), bytes(b"\xff"))];
        let refused = load_os(&args, ours.into_iter()).unwrap_err();
        assert!(
            refused.status == exit::CONFIG && refused.sentence.contains("LOCKSERVICE_NODE"),
            "{}",
            refused.sentence
        );
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let empty = [
            ("LOCKSERVICE_STORE", ""),
            ("LOCKSERVICE_INSECURE", ""),
            ("LOCKSERVICE_SERVICE__SESSIONS_MAX", ""),
        ];
        assert_eq!(load(&[], &empty).unwrap(), Config::default());
    }

    #[test]
    fn a_node_of_a_shared_store_must_say_where_it_is_reached() {
        let everywhere: SocketAddr = "0.0.0.0:7".parse().unwrap();
        let shared = ["--store", "postgres://h/d"];
        let refused = load(&shared, &[]).unwrap().advertised(everywhere).unwrap_err();
        assert!(
            refused.status == exit::USAGE && refused.sentence.contains("--advertise"),
            "{}",
            refused.sentence
        );
        assert_eq!(
            load(&shared, &[("LOCKSERVICE_ADVERTISE", "h:7")])
                .unwrap()
                .advertised(everywhere)
                .unwrap(),
            "h:7"
        );
        assert_eq!(
            load(&shared, &[]).unwrap().advertised("127.0.0.1:7".parse().unwrap()).unwrap(),
            "127.0.0.1:7"
        );
        assert_eq!(
            load(&[], &[]).unwrap().advertised(everywhere).unwrap(),
            "0.0.0.0:7",
            "nobody else is there"
        );
        assert!(load(&["--advertise", "a b"], &[]).unwrap().advertised(everywhere).is_err());
    }

    #[test]
    fn other_nodes_are_listened_to_on_loopback_beside_the_clients_or_where_one_is_told() {
        let local: SocketAddr = "127.0.0.1:9000".parse().unwrap();
        let peers = |flags: &[&str], clients| load(flags, &[]).unwrap().peer_addresses(clients);
        let shared = ["--store", "postgres://h/d", "--listen", "127.0.0.1:9000"];
        assert_eq!(peers(&shared, local).unwrap().unwrap(), ["127.0.0.1:9001".parse().unwrap()]);
        let free = ["--store", "postgres://h/d", "--listen", "127.0.0.1:0"];
        assert_eq!(peers(&free, local).unwrap().unwrap(), ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(
            peers(&["--peer-listen", "127.0.0.1:9"], local).unwrap(),
            None,
            "a file has no other nodes"
        );
        let told = [&shared[..], &["--peer-listen", "127.0.0.1:9"]].concat();
        assert_eq!(peers(&told, local).unwrap().unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        let last = ["--store", "postgres://h/d", "--listen", "127.0.0.1:65535"];
        assert!(peers(&last, local).unwrap_err().sentence.contains("--peer-listen"));
        let open = [&shared[..], &["--peer-listen", "0.0.0.0:9"]].concat();
        assert!(peers(&open, local).unwrap_err().sentence.contains("--insecure"));
        assert!(peers(&[&open[..], &["--insecure"]].concat(), local).is_ok());
        // Who listens to clients of other machines has nodes there, too.
        let everywhere = "0.0.0.0:9000".parse().unwrap();
        assert!(peers(&shared, everywhere).unwrap_err().sentence.contains("--peer-listen"));
        assert!(peers(&told, everywhere).is_ok());
    }

    #[test]
    fn an_address_that_others_can_reach_is_refused_unless_told_insecure() {
        assert_eq!(
            load(&["--listen", "0.0.0.0:0"], &[]).unwrap().addresses().unwrap_err().status,
            exit::USAGE
        );
        assert!(load(&["--listen", "0.0.0.0:0", "--insecure"], &[]).unwrap().addresses().is_ok());
        assert!(load(&["--listen", "nonsense"], &[]).unwrap().addresses().is_err());
    }
}
