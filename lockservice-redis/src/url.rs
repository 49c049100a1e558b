//! Reading a [`RedisConfig`] from a URL. Messages never repeat the URL: it may hold a password.

use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};

use crate::config::{Address, RedisConfig, RedisTls, Servers};

const SYNTAX: &str = "write redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?OPTIONS], \
     redis-sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/MASTER[/DATABASE][?OPTIONS] or \
     redis-cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]…][?OPTIONS], with rediss for TLS";

impl RedisConfig {
    /// Reads a URL.
    ///
    /// ```text
    /// redis://[USER:PASSWORD@]HOST[:6379][/DATABASE][?OPTIONS]
    /// redis-sentinel://[USER:PASSWORD@]HOST[:26379][,HOST[:26379]…]/MASTER[/DATABASE][?OPTIONS]
    /// redis-cluster://[USER:PASSWORD@]HOST[:6379][,HOST[:6379]…][?OPTIONS]
    /// ```
    ///
    /// `rediss`, `rediss-sentinel` and `rediss-cluster` are the same over TLS. User, password and
    /// values of options may be percent-encoded; a user may be left out (`:PASSWORD@`). An IPv6
    /// address stands in brackets.
    ///
    /// | option | sets |
    /// |---|---|
    /// | `name` | [`name`](Self::name) |
    /// | `wait` | [`replicas`](Self::replicas) |
    /// | `wait_timeout_ms`, `connect_timeout_ms`, `response_timeout_ms`, `call_timeout_ms`, `load_timeout_ms` | the time-outs |
    /// | `sentinel_username`, `sentinel_password` | the Sentinels' credentials |
    /// | `ca`, `cert`, `key` | paths of PEM files for TLS: authorities, the client's certificate and its key |
    ///
    /// # Errors
    /// `InvalidArgument` for anything else, `StoreUnusable` for a file of certificates that cannot
    /// be read.
    pub fn from_url(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(syntax)?;
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let mut config = Self::default();
        if let Some(credentials) = credentials {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            config.username = Some(decoded(user)?).filter(|user| !user.is_empty());
            config.password = Some(decoded(password)?).filter(|password| !password.is_empty());
        }
        let (kind, tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (kind, true),
            None => (scheme.strip_prefix("redis").ok_or_else(syntax)?, false),
        };
        config.tls = tls.then(RedisTls::default);
        let database = match kind {
            "" => {
                let [address] =
                    <[Address; 1]>::try_from(addresses(hosts, 6379)?).map_err(|_| syntax())?;
                config.servers = Servers::Single(address);
                path
            }
            "-sentinel" => {
                let (master, database) = path.split_once('/').unwrap_or((path, ""));
                let master = decoded(master)?;
                if master.is_empty() {
                    return Err(invalid(
                        "the URL lacks the master's name: redis-sentinel://HOST:26379/MASTER",
                    ));
                }
                config.servers = Servers::Sentinel { sentinels: addresses(hosts, 26379)?, master };
                database
            }
            "-cluster" => {
                config.servers = Servers::Cluster(addresses(hosts, 6379)?);
                path
            }
            _ => return Err(syntax()),
        };
        if !database.is_empty() {
            config.database = number("the database", database)?;
        }
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            config.set(name, &decoded(value)?)?;
        }
        config.validate()?;
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "name" => value.clone_into(&mut self.name),
            "wait" => self.replicas = number("wait", value)?,
            "wait_timeout_ms" => self.wait_timeout = millis(name, value)?,
            "connect_timeout_ms" => self.connect_timeout = millis(name, value)?,
            "response_timeout_ms" => self.response_timeout = millis(name, value)?,
            "call_timeout_ms" => self.call_timeout = millis(name, value)?,
            "load_timeout_ms" => self.load_timeout = millis(name, value)?,
            "sentinel_username" => self.sentinel_username = Some(value.to_owned()),
            "sentinel_password" => self.sentinel_password = Some(value.to_owned()),
            "ca" | "cert" | "key" => {
                let tls = self.tls.as_mut().ok_or_else(|| {
                    invalid("this option is for TLS: write rediss:// instead of redis://")
                        .with("option", name)
                })?;
                let pem = file(value)?;
                match name {
                    "ca" => tls.authorities = Some(pem),
                    "cert" => tls.identity.get_or_insert_default().0 = pem,
                    _ => tls.identity.get_or_insert_default().1 = pem,
                }
            }
            _ => {
                return Err(invalid(
                    "the Redis URL has an unknown option: use name, wait, wait_timeout_ms, \
                     connect_timeout_ms, \
                     response_timeout_ms, call_timeout_ms, load_timeout_ms, sentinel_username, \
                     sentinel_password, ca, \
                     cert, key",
                )
                .with("option", name));
            }
        }
        Ok(())
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

fn syntax() -> Error {
    invalid(&format!("the Redis URL is malformed: {SYNTAX}"))
}

fn addresses(hosts: &str, port: u16) -> Result<Vec<Address>> {
    hosts.split(',').map(|host| address(host, port)).collect()
}

fn address(text: &str, default_port: u16) -> Result<Address> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or_else(syntax)?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':').ok_or_else(syntax)?)
                },
            )
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(syntax());
    }
    let port = port.map_or(Ok(default_port), |port| number("the port", port))?;
    Ok(Address::new(host, port))
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| invalid("a number in the Redis URL is none, or too big").with("of", what))
}

fn millis(what: &str, text: &str) -> Result<Duration> {
    number(what, text).map(Duration::from_millis)
}

fn file(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        Error::new(
            ErrorKind::StoreUnusable,
            "cannot read a file of certificates that the Redis URL names",
        )
        .with("path", path)
        .with_source(error)
    })
}

fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .ok_or_else(syntax)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| syntax())?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| syntax())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_url_is_read_and_described_without_its_secrets() {
        for (url, described) in [
            ("redis://h", "redis://h:6379/0?name=default"),
            ("redis://u:s%40crEt@h:1/3?name=x", "redis://h:1/3?name=x"),
            ("rediss://:s@crEt@[::1]:2", "rediss://[::1]:2/0?name=default"),
            (
                "redis-sentinel://:s@crEt@a,b:7/main",
                "redis-sentinel://a:26379,b:7/main/0?name=default",
            ),
            (
                "rediss-sentinel://a/main/5?sentinel_password=s@crEt&wait=2",
                "rediss-sentinel://a:26379/main/5?name=default",
            ),
            ("redis-cluster://a,b:7?wait_timeout_ms=9", "redis-cluster://a:6379,b:7?name=default"),
        ] {
            let config = RedisConfig::from_url(url).expect(url);
            assert_eq!(config.describe(), described);
            assert!(!format!("{config:?}").contains("crEt"), "{config:?}");
        }
        let config = RedisConfig::from_url(
            "redis://u:s%40crEt@h?wait=2&wait_timeout_ms=9&call_timeout_ms=10",
        )
        .expect("a URL");
        assert_eq!(
            (config.username.as_deref(), config.password.as_deref()),
            (Some("u"), Some("s@crEt"))
        );
        assert_eq!(
            (config.replicas, config.wait_timeout.as_millis(), config.call_timeout.as_millis()),
            (2, 9, 10)
        );
    }

    #[test]
    fn a_wrong_url_is_refused_and_not_repeated() {
        for url in [
            "redis:h",
            "redis://",
            "redis://crEt@",
            "redis://:crEt@h:x",
            "redis://:crEt@h:99999",
            "redis://:crEt@a,b",
            "redis://:crEt@h/x",
            "redis-cluster://:crEt@h/1",
            "redis-sentinel://:crEt@h",
            "redis-other://:crEt@h",
            "redis://:crEt@h?nme=x",
            "redis://:crEt@h?name=",
            "redis://:crEt@h?name=a{b}",
            "redis://:crEt%@h",
            "redis://:crEt@h?ca=/x",
            "redis://:crEt@h?call_timeout_ms=0",
            "redis://:crEt@h?wait=-1",
            "http://:crEt@h",
        ] {
            let error = RedisConfig::from_url(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url}");
            assert!(!format!("{error:?}").contains("crEt"), "{error:?}");
        }
    }
}
