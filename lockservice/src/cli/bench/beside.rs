//! [`Beside`]: another system to measure beside.

use super::echo::Echo;
use super::etcd::{Etcd, EtcdUrl};
#[cfg(feature = "pg")]
use super::postgres::{Postgres, PostgresUrl};
#[cfg(feature = "redis")]
use super::redis::{Redis, RedisUrl};
use super::side::Side;
use super::tcp::Tcp;
use crate::cli::exit::Failure;

/// Another system to measure beside, parsed once.
#[allow(clippy::large_enum_variant, reason = "there are few, and they are moved once")]
pub(crate) enum Beside {
    /// A bare gRPC stream that sends back what it gets.
    Echo,
    /// The same over TCP alone.
    Tcp,
    /// An etcd.
    Etcd(EtcdUrl),
    /// A Redis.
    #[cfg(feature = "redis")]
    Redis(RedisUrl),
    /// A PostgreSQL.
    #[cfg(feature = "pg")]
    Postgres(PostgresUrl),
}

impl Beside {
    /// Parses one `--beside`. The error does not repeat the text, which may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        match text.split_once("://").map(|(scheme, _)| scheme) {
            None if text == "echo" => Ok(Self::Echo),
            None if text == "tcp" => Ok(Self::Tcp),
            Some("etcd") => Ok(Self::Etcd(EtcdUrl::parse(text)?)),
            #[cfg(feature = "redis")]
            Some("redis" | "rediss") => Ok(Self::Redis(RedisUrl::parse(text)?)),
            #[cfg(not(feature = "redis"))]
            Some("redis" | "rediss") => Err(not_built("redis", "Redis")),
            #[cfg(feature = "pg")]
            Some("postgres" | "postgresql") => Ok(Self::Postgres(PostgresUrl::parse(text)?)),
            #[cfg(not(feature = "pg"))]
            Some("postgres" | "postgresql") => Err(not_built("pg", "PostgreSQL")),
            _ => Err(Failure::usage(
                "--beside names nothing that is known: write echo, tcp, etcd://HOST, redis://HOST \
                 or postgres://USER@HOST/DATABASE",
            )),
        }
    }

    /// Connects.
    pub(super) async fn open(&self) -> Result<Box<dyn Side>, Failure> {
        Ok(match self {
            Self::Echo => Box::new(Echo::open().await?),
            Self::Tcp => Box::new(Tcp::open().await?),
            Self::Etcd(url) => Box::new(Etcd::open(url).await?),
            #[cfg(feature = "redis")]
            Self::Redis(url) => Box::new(Redis::open(url).await?),
            #[cfg(feature = "pg")]
            Self::Postgres(url) => Box::new(Postgres::open(url).await?),
        })
    }
}

#[cfg(not(all(feature = "pg", feature = "redis")))]
fn not_built(feature: &str, server: &str) -> Failure {
    Failure::usage(format!(
        "this build lacks the feature {feature}, which a measurement beside {server} needs: build \
         it with `--features {feature}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit;

    #[test]
    fn what_cannot_be_measured_beside_is_refused_with_what_to_write_and_no_password() {
        for text in [
            "",
            "redis",
            "postgres",
            "etcd",
            "echo://x",
            "ftp://me:hidden@h",
            "redis-cluster://:hidden@h",
        ] {
            let refused = Beside::parse(text).err().expect(text);
            assert_eq!(refused.status, exit::USAGE);
            assert!(
                refused.sentence.contains("redis://HOST") && !refused.sentence.contains("hidden"),
                "{}",
                refused.sentence
            );
        }
        assert!(Beside::parse("echo").is_ok() && Beside::parse("tcp").is_ok());
    }

    #[test]
    fn a_server_that_this_build_does_not_know_names_the_feature_that_it_needs() {
        let servers = [
            ("redis://:hidden@h", "redis", cfg!(feature = "redis")),
            ("postgres://me:hidden@h/d", "pg", cfg!(feature = "pg")),
        ];
        for (url, feature, built) in servers {
            match Beside::parse(url) {
                Ok(_) => assert!(built, "{feature}"),
                Err(refused) => {
                    assert!(!built && refused.sentence.contains(&format!("--features {feature}")));
                    assert!(!refused.sentence.contains("hidden"), "{}", refused.sentence);
                }
            }
        }
    }
}
