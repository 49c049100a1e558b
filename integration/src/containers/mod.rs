//! Real PostgreSQL 15 and Redis 7.0 in containers, and the faults that tests do to them.
//!
//! | file | noun |
//! |---|---|
//! | `container.rs, ports.rs` | a container, its probe, its faults; the ports that tests take |
//! | `postgres.rs, pgbouncer.rs` | PostgreSQL, and a pooler before it |
//! | `redis.rs` | one Redis server, or one with a replica |
//! | `sentinel.rs` | a group that Sentinel watches |
//! | `cluster.rs` | a Redis cluster |
//!
//! ```text
//! let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
//! let pool = PgPool::connect(postgres.url()).await?;
//! postgres.pause().await;    // connections hang        until  unpause()
//! postgres.kill().await;     // SIGKILL, nothing synced  until  start()
//! postgres.stop().await;     // a clean stop             until  start()
//! ```
//!
//! - A start returns `None` where there is no Docker or no image, and has said so
//!   ([`crate::skip`]); in CI it fails.
//! - A server is reached at 127.0.0.1 and at one port for its whole life, which is why `start`
//!   after `kill` or `stop` needs no new URL.
//! - Every wait is for a response of the server, and bounded. A step that cannot be done panics,
//!   with the server's log.
//! - The container is removed when its value is dropped, in a panic too. Drop it inside a tokio
//!   runtime.
//!
//! Docker must be on this machine: ports are published on 127.0.0.1 only.

mod cluster;
mod container;
mod pgbouncer;
mod ports;
mod postgres;
mod redis;
mod sentinel;

use std::process::Stdio;

use testcontainers::GenericImage;
use tokio::process::Command;

pub use self::cluster::{Cluster, ClusterOptions};
pub use self::container::Container;
pub use self::pgbouncer::PgBouncer;
pub use self::postgres::{Postgres, PostgresOptions};
pub use self::redis::{Redis, RedisOptions};
pub use self::sentinel::{Sentinel, SentinelOptions};
use crate::{skip, within};

/// The images. `integration/images/build` knows the same names.
#[derive(Clone, Copy, Debug)]
enum Program {
    Postgres,
    Redis,
}

impl Program {
    /// The official image's name and tag, then those of the image that is made where no registry
    /// responds.
    fn names(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Postgres => [("postgres", "15"), ("localhost/lockservice-test-postgres", "15")],
            Self::Redis => [("redis", "7.0"), ("localhost/lockservice-test-redis", "7.0")],
        }
    }

    /// The image to use; `None`, having said that a test is skipped, where there is none.
    ///
    /// # Panics
    /// If there is none, in CI.
    async fn image(self) -> Option<GenericImage> {
        if std::env::var_os("INTEGRATION_WITHOUT_CONTAINERS").is_some_and(|value| !value.is_empty())
        {
            skip("INTEGRATION_WITHOUT_CONTAINERS is set");
            return None;
        }
        for (name, tag) in self.names() {
            if docker(&["image", "inspect", &format!("{name}:{tag}")]).await {
                return Some(GenericImage::new(name, tag));
            }
        }
        skip(&format!(
            "Docker does not respond, or has no image of {self:?} (./integration/test sees to both)"
        ));
        None
    }
}

/// Runs `docker` with these arguments; true if it is there and succeeds.
async fn docker(arguments: &[&str]) -> bool {
    let status = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    within(&format!("docker {arguments:?}"), status).await.is_ok_and(|status| status.success())
}
