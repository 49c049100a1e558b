//! [`ClusterAdmin`]: lists of all nodes of a cluster.

use std::time::Duration;

use futures::StreamExt as _;
use lockservice_core::{Error, ErrorKind, NodeName, Result, ServiceId};

use super::{AdminClient, Client, Listed};

/// The largest number of nodes that make a list at the same time. The lists of the others are made
/// when one of these is complete.
const NODES_AT_ONCE: usize = 8;

/// The longest that the list of one node may take. A server takes no longer for one.
const NODE_TIME_MAX: Duration = Duration::from_secs(60);

/// The nodes of a cluster, for lists of what is at all of them, or at one.
///
/// ```no_run
/// # async fn example(client: lockservice::Client) -> lockservice::Result<()> {
/// let cluster = client.cluster_admin().await?;
/// let locks = cluster.list(|node| async move { node.locks(None).await }).await;
/// for (node, lock) in &locks.lines {
///     println!("{} is locked at {node}", lock.info.item);
/// }
/// for missing in &locks.missing {
///     println!("incomplete: {missing}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClusterAdmin {
    /// In the order of their names.
    nodes: Vec<Member>,
    /// The reason why there may be others.
    unknown: Option<Error>,
}

#[derive(Clone, Debug)]
struct Member {
    name: NodeName,
    service: ServiceId,
    address: String,
    /// Fails if its address cannot be used.
    admin: Result<AdminClient>,
}

/// A list of all nodes.
#[derive(Clone, Debug)]
pub struct ClusterList<T> {
    /// The lines, each with its node: in the order of the nodes' names, and of each node's list.
    pub lines: Vec<(NodeName, T)>,
    /// True if a node sent fewer lines than it has: see [`Listed::is_cut`].
    pub is_cut: bool,
    /// The number of nodes that were asked.
    pub nodes: usize,
    /// The nodes whose lines are missing. The list is complete if there are none.
    pub missing: Vec<MissingNode>,
}

/// A node whose lines are missing in a list.
#[derive(Clone, Debug)]
pub struct MissingNode {
    /// Its name; `None` stands for nodes that are not known.
    pub node: Option<NodeName>,
    /// The address at which clients reach it; empty if that is not known.
    pub address: String,
    /// The reason.
    pub error: Error,
}

impl std::fmt::Display for MissingNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.node {
            Some(node) if self.address.is_empty() => write!(f, "node {node}: {}", self.error),
            Some(node) => write!(f, "node {node} at {}: {}", self.address, self.error),
            None => write!(f, "the other nodes are not known: {}", self.error),
        }
    }
}

impl Client {
    /// The nodes of the cluster that have a lease now, as the server that responded last knows
    /// them from the leader. That server is called over the present connection, the others at the
    /// addresses that they advertise, with the credentials of this client.
    ///
    /// # Errors
    /// Those of [`AdminClient::node`]. If that server is known and the others are not, for example
    /// while no node leads, this does not fail, and each list says that they are missing.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn cluster_admin(&self) -> Result<ClusterAdmin> {
        let home = self.admin();
        let (name, service) = home.node().await?;
        let address = home.address().to_owned();
        let mut nodes = vec![Member { name, service, address, admin: Ok(home.clone()) }];
        let unknown = match home.nodes().await {
            Ok(known) => {
                let is_cut = known.is_cut();
                for node in known {
                    if node.node != nodes[0].name {
                        let admin = self.admin_of(&node.address);
                        let (name, service, address) = (node.node, node.id, node.address);
                        nodes.push(Member { name, service, address, admin });
                    }
                }
                is_cut.then(|| {
                    let what = "the server lists fewer nodes than there are: raise its setting \
                        list_lines_max";
                    Error::new(ErrorKind::ResourceExhausted, what)
                })
            }
            Err(e) => Some(e),
        };
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ClusterAdmin { nodes, unknown })
    }

    fn admin_of(&self, address: &str) -> Result<AdminClient> {
        if address.is_empty() {
            let what = "the node does not say where clients reach it";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        self.admin_at(address)
    }
}

impl ClusterAdmin {
    /// The names of the nodes, in order.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.nodes.iter().map(|node| &node.name)
    }

    /// The one node of this name, for lists of it alone; `None` if it is not known.
    ///
    /// # Errors
    /// The reason why nodes are not known, if this one may be among them. Try again.
    pub fn only(&self, name: &NodeName) -> Result<Option<Self>> {
        match (self.nodes.iter().find(|node| node.name == *name), &self.unknown) {
            (Some(node), _) => Ok(Some(Self { nodes: vec![node.clone()], unknown: None })),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Ok(None),
        }
    }

    /// The node that runs as this incarnation, for what only that can do: to end a session or a
    /// transaction, whose ids name it. `None` if no node does: what it had is over.
    ///
    /// # Errors
    /// - `Unavailable`: nodes are not known, and this one may be among them. Try again.
    /// - The reason why the address of the node cannot be used.
    pub fn incarnation(&self, service: ServiceId) -> Result<Option<AdminClient>> {
        match (self.nodes.iter().find(|node| node.service == service), &self.unknown) {
            (Some(node), _) => node.admin.clone().map(Some),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Ok(None),
        }
    }

    /// The list that `list` makes of each node, at several of them at the same time. It is no
    /// snapshot of one moment.
    ///
    /// A node that cannot be reached, or does not make its list in time, is named in the result.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn list<T, F>(&self, list: impl Fn(AdminClient) -> F) -> ClusterList<T>
    where
        F: Future<Output = Result<Listed<T>>>,
    {
        let of_node = |node: Member| {
            let made = node.admin.map(&list);
            async move {
                let listed = match made {
                    Ok(made) => tokio::time::timeout(NODE_TIME_MAX, made).await,
                    Err(e) => Ok(Err(e)),
                };
                let listed = listed.unwrap_or_else(|_| {
                    let what = "the node did not make its list in time: it is overloaded";
                    Err(Error::new(ErrorKind::Unavailable, what))
                });
                (node.name, node.address, listed)
            }
        };
        let lists: Vec<_> = futures::stream::iter(self.nodes.clone())
            .map(of_node)
            .buffered(NODES_AT_ONCE)
            .collect()
            .await;
        let mut all =
            ClusterList { lines: Vec::new(), is_cut: false, nodes: lists.len(), missing: vec![] };
        for (node, address, listed) in lists {
            match listed {
                Ok(listed) => {
                    all.is_cut |= listed.is_cut();
                    all.lines.extend(listed.into_iter().map(|line| (node.clone(), line)));
                }
                Err(error) => {
                    all.missing.push(MissingNode { node: Some(node), address, error });
                }
            }
        }
        if let Some(error) = self.unknown.clone() {
            all.missing.push(MissingNode { node: None, address: String::new(), error });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use lockservice_core::service::LockStatus;

    use super::*;

    #[tokio::test]
    async fn a_list_says_that_there_may_be_nodes_that_are_not_known_and_none_of_them_is_found() {
        let why = Error::new(ErrorKind::Unavailable, "no allocator leads the store now");
        let cluster = ClusterAdmin { nodes: Vec::new(), unknown: Some(why) };
        let list: ClusterList<LockStatus> =
            cluster.list(|node| async move { node.locks(None).await }).await;
        let missing = &list.missing[0];
        assert!(missing.node.is_none() && list.lines.is_empty(), "{list:?}");
        assert!(missing.to_string().starts_with("the other nodes are not known: "), "{missing}");
        let name = NodeName::new("n").expect("a name");
        assert_eq!(cluster.only(&name).expect_err("it may be").kind(), ErrorKind::Unavailable);
        let other = cluster.incarnation(ServiceId::new(7)).expect_err("it may be");
        assert_eq!(other.kind(), ErrorKind::Unavailable);
    }
}
