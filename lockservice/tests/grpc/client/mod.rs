//! The client against a real server, over connections that break.
//!
//! | file | noun |
//! |---|---|
//! | `connecting.rs` | the way to a server |
//! | `holding.rs` | locks and waits |
//! | `losses.rs` | transactions that an operator ends |
//! | `broken.rs` | broken connections |
//! | `restarts` | claims after a restart, at a server that says what a test wants |
//! | `commits.rs` | commits |
//! | `deadlines.rs` | deadlines and time-outs |

mod broken;
mod commits;
mod connecting;
mod deadlines;
mod holding;
mod losses;
mod restarts;

use std::time::Duration;

use lockservice::client::{AdminClient, Client, Session};
use lockservice::server::ServerSettings;

use crate::support::Served;

async fn server() -> Served {
    Served::start(ServerSettings::default()).await
}

async fn client(address: &str) -> Client {
    Client::builder().name("tester").connect(address).await.expect("the server responds")
}

async fn session(address: &str) -> Session {
    client(address).await.session(None).await.expect("a session")
}

/// Asks until there are `n` waits; the question itself is the only event there is.
async fn waits(admin: &AdminClient, n: usize) {
    while admin.waits(None).await.expect("the server responds").len() != n {
        tokio::task::yield_now().await;
    }
}

async fn locks(admin: &AdminClient, n: usize) {
    while admin.locks(None).await.expect("the server responds").len() != n {
        tokio::task::yield_now().await;
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it ends")
}
