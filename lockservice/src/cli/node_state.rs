//! [`NodeState`]: what the next process of this node needs to know of this one.
//!
//! Several nodes share a store, so a process that starts under the name of a node may not take it
//! over while another process may hold its lease (B1). It cannot know that its predecessor was
//! killed, and would wait for that lease. On the same machine it can: a process locks a file for as
//! long as it lives, and writes into it which incarnation it is. The next one that gets the lock
//! replaces just that incarnation, at once. Its tables still wait until what it promised has run
//! out (B3); everything else is served.
//!
//! A file that is missing, damaged, of another cluster or older than the last incarnation costs the
//! wait for the lease, and nothing else: the allocator compares incarnation and nonce. So does a
//! copy of the file on another machine: it replaces an incarnation that may still run, which then
//! learns so at its next renewal, and whose tables wait as if it had died.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockservice_core::allocator::ElectedAllocator;
use lockservice_core::clock::hi;
use lockservice_core::service::LockService;
use lockservice_core::store::{ClusterId, Place};
use lockservice_core::{Error, ErrorKind, NodeName, Nonce, Result, ServiceId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::config::{Config, misconfigured};
use super::exit::Failure;

/// The pause between two looks at whether the file is free.
const PAUSE: Duration = Duration::from_millis(100);

/// The file of this node, locked.
#[derive(Debug)]
pub(crate) struct NodeState {
    path: PathBuf,
    cluster: ClusterId,
    node: NodeName,
    /// Kept until the process ends.
    _place: Place,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Content {
    cluster: String,
    node: String,
    service: u64,
    /// Whoever knows it can act as the incarnation, so only the node's user reads the file.
    nonce: u64,
}

/// The folder for such files if no setting names one: `None` if the user has no home.
fn default_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|path| Path::new(path).is_absolute());
    let state = variable("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/state")));
    state.map(|state| state.join("lockservice"))
}

impl NodeState {
    /// The file of the node on this machine, locked; `None` if there can be none where it stands by
    /// default, or if another process of the node keeps it for longer than a lease: the allocator
    /// decides which of them is the node.
    pub(crate) async fn of(
        config: &Config,
        allocator: &ElectedAllocator,
        name: &NodeName,
        say: impl Fn(&str),
    ) -> Result<Option<Arc<Self>>, Failure> {
        let is_set = !config.state_dir.as_os_str().is_empty();
        let folder = Some(config.state_dir.clone()).filter(|_| is_set).or_else(default_folder);
        let mut cluster = allocator.cluster();
        let named = cluster.wait_for(Option::is_some).await.ok().and_then(|cluster| *cluster);
        let (Some(folder), Some(cluster)) = (folder, named) else { return Ok(None) };
        let (id, lease) = (cluster.id, config.allocator.constants.lease_ttl());
        let locked = Self::lock_patiently(&folder, id, name, hi(lease), say);
        match locked.await {
            Ok(state) => Ok(Some(Arc::new(state))),
            Err(e) if is_set && e.kind() != ErrorKind::StoreInUse => Err(misconfigured(e)),
            Err(error) => {
                tracing::info!(
                    ?error,
                    "there is no file of this node: if it crashes, its next process waits for \
                        its lease (setting state_dir)"
                );
                Ok(None)
            }
        }
    }

    /// Locks the file of a node in `folder`, and makes both if they are missing. Not for a task of
    /// a runtime: it waits for the disk.
    ///
    /// # Errors
    /// `StoreInUse` if another process of the node lives on this machine. `StoreUnusable` if the
    /// file system does not allow it.
    fn lock(folder: &Path, cluster: ClusterId, node: &NodeName) -> Result<Self> {
        // A name may hold what no file name can.
        let digest = Sha256::digest(node.as_str().as_bytes());
        let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(format!("{cluster}-{name}.json"));
        let unusable = |why: io::Error| {
            Error::new(ErrorKind::StoreUnusable, "the node's state cannot be kept")
                .with("state_dir", folder.display())
                .with_source(why)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let place = Place::reserve(&path, unusable)?;
        Ok(Self { path, cluster, node: node.clone(), _place: place })
    }

    /// As [`lock`](Self::lock). While another process has the file, it waits for at most `most`,
    /// and says so.
    async fn lock_patiently(
        folder: &Path,
        cluster: ClusterId,
        node: &NodeName,
        most: Duration,
        say: impl Fn(&str),
    ) -> Result<Self> {
        let patiently = async {
            loop {
                let (folder, named) = (folder.to_owned(), node.clone());
                let locked = off_the_runtime(move || Self::lock(&folder, cluster, &named)).await;
                match locked {
                    Err(e) if e.kind() == ErrorKind::StoreInUse => say(&format!(
                        "another process of the node {node} runs on this machine: stop it, or \
                         choose another --node"
                    )),
                    locked => return locked,
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(most, patiently).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::StoreInUse, "another process of the node lives"))
        })
    }

    /// The last incarnation of the node, if the file names it.
    fn previous(&self) -> Option<(ServiceId, Nonce)> {
        let content: Content = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let is_ours =
            content.cluster == self.cluster.to_string() && content.node == self.node.as_str();
        is_ours.then(|| (ServiceId::new(content.service), Nonce::new(content.nonce)))
    }

    /// Writes which incarnation this process is, on the disk when this returns.
    fn note(&self, service: ServiceId, nonce: Nonce) -> io::Result<()> {
        let content = Content {
            cluster: self.cluster.to_string(),
            node: self.node.to_string(),
            service: service.get(),
            nonce: nonce.get(),
        };
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// What [`previous`](Self::previous) says, read without holding the runtime up.
    pub(crate) async fn replaces(self: &Arc<Self>) -> Option<(ServiceId, Nonce)> {
        let this = Arc::clone(self);
        off_the_runtime(move || Ok(this.previous())).await.unwrap_or_default()
    }

    /// Writes which incarnation this process is. That it fails is logged: it costs the next process
    /// a wait.
    pub(crate) async fn keep(self: &Arc<Self>, service: &LockService) {
        let (this, id, nonce) = (Arc::clone(self), service.id(), service.nonce());
        let noted = off_the_runtime(move || {
            this.note(id, nonce).map_err(|why| {
                Error::new(ErrorKind::StoreUnusable, "it cannot be written").with_source(why)
            })
        });
        if let Err(error) = noted.await {
            let path = self.path.display();
            tracing::warn!(%path, ?error, "the node's state is not kept: its next process will \
                wait for the lease of this one");
        }
    }

    /// Writes each further incarnation of this process, until there can be none.
    pub(crate) async fn follow(self: Arc<Self>, mut incarnations: watch::Receiver<LockService>) {
        while incarnations.changed().await.is_ok() {
            let service = incarnations.borrow_and_update().clone();
            self.keep(&service).await;
        }
    }
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::ShuttingDown, "the process is ending")))
}

#[cfg(test)]
mod tests {
    use lockservice_core::store::Cluster;

    use super::*;

    /// The state of a node of one cluster.
    struct Nodes(ClusterId);

    impl Nodes {
        fn lock(&self, folder: &Path, node: &str) -> Result<NodeState> {
            NodeState::lock(folder, self.0, &NodeName::new(node).expect("a name"))
        }
    }

    fn nodes() -> Nodes {
        Nodes(Cluster::random().id)
    }

    #[test]
    fn the_next_process_reads_which_incarnation_the_last_one_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("new");
        let nodes = nodes();
        let state = nodes.lock(&folder, "a/ä").expect("free");
        assert_eq!(state.previous(), None);
        for (service, nonce) in [(3, u64::MAX), (4, 0)] {
            state.note(ServiceId::new(service), Nonce::new(nonce)).expect("it can be written");
            let noted = Some((ServiceId::new(service), Nonce::new(nonce)));
            assert_eq!(state.previous(), noted);
        }
        assert_eq!(nodes.lock(&folder, "a/ä").expect_err("locked").kind(), ErrorKind::StoreInUse);
        nodes.lock(&folder, "b").expect("another node");
        self::nodes().lock(&folder, "a/ä").expect("another cluster");
        drop(state);
        let next = nodes.lock(&folder, "a/ä").expect("free again");
        assert_eq!(next.previous(), Some((ServiceId::new(4), Nonce::new(0))));
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_cluster_names_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = nodes().lock(folder.path(), "a").expect("free");
        state.note(ServiceId::new(3), Nonce::new(4)).expect("it can be written");
        let whole = fs::read_to_string(&state.path).expect("readable");
        let other = Cluster::random().id.to_string();
        for bad in [
            String::new(),
            whole[..whole.len() - 1].to_owned(),
            whole.replace(&state.cluster.to_string(), &other),
            whole.replace("\"a\"", "\"b\""),
        ] {
            fs::write(&state.path, &bad).expect("writable");
            assert_eq!(state.previous(), None, "{bad}");
        }
    }

    #[test]
    fn only_the_user_of_the_node_reads_the_nonce() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("new");
        let state = nodes().lock(&folder, "a").expect("free");
        state.note(ServiceId::new(3), Nonce::new(4)).expect("it can be written");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&state.path)), (0o700, 0o600));
    }
}
