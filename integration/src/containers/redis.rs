//! One Redis 7.0, and what groups of them share.

use std::ops::Deref;

use redis::RedisResult;
use testcontainers::core::IntoContainerPort as _;
use testcontainers::{GenericImage, ImageExt as _};

use super::Program;
use super::container::{Container, Parts, Probe};
use super::ports::Port;

pub(super) const DATA: &str = "/data";
const PORT: u16 = 6379;

/// The settings of a [`Redis`].
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Arguments of `redis-server`, such as `["--appendonly", "yes"]`. Without any it keeps Redis'
    /// defaults: snapshots now and then and at a clean stop, nothing else on disk.
    pub arguments: Vec<String>,
    /// Keep the data in memory, with this much room in bytes, so that [`Container::fill_disk`] can
    /// be used. Such data is lost when the container stops.
    pub data_bytes_max: Option<u64>,
}

impl RedisOptions {
    /// Every write is on disk before it is acknowledged.
    pub fn durable() -> Self {
        Self {
            arguments: ["--appendonly", "yes", "--appendfsync", "always"].map(String::from).into(),
            data_bytes_max: None,
        }
    }
}

/// A Redis 7.0 in a container, empty.
#[derive(Debug)]
pub struct Redis {
    container: Container,
    url: String,
}

impl Redis {
    /// Starts one; returns when it responds. `None`, having said so, where there is no Docker or no
    /// image.
    ///
    /// # Panics
    /// If it does not come up; in CI also where there is no Docker or no image.
    pub async fn start(options: RedisOptions) -> Option<Self> {
        let image = Program::Redis.image().await?.with_exposed_port(PORT.tcp());
        let port = Port::reserve();
        let url = url(port.number());
        let request =
            image.with_cmd(["redis-server".to_owned()].into_iter().chain(options.arguments));
        let published = vec![(port.number(), PORT)];
        let parts = Parts {
            published,
            network_of: None,
            data: DATA,
            data_bytes_max: options.data_bytes_max,
        };
        let container = Container::run(request, parts, vec![port], Probe::Redis(url.clone())).await;
        Some(Self { container, url })
    }

    /// Its URL, the same for its whole life: `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Deref for Redis {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

/// The URL of a Redis on this machine.
pub(super) fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/")
}

/// The response of the Redis at `url` to one command.
pub(super) async fn query<T: redis::FromRedisValue>(
    url: &str,
    command: &redis::Cmd,
) -> RedisResult<T> {
    let client = redis::Client::open(url)?;
    // The driver's futures are large, and those of its callers would be.
    let mut connection = Box::pin(client.get_multiplexed_async_connection()).await?;
    Box::pin(command.query_async(&mut connection)).await
}

/// One command to the server. One that still loads its data responds with an error.
pub(super) async fn ping(url: &str) -> RedisResult<()> {
    query::<String>(url, &redis::cmd("PING")).await.map(drop)
}

/// Several Redis in one network, in which each is at 127.0.0.1 and at the same port as on this
/// machine: so they find each other by the addresses that clients get. The network is that of a
/// container which does nothing, so that any of the others may die.
#[derive(Debug)]
pub(super) struct Network {
    image: GenericImage,
    container: Container,
}

impl Network {
    /// Makes one that publishes `ports`.
    pub(super) async fn start(ports: Vec<Port>) -> Option<Self> {
        let image = Program::Redis.image().await?;
        let published: Vec<_> = ports.iter().map(|port| (port.number(), port.number())).collect();
        let exposed = published
            .iter()
            .fold(image.clone(), |image, (port, _)| image.with_exposed_port(port.tcp()));
        let request = exposed.with_entrypoint("sleep").with_cmd(["infinity"]);
        let parts = Parts { published, data: DATA, ..Parts::default() };
        Some(Self { image, container: Container::run(request, parts, ports, Probe::None).await })
    }

    /// Starts `redis-server` in it, at `port`, with `arguments`; returns when it responds.
    pub(super) async fn server(
        &self,
        port: u16,
        arguments: impl IntoIterator<Item = String>,
    ) -> Container {
        let own = ["redis-server", "--port", &port.to_string()].map(String::from);
        self.run(port, self.image.clone().with_cmd(own.into_iter().chain(arguments))).await
    }

    /// Starts `redis-sentinel` in it, at `port`, with this configuration; returns when it responds.
    pub(super) async fn sentinel(&self, port: u16, configuration: String) -> Container {
        let request =
            self.image.clone().with_cmd(["redis-sentinel", "/data/sentinel.conf"]).with_copy_to(
                "/data/sentinel.conf",
                format!("port {port}\n{configuration}").into_bytes(),
            );
        self.run(port, request).await
    }

    async fn run(
        &self,
        port: u16,
        request: testcontainers::ContainerRequest<GenericImage>,
    ) -> Container {
        let parts = Parts {
            network_of: Some(self.container.id().to_owned()),
            data: DATA,
            ..Parts::default()
        };
        Container::run(request, parts, Vec::new(), Probe::Redis(url(port))).await
    }
}
