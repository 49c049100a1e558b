//! Our side: the Rust client, and all callers on one session.

use std::time::Duration;

use async_trait::async_trait;
use lockservice_core::service::TxnOptions;
use lockservice_core::{Error, ErrorKind, Result, TableRef};

use super::child::ServerChild;
use super::cpu::ServerProcess;
use super::side::{Caller, Side};
use super::workload::{Want, Workload};
use crate::channel::endpoint;
use crate::cli::args::{CredentialArgs, Serves};
use crate::cli::exit::Failure;
use crate::client::{Client, Session};

/// The name of a server's program.
const PROGRAM: &str = "lockservice";

/// The pause between two looks at the sessions.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Locks {
    client: Client,
    session: Session,
    table: TableRef,
    server: ServerProcess,
    /// The server that was started for this.
    child: Option<ServerChild>,
}

impl Locks {
    /// Opens a session at `server`, or at one that is started.
    pub(super) async fn open(
        server: Option<&str>,
        credentials: &CredentialArgs,
    ) -> Result<Self, Failure> {
        let (client, address, process, child) = match server {
            Some(address) => {
                (credentials.client(), address.to_owned(), process_at(address).await, None)
            }
            // It serves in plain text.
            None => {
                let child = ServerChild::start(Serves::Locks).await?;
                let process = ServerProcess::One(child.pid);
                (Client::builder(), child.address.clone(), process, Some(child))
            }
        };
        let client = client.name("bench").connect(&address).await?;
        let session = client.session(None).await?;
        let table = TableRef::new("default", "bench")?;
        Ok(Self { client, session, table, server: process, child })
    }
}

impl Locks {
    /// The address of the server that was started for this.
    pub(super) fn own_address(&self) -> Option<&str> {
        self.child.as_ref().map(|child| &*child.address)
    }

    /// Resolves when no other client has a session at the server any more.
    pub(super) async fn await_alone(&self, most: Duration) -> Result<()> {
        let alone = async {
            while self.client.admin().sessions().await?.len() > 1 {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            Ok(())
        };
        tokio::time::timeout(most, alone).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "the sessions of another client do not end"))
        })
    }
}

/// The process of the server at `address`, which has the form of `--server`.
async fn process_at(address: &str) -> ServerProcess {
    if address.contains(',') {
        return ServerProcess::Unknown("several nodes were named".to_owned());
    }
    match endpoint(address, Duration::ZERO) {
        Ok((endpoint, _)) => ServerProcess::at(endpoint.uri(), PROGRAM).await,
        // The connection reports the error.
        Err(_) => ServerProcess::Unknown(format!("{address} is no address")),
    }
}

#[async_trait]
impl Side for Locks {
    fn name(&self) -> &'static str {
        "lockservice"
    }

    fn server(&self) -> &ServerProcess {
        &self.server
    }

    async fn callers(&self, _: Workload, count: u32) -> Result<Vec<Box<dyn Caller>>> {
        let caller = || -> Box<dyn Caller> {
            Box::new(LockCaller { session: self.session.clone(), table: self.table.clone() })
        };
        Ok((0..count).map(|_| caller()).collect())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let closed = self.session.close().await;
        if let Some(child) = self.child {
            child.stop().await;
        }
        closed
    }
}

struct LockCaller {
    session: Session,
    table: TableRef,
}

#[async_trait]
impl Caller for LockCaller {
    async fn cycle(&mut self, want: &Want) -> Result<()> {
        let txn = self.session.txn(TxnOptions::default());
        txn.lock(want.spec(&self.table)?).await?;
        // The end is sent and not awaited: the next request of this caller follows it on the
        // stream.
        drop(txn.end(None));
        Ok(())
    }
}
