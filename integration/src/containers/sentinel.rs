//! A Redis master with replicas and sentinels that replace it.

use std::time::Duration;

use super::container::Container;
use super::ports::Port;
use super::redis::{Network, query, url};
use crate::within;

/// The settings of a [`Sentinel`].
#[derive(Clone, Debug)]
pub struct SentinelOptions {
    /// Copies of the master.
    pub replicas: usize,
    /// Sentinels; more than half of them must agree that the master is down.
    pub sentinels: usize,
    /// The master counts as down when it has not responded for so long.
    pub down_after: Duration,
    /// Arguments of each `redis-server`.
    pub arguments: Vec<String>,
}

impl Default for SentinelOptions {
    fn default() -> Self {
        Self {
            replicas: 1,
            sentinels: 3,
            down_after: Duration::from_secs(1),
            arguments: Vec::new(),
        }
    }
}

/// A Redis master, its replicas, and sentinels, each in a container of its own.
#[derive(Debug)]
pub struct Sentinel {
    servers: Vec<(u16, Container)>,
    sentinels: Vec<(u16, Container)>,
    // Last, for it is dropped last: the others live in it.
    _network: Network,
}

impl Sentinel {
    /// The name under which the sentinels know the master.
    pub const MASTER_NAME: &str = "lockservice";

    /// Starts them; returns when the replicas are in step and every sentinel knows them and the
    /// other sentinels. `None`, having said so, where there is no Docker or no image.
    ///
    /// # Panics
    /// If they do not come up; in CI also where there is no Docker or no image.
    pub async fn start(options: SentinelOptions) -> Option<Self> {
        let ports: Vec<Port> =
            (0..1 + options.replicas + options.sentinels).map(|_| Port::reserve()).collect();
        let values: Vec<u16> = ports.iter().map(Port::number).collect();
        let (of_servers, of_sentinels) = values.split_at(1 + options.replicas);
        let network = Network::start(ports).await?;
        let master = of_servers[0];
        let mut servers = Vec::new();
        for &port in of_servers {
            let mut arguments =
                ["--replica-announce-ip", "127.0.0.1", "--repl-diskless-sync-delay", "0"]
                    .map(String::from)
                    .to_vec();
            if port != master {
                arguments.extend(["--replicaof".into(), "127.0.0.1".into(), master.to_string()]);
            }
            servers.push((
                port,
                network.server(port, arguments.into_iter().chain(options.arguments.clone())).await,
            ));
        }
        let name = Self::MASTER_NAME;
        let configuration = format!(
            "sentinel monitor {name} 127.0.0.1 {master} {}\nsentinel down-after-milliseconds \
                {name} {}\nsentinel failover-timeout {name} 5000\n",
            options.sentinels / 2 + 1,
            options.down_after.as_millis(),
        );
        let mut sentinels = Vec::new();
        for &port in of_sentinels {
            sentinels.push((port, network.sentinel(port, configuration.clone()).await));
        }
        let group = Self { servers, sentinels, _network: network };
        group.wait_until_complete(options.replicas, options.sentinels).await;
        Some(group)
    }

    /// The sentinels' URLs: `redis://127.0.0.1:PORT/`.
    pub fn sentinel_urls(&self) -> Vec<String> {
        self.sentinels.iter().map(|(port, _)| url(*port)).collect()
    }

    /// The sentinels, in the order of their URLs.
    pub fn sentinels(&self) -> impl Iterator<Item = &Container> {
        self.sentinels.iter().map(|(_, container)| container)
    }

    /// The servers' URLs; the first began as master.
    pub fn server_urls(&self) -> Vec<String> {
        self.servers.iter().map(|(port, _)| url(*port)).collect()
    }

    /// The server at this place among the URLs.
    pub fn server(&self, place: usize) -> &Container {
        &self.servers[place].1
    }

    /// The place of the server that the sentinel at place `sentinel` takes for the master.
    ///
    /// # Panics
    /// If that sentinel does not respond.
    pub async fn master(&self, sentinel: usize) -> usize {
        let command =
            redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(Self::MASTER_NAME).to_owned();
        let response = within(
            "a sentinel's response",
            query::<(String, u16)>(&url(self.sentinels[sentinel].0), &command),
        )
        .await;
        let (host, port) = response.expect("a sentinel that lives responds");
        assert_eq!(host, "127.0.0.1", "clients get an address that they can reach");
        self.servers.iter().position(|(own, _)| *own == port).expect("one of the servers")
    }

    /// Waits until every sentinel has seen a master other than the one at `place`, and that one
    /// says itself that it is; returns its place.
    pub async fn wait_for_another_master(&self, place: usize) -> usize {
        within("a replica becomes master", async {
            loop {
                let mut seen = Vec::new();
                for sentinel in 0..self.sentinels.len() {
                    seen.push(self.master(sentinel).await);
                }
                let new = seen[0];
                if new != place && seen.iter().all(|each| *each == new) {
                    let role =
                        query::<redis::Value>(&url(self.servers[new].0), &redis::cmd("ROLE")).await;
                    if format!("{role:?}").contains("master") {
                        return new;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }

    /// Waits until each sentinel counts all replicas as in step and all other sentinels as there.
    async fn wait_until_complete(&self, replicas: usize, sentinels: usize) {
        let name = Self::MASTER_NAME;
        let known = async |port: u16, what: &str| -> Vec<String> {
            let response =
                query::<Vec<redis::Value>>(&url(port), redis::cmd("SENTINEL").arg(what).arg(name))
                    .await;
            response.unwrap_or_default().iter().map(|each| format!("{each:?}")).collect()
        };
        within("the sentinels know each other and the replicas", async {
            for (port, _) in &self.sentinels {
                loop {
                    let seen = known(*port, "replicas").await;
                    let in_step = seen
                        .iter()
                        .filter(|each| each.contains("'ok'") || each.contains("\"ok\""))
                        .count();
                    if in_step == replicas && known(*port, "sentinels").await.len() == sentinels - 1
                    {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        })
        .await;
    }
}
