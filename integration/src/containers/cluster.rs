//! A Redis Cluster.

use std::time::Duration;

use super::container::Container;
use super::ports::Port;
use super::redis::{Network, query, url};
use crate::within;

/// The settings of a [`Cluster`].
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Copies of each master.
    pub replicas: usize,
    /// A node counts as down when it has not responded for so long.
    pub node_timeout: Duration,
    /// Arguments of each `redis-server`.
    pub arguments: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { replicas: 0, node_timeout: Duration::from_secs(2), arguments: Vec::new() }
    }
}

/// A Redis Cluster of three masters and their replicas, each in a container of its own.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<(u16, Container)>,
    // Last, for it is dropped last: the others live in it.
    _network: Network,
}

impl Cluster {
    const MASTERS: usize = 3;

    /// Starts it; returns when every node takes it for complete. `None`, having said so, where
    /// there is no Docker or no image.
    ///
    /// # Panics
    /// If it does not come up; in CI also where there is no Docker or no image.
    pub async fn start(options: ClusterOptions) -> Option<Self> {
        let count = Self::MASTERS * (1 + options.replicas);
        // Of the bus too: its ports are no clients' business, but no two clusters may share them.
        let ports: Vec<Port> = (0..2 * count).map(|_| Port::reserve()).collect();
        let values: Vec<u16> = ports.iter().map(Port::number).collect();
        let network = Network::start(ports).await?;
        let mut nodes = Vec::new();
        for pair in values.chunks_exact(2) {
            let timeout_ms = options.node_timeout.as_millis().to_string();
            let own = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                &timeout_ms,
                "--cluster-announce-ip",
                "127.0.0.1",
            ];
            let bus = [
                "--cluster-port".into(),
                pair[1].to_string(),
                "--repl-diskless-sync-delay".into(),
                "0".into(),
            ];
            let arguments =
                own.map(String::from).into_iter().chain(bus).chain(options.arguments.clone());
            nodes.push((pair[0], network.server(pair[0], arguments).await));
        }
        let cluster = Self { nodes, _network: network };
        cluster.join(options.replicas).await;
        Some(cluster)
    }

    /// The nodes' URLs: `redis://127.0.0.1:PORT/`. The first three began as masters.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|(port, _)| url(*port)).collect()
    }

    /// The node at this place among the URLs.
    pub fn node(&self, place: usize) -> &Container {
        &self.nodes[place].1
    }

    /// The index of the master that has `key` in its slots, as the node at index `viewer` sees it.
    ///
    /// # Panics
    /// If that node does not respond.
    pub async fn master_of(&self, viewer: usize, key: &str) -> usize {
        let viewer = url(self.nodes[viewer].0);
        let slot: u16 = query(&viewer, redis::cmd("CLUSTER").arg("KEYSLOT").arg(key))
            .await
            .expect("the slot of a key");
        let nodes: String = query(&viewer, redis::cmd("CLUSTER").arg("NODES"))
            .await
            .expect("the nodes of the cluster");
        let line =
            nodes.lines().find(|line| has_slot(line, slot)).expect("some master has every slot");
        let address = line.split_whitespace().nth(1).expect("a node has an address");
        self.nodes
            .iter()
            .position(|(port, _)| address.starts_with(&format!("127.0.0.1:{port}@")))
            .expect("one of ours")
    }

    /// Begins to move the slot of `key` from the master at place `from` to the one at place `to`:
    /// keys go one by one, by [`move_key`](Self::move_key), until
    /// [`finish_move`](Self::finish_move).
    ///
    /// # Panics
    /// If they do not agree; so do the other two.
    pub async fn begin_move(&self, key: &str, from: usize, to: usize) {
        let slot = self.slot(key).await;
        for (place, what, other) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            let other: String = query(&url(self.nodes[other].0), redis::cmd("CLUSTER").arg("MYID"))
                .await
                .expect("its name");
            let () = query(
                &url(self.nodes[place].0),
                redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(what).arg(other),
            )
            .await
            .expect("a master of the cluster");
        }
    }

    /// Moves one key. What is not there has moved.
    pub async fn move_key(&self, key: &str, from: usize, to: usize) {
        let mut command = redis::cmd("MIGRATE");
        command.arg("127.0.0.1").arg(self.nodes[to].0).arg(key).arg(0).arg(5_000);
        let _: String = query(&url(self.nodes[from].0), &command).await.expect("the key moves");
    }

    /// Gives the slot to the master at place `to`. Only these masters get it: the third learns of
    /// it later.
    pub async fn finish_move(&self, key: &str, from: usize, to: usize) {
        let slot = self.slot(key).await;
        let name: String = query(&url(self.nodes[to].0), redis::cmd("CLUSTER").arg("MYID"))
            .await
            .expect("its name");
        for place in [to, from] {
            let () = query(
                &url(self.nodes[place].0),
                redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("NODE").arg(&name),
            )
            .await
            .expect("a master of the cluster");
        }
    }

    /// Gives a move up whose keys may be on either side: those of `key`'s slot go back, and the
    /// slot stays where it was.
    pub async fn move_back(&self, key: &str, from: usize, to: usize) {
        let slot = self.slot(key).await;
        let own: String = query(&url(self.nodes[from].0), redis::cmd("CLUSTER").arg("MYID"))
            .await
            .expect("its name");
        let stable = || redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("STABLE").to_owned();
        // The old node takes what is its own again, and the new one sends it back.
        let () = query(&url(self.nodes[from].0), &stable()).await.expect("a master of the cluster");
        let mut back = redis::cmd("MIGRATE");
        back.arg("127.0.0.1").arg(self.nodes[from].0).arg(key).arg(0).arg(5_000);
        let _: String = query(&url(self.nodes[to].0), &back).await.expect("the key goes back");
        let () = query(&url(self.nodes[to].0), &stable()).await.expect("a master of the cluster");
        assert_eq!(self.nodes[self.master_of(to, key).await].0, self.nodes[from].0, "{own} has it");
    }

    async fn slot(&self, key: &str) -> u16 {
        query(&url(self.nodes[0].0), redis::cmd("CLUSTER").arg("KEYSLOT").arg(key))
            .await
            .expect("the slot of a key")
    }

    /// Makes the nodes one cluster and waits until each of them says so.
    async fn join(&self, replicas: usize) {
        let nodes: Vec<String> =
            self.nodes.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        let command = format!(
            "redis-cli --cluster create {} --cluster-replicas {replicas} --cluster-yes",
            nodes.join(" ")
        );
        let (status, output) = self.node(0).exec(["sh", "-c", &command]).await;
        assert_eq!(status, 0, "{output}");
        within("every node sees the whole cluster", async {
            for node in self.urls() {
                while !self.is_complete(&node).await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        })
        .await;
    }

    async fn is_complete(&self, node: &str) -> bool {
        let info: String = query(node, redis::cmd("CLUSTER").arg("INFO")).await.unwrap_or_default();
        let whole = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
        let nodes: String =
            query(node, redis::cmd("CLUSTER").arg("NODES")).await.unwrap_or_default();
        let masters = nodes.lines().filter(|line| line.contains("master")).count();
        info.contains("cluster_state:ok\r\n") && info.contains(&whole) && masters == Self::MASTERS
    }
}

/// True if a line of `CLUSTER NODES` is of a node that serves `slot`: after eight columns come its
/// slots, `7` or `0-5460`.
fn has_slot(line: &str, slot: u16) -> bool {
    line.split_whitespace().skip(8).any(|slots| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        matches!(
            (first.parse(), last.parse()),
            (Ok(first), Ok(last)) if (first..=last).contains(&slot)
        )
    })
}
