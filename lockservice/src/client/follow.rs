//! Following a table to its owner (T5).
//!
//! A server that does not own a table responds with `NotOwner` and the owner's address. The
//! transaction then moves there if it holds nothing: it is ended where it was and begins again,
//! under a session that is opened there and kept. If it holds something, the call fails with
//! `SpansNodes`. The owner is remembered, so that the next transaction that begins with this table
//! begins there.
//!
//! After three hops the client gets the owner of the table from the leader's allocator. An owner
//! that cannot be reached keeps its tables until its lease has run out. A call that may wait goes
//! back to the home and tries again, until its time is up, or until an owner can be reached.

use std::time::Duration;

use lockservice_core::allocator::BindState;
use lockservice_core::clock::Time;
use lockservice_core::service::LockSpec;
use lockservice_core::table::{Grant, WaitPolicy};
use lockservice_core::{Detail, Error, ErrorKind, Result, ServiceId, TableRef};

use super::ClientTxn;
use super::outbox::CallContext;
use super::txn::timed_out;

/// The number of redirections that are followed before the call to the leader.
const HOPS_MAX: usize = 3;
/// The time for which a call without a time-out looks for an owner that can be reached.
const SEARCH_MAX: Duration = Duration::from_secs(60);
/// The time to try to reach an owner, which may have ended, before the home is called again.
const REACH_MAX: Duration = Duration::from_secs(1);
/// The first and the longest pause between two rounds.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Begins at the last known owner of `table`, if the transaction may move there.
pub(super) async fn go_to_last_owner(
    txn: &ClientTxn,
    spec: &LockSpec,
    address: &str,
    deadline: Option<Time>,
) {
    if !txn.is_free() {
        return;
    }
    let left = give_up(txn, spec, deadline).remaining(txn.env().now());
    match txn.env().timeout(left.min(REACH_MAX), txn.cluster_session.at(address, None)).await {
        // False if something was granted meanwhile: the transaction stays.
        Ok(Ok(handle)) => drop(txn.move_to(&handle)),
        // The node that is called instead knows more.
        Ok(Err(_)) | Err(_) => txn.cluster_session.set_owner(&spec.table, None),
    }
}

/// The time at which a call is given up: its deadline, or the end of the longest time for such a
/// call. The call never waits for a lock longer than to the first of these.
fn give_up(txn: &ClientTxn, spec: &LockSpec, deadline: Option<Time>) -> Time {
    let most = if spec.wait == WaitPolicy::Wait { SEARCH_MAX } else { REACH_MAX };
    deadline.unwrap_or(txn.env().now() + most)
}

/// True if a call that failed with `error` may succeed elsewhere.
pub(super) fn helps(txn: &ClientTxn, error: &Error) -> bool {
    if error.kind() == ErrorKind::NotOwner {
        return error.owner().is_some_and(|address| !address.is_empty());
    }
    // The node was left while nothing was held there.
    unreachable(error) && txn.is_free() && !std::ptr::eq(&*txn.handle(), &*txn.cluster_session.home)
}

fn unreachable(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable
            | ErrorKind::ShuttingDown
            | ErrorKind::SessionLost
            | ErrorKind::LeaseLost
    )
}

/// Goes on with a lock call that failed with `error`, which [`helps`].
pub(super) async fn lock(
    txn: &ClientTxn,
    spec: &LockSpec,
    context: CallContext<'_>,
    error: Error,
) -> Result<Grant> {
    let cluster_session = &txn.cluster_session;
    let clock = txn.env();
    let give_up = give_up(txn, spec, context.deadline);
    let (mut error, mut hops, mut pause) = (error, 0, PAUSE.0);
    loop {
        let mut owner = owner(&error);
        if owner.is_some() {
            hops += 1;
        }
        if hops > HOPS_MAX {
            hops = 0;
            owner = owner_by_leader(txn, &spec.table, give_up.remaining(clock.now())).await;
        }
        let reached = match &owner {
            Some((address, service)) => {
                cluster_session.set_owner(&spec.table, Some(address));
                let left = give_up.remaining(clock.now());
                move_to_owner(txn, spec, address, *service, left).await?
            }
            // Its node was lost while it held nothing there: the home knows the owner of the table
            // now.
            None if error.kind() != ErrorKind::NotOwner && txn.move_to(&cluster_session.home) => {
                Reached::Yes
            }
            None => Reached::No(error.clone()),
        };
        if let Reached::No(e) = reached {
            cluster_session.set_owner(&spec.table, None);
            let home =
                txn.move_to(&cluster_session.home) && cluster_session.home.shared.check().is_ok();
            if spec.wait != WaitPolicy::Wait || e.kind() == ErrorKind::Timeout || !home {
                return Err(e);
            }
            if clock.now() + pause >= give_up {
                return Err(timed_out(
                    "the table's owner could not be reached within the time-out of the lock: try \
                        again",
                )
                .with_source(e));
            }
            txn.env().sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        } else if hops > 1 {
            // Two servers that name each other must not be called without a pause.
            txn.env().sleep(PAUSE.0).await;
        }
        match txn.try_lock(spec, context).await {
            Ok(grant) => return Ok(grant),
            Err(e) if helps(txn, &e) && clock.now() < give_up => error = e,
            Err(e) => return Err(e),
        }
    }
}

/// The outcome of a transaction's move to another node.
enum Reached {
    Yes,
    /// The node cannot be reached now.
    No(Error),
}

/// Moves to the owner of the table at `address`, within `left`.
async fn move_to_owner(
    txn: &ClientTxn,
    spec: &LockSpec,
    address: &str,
    service: Option<ServiceId>,
    left: Duration,
) -> Result<Reached> {
    if !txn.is_free() {
        return Err(spans_nodes(txn, spec, address));
    }
    let session = txn.cluster_session.at(address, service);
    Ok(match txn.env().timeout(left.min(REACH_MAX), session).await {
        Ok(Ok(handle)) if txn.move_to(&handle) => Reached::Yes,
        Ok(Ok(_)) => return Err(spans_nodes(txn, spec, address)),
        Ok(Err(e)) if unreachable(&e) => {
            Reached::No(not_reached(ErrorKind::Unavailable, address).with_source(e))
        }
        Ok(Err(e)) => return Err(e),
        Err(_) if left > REACH_MAX => Reached::No(not_reached(ErrorKind::Unavailable, address)),
        Err(_) => Reached::No(not_reached(ErrorKind::Timeout, address)),
    })
}

fn owner(error: &Error) -> Option<(String, Option<ServiceId>)> {
    match error.detail() {
        Some(Detail::Owner { service, address, .. }) => Some((address.clone(), Some(*service))),
        _ => None,
    }
}

/// The owner of `table`, if the leader knows it and responds within `patience`.
async fn owner_by_leader(
    txn: &ClientTxn,
    table: &TableRef,
    patience: Duration,
) -> Option<(String, Option<ServiceId>)> {
    let allocator = txn.cluster_session.home.shared.node.client.allocator();
    let latest = txn.env().timeout(patience, allocator.latest(table));
    let bind = latest.await.ok()?.ok()??;
    (bind.state == BindState::Bound && !bind.address.is_empty())
        .then_some((bind.address, Some(bind.bind.owner)))
}

fn not_reached(kind: ErrorKind, address: &str) -> Error {
    Error::new(
        kind,
        "the table's owner cannot be reached: try again, it has the table until its \
        lease has run out",
    )
    .with("owner", address)
}

fn spans_nodes(txn: &ClientTxn, spec: &LockSpec, address: &str) -> Error {
    Error::new(
        ErrorKind::SpansNodes,
        "another node owns this table than the one where the transaction is, and a transaction \
         lives on one node: end it, and lock \
         the tables of the two nodes in transactions of their own",
    )
    .with("table", &spec.table)
    .with("owner", address)
    .with("node", txn.node())
}
