//! The settings of a server: one TOML file, the environment, flags, in rising priority.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Config`]: the settings, merged |
//! | `environment` | settings in environment variables |
//! | `addresses` | the addresses of a node |
//! | `flags` | the flags of `serve`, which go before everything else |
//! | `lease` | the default of the lease, which depends on the store |
//! | `identities` | [`IdentityFiles`]: who may do what, read again when it changes |
//! | `table_limits` | [`LimitFile`]: limits of tables, read again when they change |
//! | `origin` | [`Origin`]: the sources of the settings |

mod addresses;
mod environment;
mod flags;
mod identities;
mod lease;
mod origin;
mod table_limits;

use std::ffi::OsString;
use std::path::PathBuf;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use lockservice_core::allocator::AllocatorSettings;
use lockservice_core::service::ServiceSettings;
use lockservice_core::{Error, NodeName};
use serde::{Deserialize, Serialize};

use self::environment::Environment;
pub(crate) use self::identities::IdentityFiles;
pub(crate) use self::origin::Origin;
pub(crate) use self::table_limits::LimitFile;
use self::table_limits::{LimitSettings, table_limits};
use super::args::ServeArgs;
use super::exit::{self, Failure};
use super::log::{self, LogFormat};
use crate::channel::Credentials;
use crate::server::{IdentitySettings, ServerSettings, TlsSettings};
use crate::store::StoreUrl;

const PREFIX: &str = "LOCKSERVICE_";

/// Settings of `serve`. The sections' keys end in their units.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Address to listen on, HOST:PORT. Default `127.0.0.1:7654`.
    pub(crate) listen: String,
    /// The address at which clients reach this node, HOST:PORT. Default (empty): the address it
    /// listens on.
    pub(crate) advertise: String,
    /// Address to listen on for other nodes, HOST:PORT; not used with a store that one node has to
    /// itself. Default (empty): 127.0.0.1, at the port after that of `listen`.
    pub(crate) peer_listen: String,
    /// The address at which other nodes reach this one, HOST:PORT. Default (empty): the address it
    /// listens on for them.
    pub(crate) peer_advertise: String,
    /// Address for metrics and health over HTTP, HOST:PORT. Default (empty): none.
    pub(crate) metrics: String,
    /// The URL of the collector that gets traces of lock calls (OTLP over gRPC). Default (empty):
    /// none.
    pub(crate) traces: String,
    /// The store of the binds: `file:PATH`, `rocks:PATH`, `postgres://…`, `redis://…` or
    /// `memory:`. Default `file:./lockservice.db`.
    pub(crate) store: String,
    /// The node's name, the same over its restarts. Default (empty): the machine's name.
    pub(crate) node: String,
    /// The folder of the file by which the next process of this node replaces this one at once if
    /// it crashes; only for stores that nodes share. Default (empty): `lockservice` in
    /// `$XDG_STATE_HOME`, or in `~/.local/state`.
    pub(crate) state_dir: PathBuf,
    /// Serve addresses other than loopback without encryption and passwords. Default false.
    pub(crate) insecure: bool,
    /// Stop for good, as the last stop of a node: tell the sessions to stop their work, and wait
    /// for them. Default false: what is held stays held over a restart.
    pub(crate) drain_stop: bool,
    /// The certificates. Default: none, so everything is in plain text.
    pub(crate) tls: TlsSettings,
    /// The token with which this node calls other nodes, in a file. Default (empty): none.
    pub(crate) peer_token_file: PathBuf,
    /// A TOML file with more identities. Default (empty): none.
    pub(crate) identity_file: PathBuf,
    /// Who may do what. Default: none, so that every caller may do everything.
    pub(crate) identity: Vec<IdentitySettings>,
    /// What is logged, as in `RUST_LOG`: `warn`, `info`, `lockservice=debug`. Default (empty): what
    /// `RUST_LOG` says, or `warn`. Read again on SIGHUP.
    pub(crate) log: String,
    /// The format of the log. Default: JSON with `--json`, else text.
    pub(crate) log_format: Option<LogFormat>,
    /// How long a start may wait for the store and for a leader, in milliseconds; 0: without an
    /// end. Default 0.
    pub(crate) start_ms_max: u64,
    /// Limits of tables. Default: none. Read again when the file has changed, and on SIGHUP.
    pub(crate) limit: Vec<LimitSettings>,
    /// Limits of the gRPC server.
    pub(crate) server: ServerSettings,
    /// Limits and defaults of the lock service.
    pub(crate) service: ServiceSettings,
    /// Limits and constants of the allocator. The default of the lease is 15 s, and 5 s with a
    /// store that nodes share.
    pub(crate) allocator: AllocatorSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7654".to_owned(),
            advertise: String::new(),
            peer_listen: String::new(),
            peer_advertise: String::new(),
            metrics: String::new(),
            traces: String::new(),
            store: "file:./lockservice.db".to_owned(),
            node: String::new(),
            state_dir: PathBuf::new(),
            insecure: false,
            drain_stop: false,
            tls: TlsSettings::default(),
            peer_token_file: PathBuf::new(),
            identity_file: PathBuf::new(),
            identity: Vec::new(),
            log: String::new(),
            log_format: None,
            start_ms_max: 0,
            limit: Vec::new(),
            server: ServerSettings::default(),
            service: ServiceSettings::default(),
            // As the default of `store` needs it.
            allocator: AllocatorSettings::for_exclusive_store(),
        }
    }
}

impl Config {
    /// Merges all settings, and returns their sources too. The error names the key and its source.
    pub(crate) fn load(
        args: &ServeArgs,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Origin), Failure> {
        let text = args.config.as_ref().map(|path| {
            std::fs::read_to_string(path).map_err(|error| {
                let file = path.display();
                failure(format!(
                    "cannot read the configuration file {file}: {error}; check --config and \
                        LOCKSERVICE_CONFIG"
                ))
            })
        });
        Self::merge(text.transpose()?.as_deref(), args, env)
    }

    /// As [`load`](Self::load); `text` is that of the file.
    pub(crate) fn merge(
        text: Option<&str>,
        args: &ServeArgs,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Origin), Failure> {
        let defaults = Figment::from(Serialized::defaults(Self::default()));
        let mut figment = defaults.clone();
        let file = args.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        if let Some(text) = text {
            figment = figment.merge(Toml::string(text));
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
            failure(all.join("; "))
        })?;
        if !lease::is_set(&figment, &defaults) {
            merged.lease_by_store(args.store.as_deref());
        }
        merged.apply(args);
        merged.check()?;
        Ok((merged, origin))
    }

    fn check(&self) -> Result<(), Failure> {
        let checked = self
            .allocator
            .check()
            .and_then(|()| self.service.check())
            .and_then(|()| self.server.check())
            .and_then(|()| self.tls.check())
            .and_then(|()| table_limits(&self.limit).map(drop));
        checked.map_err(misconfigured)?;
        log::filter(&self.log).map_err(misconfigured)?;
        if !cfg!(feature = "otel") && !self.traces.is_empty() {
            return Err(failure(
                "this program was built without the export of traces: build it with the feature \
                 otel, or leave the setting traces out"
                    .to_owned(),
            ));
        }
        if self.tls.client_cert_optional && !self.has_identities() {
            return Err(Failure::new(
                exit::CONFIG,
                "config",
                "tls.client_cert_optional lets in clients without a certificate, and there are no \
                 identities by whose tokens they could be known: add an [[identity]]",
            ));
        }
        Ok(())
    }

    /// True if only callers with an identity are served.
    pub(crate) fn has_identities(&self) -> bool {
        !self.identity.is_empty() || !self.identity_file.as_os_str().is_empty()
    }

    /// What the node trusts, and what it shows, when it connects to another one.
    pub(crate) fn peer_credentials(&self) -> Credentials {
        let mut credentials = Credentials::default();
        if !self.peer_token_file.as_os_str().is_empty() {
            credentials = credentials.token_file(&self.peer_token_file);
        }
        if self.tls.is_set() {
            credentials = credentials.certificate(&self.tls.cert, &self.tls.key);
        }
        match self.tls.peer_ca() {
            Some(ca) => credentials.ca(ca),
            None => credentials,
        }
    }

    /// The store, by its URL. Fails if the URL cannot be read.
    pub(crate) fn store_url(&self) -> Result<StoreUrl, Failure> {
        Ok(StoreUrl::parse(&self.store)?)
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

fn failure(sentence: String) -> Failure {
    Failure::new(exit::CONFIG, "config", sentence)
}

/// The failure for a setting, or a file of one, that cannot be used.
pub(crate) fn misconfigured(error: Error) -> Failure {
    Failure { status: exit::CONFIG, ..Failure::from(error) }
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

/// A configuration file.
///
/// # Panics
/// If a refusal is not one sentence or more.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_settings(input: &[u8]) {
    use clap::Parser as _;
    let Ok(text) = std::str::from_utf8(input) else { return };
    let cli = super::args::Cli::try_parse_from(["lockservice", "serve", "--config", "lock.toml"])
        .expect("these flags are right");
    let super::args::Command::Serve(args) = cli.command else { return };
    match Config::merge(Some(text), &args, std::iter::empty()) {
        Ok((config, _)) => {
            drop((config.store_url(), config.node()));
            let identities = identities::parse(text, std::path::Path::new("lock.toml"));
            drop(identities.and_then(|all| crate::server::Access::new(&all)));
        }
        Err(failure) => assert!(!failure.sentence.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    pub(super) fn load(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, Failure> {
        let cli =
            crate::cli::args::Cli::try_parse_from(["lockservice", "serve"].iter().chain(flags))
                .unwrap();
        let crate::cli::args::Command::Serve(args) = cli.command else { panic!("serve") };
        load_os(&args, env.iter().map(|(name, value)| (name.into(), value.into())))
    }

    pub(super) fn load_os(
        args: &ServeArgs,
        env: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Failure> {
        Config::load(args, env).map(|(config, _)| config)
    }

    #[test]
    fn the_sources_of_settings_are_named_without_their_values() {
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
}
