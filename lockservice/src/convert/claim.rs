//! Claims of what was held before a restart (P6).

use lockservice_core::allocator::{ClaimedTable, TableClaim};
use lockservice_core::service::{ClaimedLocks, TxnClaim};
use lockservice_core::store::TableHolders;
use lockservice_core::{
    BindVersion, FencingToken, HolderMark, Nonce, Result, Sequence, ServiceId, TableId, TableRef,
    TxnNumber,
};

use super::allocator::invalid;
use super::{
    bound_from_proto, bound_to_proto, incarnation_from_proto, incarnation_to_proto,
    items_from_proto, millis_up, mode_from_proto, table_from_proto, txn_from_proto,
};
use crate::proto;

/// A claim of a transaction, of at most `most` items.
///
/// # Errors
/// `InvalidArgument` if there are more, or the message cannot be read.
pub fn claim_from_proto(claim: &proto::ClaimOp, most: usize) -> Result<TxnClaim> {
    let mut room = most;
    let mut locks = Vec::with_capacity(claim.locks.len());
    for held in &claim.locks {
        let items = items_from_proto(&held.rows, &held.ranges, room)?;
        if items.is_empty() {
            return Err(invalid("a claim names nothing: give rows or ranges"));
        }
        room -= items.len();
        locks.push(ClaimedLocks {
            table: table_from_proto(&held.group, &held.table)?,
            version: BindVersion::new(held.version),
            token: FencingToken::new(held.token),
            mode: mode_from_proto(held.mode)?,
            items,
        });
    }
    Ok(TxnClaim {
        number: TxnNumber::new(claim.txn),
        id: if claim.id.is_empty() { None } else { Some(txn_from_proto(&claim.id)?) },
        label: claim.label.clone(),
        next: Sequence::new(claim.next_sequence),
        locks,
    })
}

/// A resignation that leaves tables held, or none, as a message.
pub fn resignation_to_proto(
    service: ServiceId,
    nonce: Nonce,
    held: &[TableHolders],
) -> proto::ResignRequest {
    proto::ResignRequest {
        incarnation: Some(incarnation_to_proto(service, nonce)),
        held: held.iter().map(holders_to_proto).collect(),
    }
}

/// The resignation in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn resignation_from_proto(
    request: proto::ResignRequest,
) -> Result<(ServiceId, Nonce, Vec<TableHolders>)> {
    let (service, nonce) = incarnation_from_proto(request.incarnation)?;
    Ok((service, nonce, request.held.into_iter().map(holders_from_proto).collect()))
}

/// The request to bind a table for claims, as a message.
pub fn table_claim_to_proto(service: ServiceId, claim: &TableClaim) -> proto::ClaimTableRequest {
    proto::ClaimTableRequest {
        service: service.get(),
        group: claim.table.group.to_string(),
        table: claim.table.name.to_string(),
        version: claim.version.get(),
    }
}

/// The request to bind a table for claims, in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn table_claim_from_proto(
    request: &proto::ClaimTableRequest,
) -> Result<(ServiceId, TableClaim)> {
    let table = TableRef::new(&request.group, &request.table)?;
    let version = BindVersion::new(request.version);
    Ok((ServiceId::new(request.service), TableClaim { table, version }))
}

fn holders_to_proto(held: &TableHolders) -> proto::TableHolders {
    proto::TableHolders {
        table_id: held.table.get(),
        holders: held.holders.iter().map(|mark| mark.get()).collect(),
        from: held.from.get(),
        others: held.others,
        waiters: held.waiters.iter().map(|mark| mark.get()).collect(),
    }
}

fn holders_from_proto(held: proto::TableHolders) -> TableHolders {
    TableHolders {
        table: TableId::new(held.table_id),
        from: BindVersion::new(held.from),
        holders: held.holders.into_iter().map(HolderMark::new).collect(),
        waiters: held.waiters.into_iter().map(HolderMark::new).collect(),
        others: held.others,
    }
}

/// A bind from which holders claim, as a message.
pub fn left_to_proto(left: &TableClaim) -> proto::LeftTable {
    proto::LeftTable {
        group: left.table.group.to_string(),
        table: left.table.name.to_string(),
        version: left.version.get(),
    }
}

/// The bind from which holders claim, in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn left_from_proto(left: &proto::LeftTable) -> Result<TableClaim> {
    let table = TableRef::new(&left.group, &left.table)?;
    Ok(TableClaim { table, version: BindVersion::new(left.version) })
}

/// A table that was bound for claims, as a message.
pub fn claimed_to_proto(claimed: &ClaimedTable) -> proto::ClaimTableResponse {
    let holders = claimed.holders.iter().flatten();
    proto::ClaimTableResponse {
        bound: Some(bound_to_proto(&claimed.bound)),
        claimable_from: claimed.claimable_from.get(),
        tokens_below: claimed.tokens_below.get(),
        wait_ms: millis_up(claimed.wait),
        holders_known: claimed.holders.is_some(),
        holders: holders.map(|mark| mark.get()).collect(),
        waiters: claimed.waiters.iter().map(|mark| mark.get()).collect(),
    }
}

/// The table that was bound for claims, in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn claimed_from_proto(claimed: proto::ClaimTableResponse) -> Result<ClaimedTable> {
    let bound = claimed.bound.ok_or_else(|| invalid("a response about a bind comes without it"))?;
    let holders = claimed.holders.into_iter().map(HolderMark::new).collect();
    Ok(ClaimedTable {
        bound: bound_from_proto(bound)?,
        claimable_from: BindVersion::new(claimed.claimable_from),
        tokens_below: FencingToken::new(claimed.tokens_below),
        wait: std::time::Duration::from_millis(claimed.wait_ms),
        holders: claimed.holders_known.then_some(holders),
        waiters: claimed.waiters.into_iter().map(HolderMark::new).collect(),
    })
}
