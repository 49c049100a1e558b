//! Settings in environment variables.

use std::ffi::OsString;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::PREFIX;
use crate::cli::exit::{self, Failure};

/// Environment variables with our prefix that are not settings of a server.
const NOT_SETTINGS: [&str; 14] = [
    "LOCKSERVICE_SERVER",
    "LOCKSERVICE_CA",
    "LOCKSERVICE_CERT",
    "LOCKSERVICE_CERT_KEY",
    "LOCKSERVICE_TOKEN_FILE",
    "LOCKSERVICE_AUTH_TOKEN",
    "LOCKSERVICE_BESIDE",
    "LOCKSERVICE_CONFIG",
    "LOCKSERVICE_TOKEN",
    "LOCKSERVICE_TABLE",
    "LOCKSERVICE_GROUP",
    "LOCKSERVICE_KEYS",
    "LOCKSERVICE_HELD",
    "LOCKSERVICE_CACHE",
];

/// `LOCKSERVICE_KEY` and `LOCKSERVICE_SECTION__KEY`, read as the type of the key's default: a node
/// may be called `007`.
pub(super) struct Environment {
    settings: Dict,
    /// The variables that were taken.
    pub(super) names: Vec<String>,
}

impl Environment {
    pub(super) const NAME: &str = "environment";

    /// Takes the variables that are settings. An empty variable counts as not set. Fails for a
    /// setting that is no text.
    pub(super) fn new(
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

/// True for the variables that Kubernetes sets in every pod for a service named `lockservice` or
/// `lockservice-…`.
///
/// For a service `lockservice` they are, behind our prefix: `SERVICE_HOST`, `SERVICE_PORT`,
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
    use super::super::Config;
    use super::super::tests::{load, load_os};
    use super::*;
    use crate::cli::args::ServeArgs;

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
}
