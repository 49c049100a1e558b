//! A real server in this process, and a proxy in front of it that can be unkind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use lockservice::server::{ServerSettings, ServiceHost, Stop, serve};
use lockservice_core::allocator::{AllocatorSettings, LocalAllocator, LockTableAllocator};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::{LockSpec, ServiceParts, Stopped};
use lockservice_core::store::{BindStore, Candidate, MemoryStore};
use lockservice_core::{Epoch, Key, LockItem, NodeName, Result, TableRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// A server on a port of its own.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) address: String,
    pub(crate) host: ServiceHost,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<Stopped>>,
}

impl Served {
    pub(crate) async fn start(settings: ServerSettings) -> Self {
        Self::start_above(Epoch::default(), settings).await
    }

    /// Its first epoch is above `floor`.
    pub(crate) async fn start_above(floor: Epoch, settings: ServerSettings) -> Self {
        Self::start_with(floor, AllocatorSettings::default(), settings).await
    }

    /// A node's lease lasts `lease`.
    pub(crate) async fn start_leased(lease: Duration, settings: ServerSettings) -> Self {
        let mut allocator = AllocatorSettings::default();
        allocator.constants.lease_ttl_ms = u64::try_from(lease.as_millis()).expect("short");
        Self::start_with(Epoch::default(), allocator, settings).await
    }

    async fn start_with(
        floor: Epoch,
        allocator: AllocatorSettings,
        settings: ServerSettings,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store: Arc<dyn BindStore> = Arc::new(MemoryStore::new(1));
        let candidate =
            Candidate { floor, ..Candidate::from(NodeName::new("node-1").expect("a name")) };
        let allocator: Arc<dyn LockTableAllocator> =
            LocalAllocator::open(store, Arc::clone(&clock), allocator, candidate)
                .await
                .expect("a fresh store opens");
        let name = NodeName::new("node-1").expect("a name");
        Self::start_service(ServiceParts::new(allocator, clock, name), settings).await
    }

    /// Starts a service of these parts.
    pub(crate) async fn start_service(mut parts: ServiceParts, settings: ServerSettings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        parts.address.clone_from(&address);
        let host = ServiceHost::start(parts).await.expect("the service starts");
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, host.clone(), settings, async {
            let _ = stopped.await;
            Stop::Drain
        }));
        Self { address, host, stop: Some(stop), task }
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(self) {
        self.task.abort();
    }

    pub(crate) async fn stopped(self) -> Stopped {
        self.task.await.expect("no panic").expect("a clean stop")
    }
}

pub(crate) fn table() -> TableRef {
    TableRef::new("default", "accounts").expect("names")
}

pub(crate) fn row(name: &str) -> LockItem {
    LockItem::Row(Key::new(name).expect("a key"))
}

pub(crate) fn spec(name: &str) -> LockSpec {
    LockSpec::new(table(), vec![row(name)])
}

/// Forwards connections to a server, until the test cuts them.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    /// Counts cuts; connections of an older number end.
    cuts: watch::Sender<u64>,
    mute: Arc<AtomicBool>,
    shut: Arc<AtomicBool>,
    server: watch::Sender<String>,
}

impl Proxy {
    pub(crate) async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let cuts = watch::Sender::new(0);
        let mute = Arc::new(AtomicBool::new(false));
        let shut = Arc::new(AtomicBool::new(false));
        let (mut cut, muted) = (cuts.subscribe(), Arc::clone(&mute));
        let server = watch::Sender::new(server.to_owned());
        let leads_to = server.subscribe();
        let is_shut = Arc::clone(&shut);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // It may have been stopped.
                let server = leads_to.borrow().clone();
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                cut.mark_unchanged();
                // A test shuts it before it cuts: either is seen here.
                if is_shut.load(SeqCst) {
                    continue;
                }
                let (mut cut, muted) = (cut.clone(), Arc::clone(&muted));
                tokio::spawn(async move {
                    tokio::select! {
                        _ = cut.changed() => {}
                        () = forward(client, server, muted) => {}
                    }
                });
            }
        });
        Self { address, cuts, mute, shut, server }
    }

    /// Breaks every connection there is, and ever will be.
    pub(crate) fn shut(&self) {
        self.shut.store(true, SeqCst);
        self.cut();
    }

    /// Leads to another server from now on.
    pub(crate) fn lead_to(&self, server: &str) {
        self.server.send_replace(server.to_owned());
        self.cut();
    }

    /// Breaks every connection there is.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Loses, or no longer loses, everything that the server says.
    pub(crate) fn mute(&self, mute: bool) {
        self.mute.store(mute, SeqCst);
    }
}

async fn forward(client: TcpStream, server: TcpStream, muted: Arc<AtomicBool>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_server.read(&mut buffer).await?;
            if n == 0 {
                return std::io::Result::Ok(());
            }
            if !muted.load(SeqCst) {
                to_client.write_all(&buffer[..n]).await?;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        _ = down => {}
    }
}
