//! What nodes and the allocator tell each other.
//!
//! Promises are rounded down and waits up to whole milliseconds, so that neither side relies on
//! more than was meant.

use std::time::Duration;

use lockservice_core::allocator::{
    AllocatorStatus, BeginCommit, BoundTable, CannotCommit, CommitAdmission, CommitWindow,
    Incarnation, Latest, LeaseAck, Progress, Registration, Report, ReservedTokens, ServiceStatus,
    TokenBlock,
};
use lockservice_core::store::{ClusterConstants, Proof, ServiceState};
use lockservice_core::{
    CommitAttempt, Epoch, Error, ErrorKind, FencingToken, NodeName, Nonce, Result, ServiceId, TxnId,
};

use super::{
    bind_from_proto, bind_status_from_proto, bind_status_to_proto, bind_to_proto, error_from_proto,
    error_to_proto, millis_down, millis_up, presented_from_proto, txn_from_proto,
};
use crate::proto;

/// How far an allocator has come as a message.
pub fn progress_to_proto(at: Progress) -> proto::Progress {
    proto::Progress {
        epoch: at.epoch.get(),
        write: at.write,
        high_water: at.high_water,
        leader: at.leader.get(),
    }
}

/// How far an allocator had come, as a message tells; nowhere if it does not.
pub fn progress_from_proto(at: Option<proto::Progress>) -> Progress {
    let at = at.unwrap_or_default();
    Progress {
        epoch: Epoch::new(at.epoch),
        write: at.write,
        high_water: at.high_water,
        leader: Nonce::new(at.leader),
    }
}

/// A report as a message.
pub fn report_to_proto(report: &Report) -> proto::ReportRequest {
    let proof = report.proof.as_bytes().to_vec().into();
    proto::ReportRequest { observed: Some(progress_to_proto(report.observed)), proof }
}

/// The report that a message tells of.
pub fn report_from_proto(report: proto::ReportRequest) -> Report {
    Report {
        observed: progress_from_proto(report.observed),
        proof: Proof::from_bytes(&report.proof),
    }
}

/// That something was done as a message.
pub fn acknowledged_to_proto(at: Progress) -> proto::Acknowledged {
    proto::Acknowledged { at: Some(progress_to_proto(at)) }
}

/// An incarnation and its nonce as a message.
pub fn incarnation_to_proto(service: ServiceId, nonce: Nonce) -> proto::IncarnationRef {
    proto::IncarnationRef { service: service.get(), nonce: nonce.get() }
}

/// The incarnation and the nonce that a message tells of.
pub fn incarnation_from_proto(
    incarnation: Option<proto::IncarnationRef>,
) -> Result<(ServiceId, Nonce)> {
    let incarnation = incarnation.ok_or_else(|| invalid("the request names no incarnation"))?;
    Ok((ServiceId::new(incarnation.service), Nonce::new(incarnation.nonce)))
}

/// A node's request to start as a message.
pub fn registration_to_proto(request: &Registration) -> proto::RegisterRequest {
    proto::RegisterRequest {
        node: request.node.to_string(),
        nonce: request.nonce.get(),
        address: request.address.clone(),
        replaces: request.replaces.map(|(service, nonce)| incarnation_to_proto(service, nonce)),
    }
}

/// The request to start that a message tells of.
pub fn registration_from_proto(request: proto::RegisterRequest) -> Result<Registration> {
    Ok(Registration {
        node: NodeName::new(&request.node)?,
        nonce: Nonce::new(request.nonce),
        address: request.address,
        replaces: request
            .replaces
            .map(|replaced| incarnation_from_proto(Some(replaced)))
            .transpose()?,
    })
}

/// A new incarnation as a message.
pub fn started_to_proto(started: &Incarnation) -> proto::RegisterResponse {
    proto::RegisterResponse {
        service: started.service.get(),
        at: Some(progress_to_proto(started.at)),
        lease_ttl_ms: millis_down(started.lease_ttl),
        constant_leadership_ttl_ms: started.constants.leadership_ttl_ms,
        constant_lease_ttl_ms: started.constants.lease_ttl_ms,
    }
}

/// The new incarnation that a message tells of.
pub fn started_from_proto(started: proto::RegisterResponse) -> Incarnation {
    Incarnation {
        service: ServiceId::new(started.service),
        at: progress_from_proto(started.at),
        lease_ttl: Duration::from_millis(started.lease_ttl_ms),
        constants: ClusterConstants {
            leadership_ttl_ms: started.constant_leadership_ttl_ms,
            lease_ttl_ms: started.constant_lease_ttl_ms,
        },
    }
}

/// A renewed lease as a message.
pub fn lease_to_proto(ack: &LeaseAck) -> proto::KeepaliveResponse {
    proto::KeepaliveResponse {
        at: Some(progress_to_proto(ack.at)),
        lease_ttl_ms: millis_down(ack.lease_ttl),
    }
}

/// The renewed lease that a message tells of.
pub fn lease_from_proto(ack: proto::KeepaliveResponse) -> LeaseAck {
    LeaseAck { at: progress_from_proto(ack.at), lease_ttl: Duration::from_millis(ack.lease_ttl_ms) }
}

/// Whom a table is bound to, as a message.
pub fn bound_to_proto(bound: &BoundTable) -> proto::BindResponse {
    proto::BindResponse {
        bind: Some(bind_to_proto(&bound.bind)),
        node: bound.node.to_string(),
        address: bound.address.clone(),
        at: Some(progress_to_proto(bound.at)),
        tokens: bound.tokens.as_ref().map(tokens_to_proto),
    }
}

/// Whom a table is bound to, as a message tells.
pub fn bound_from_proto(bound: proto::BindResponse) -> Result<BoundTable> {
    Ok(BoundTable {
        bind: bind_from_proto(
            bound.bind.ok_or_else(|| invalid("an answer about a bind comes without it"))?,
        )?,
        node: NodeName::new(&bound.node)?,
        address: bound.address,
        at: progress_from_proto(bound.at),
        tokens: bound.tokens.map(tokens_from_proto).transpose()?,
    })
}

/// A block of tokens as a message.
pub fn tokens_to_proto(block: &TokenBlock) -> proto::TokenBlock {
    proto::TokenBlock { next: block.next.get(), end: block.end.get() }
}

/// The block of tokens that a message tells of.
pub fn tokens_from_proto(block: proto::TokenBlock) -> Result<TokenBlock> {
    if block.next > block.end {
        return Err(invalid("a block of tokens ends before it begins"));
    }
    Ok(TokenBlock { next: FencingToken::new(block.next), end: FencingToken::new(block.end) })
}

/// A further block of tokens as a message.
pub fn reserved_to_proto(reserved: &ReservedTokens) -> proto::ReserveTokensResponse {
    proto::ReserveTokensResponse {
        tokens: Some(tokens_to_proto(&reserved.tokens)),
        at: Some(progress_to_proto(reserved.at)),
    }
}

/// The further block of tokens that a message tells of.
pub fn reserved_from_proto(reserved: proto::ReserveTokensResponse) -> Result<ReservedTokens> {
    let tokens =
        reserved.tokens.ok_or_else(|| invalid("an answer about tokens comes without them"))?;
    Ok(ReservedTokens { tokens: tokens_from_proto(tokens)?, at: progress_from_proto(reserved.at) })
}

/// What is known of a table as a message.
pub fn latest_to_proto(latest: &Latest) -> proto::LatestResponse {
    proto::LatestResponse {
        bind: latest.bind.as_ref().map(bind_status_to_proto),
        at: Some(progress_to_proto(latest.at)),
    }
}

/// What is known of a table, as a message tells.
pub fn latest_from_proto(latest: proto::LatestResponse) -> Result<Latest> {
    let bind = latest.bind.map(bind_status_from_proto).transpose()?;
    Ok(Latest { bind, at: progress_from_proto(latest.at) })
}

/// A request to validate a commit as a message. The time asked for is never shorter at its least,
/// nor longer at its most.
pub fn begin_commit_to_proto(request: &BeginCommit) -> proto::BeginCommitRequest {
    let binds = request.binds.iter().map(|bind| proto::Bind {
        group: bind.table.group.to_string(),
        table: bind.table.name.to_string(),
        // What is presented is compared by name, owner and version.
        table_id: 0,
        partition: bind.partition,
        owner: bind.owner.get(),
        version: bind.version.get(),
    });
    proto::BeginCommitRequest {
        txn: request.txn.to_string(),
        binds: binds.collect(),
        attempt: request.attempt.get(),
        least_ms: millis_up(request.asked.least),
        most_ms: millis_down(request.asked.most),
    }
}

/// The request to validate a commit that a message tells of.
pub fn begin_commit_from_proto(request: proto::BeginCommitRequest) -> Result<BeginCommit> {
    Ok(BeginCommit {
        txn: txn_from_proto(&request.txn)?,
        binds: request.binds.into_iter().map(presented_from_proto).collect::<Result<_>>()?,
        attempt: CommitAttempt::new(request.attempt),
        asked: CommitWindow {
            least: Duration::from_millis(request.least_ms),
            most: Duration::from_millis(request.most_ms),
        },
    })
}

/// An admitted commit as a message.
pub fn admission_to_proto(admission: &CommitAdmission) -> proto::BeginCommitResponse {
    proto::BeginCommitResponse {
        commit_before_ms: millis_down(admission.commit_before),
        at: Some(progress_to_proto(admission.at)),
    }
}

/// The admitted commit that a message tells of.
pub fn admission_from_proto(admission: proto::BeginCommitResponse) -> CommitAdmission {
    CommitAdmission {
        commit_before: Duration::from_millis(admission.commit_before_ms),
        at: progress_from_proto(admission.at),
    }
}

/// What became of transactions that are to commit no more, as a message.
pub fn cannot_commit_to_proto(answer: &CannotCommit) -> proto::CannotCommitResponse {
    proto::CannotCommitResponse {
        tombstoned: txns_to_proto(&answer.tombstoned),
        committing: txns_to_proto(&answer.committing),
        failed: answer.failed.iter().map(failure_to_proto).collect(),
        at: Some(progress_to_proto(answer.at)),
    }
}

/// What became of transactions that are to commit no more, as a message tells.
pub fn cannot_commit_from_proto(answer: proto::CannotCommitResponse) -> Result<CannotCommit> {
    Ok(CannotCommit {
        at: progress_from_proto(answer.at),
        tombstoned: txns_from_proto(&answer.tombstoned)?,
        committing: txns_from_proto(&answer.committing)?,
        failed: answer.failed.into_iter().map(failure_from_proto).collect::<Result<_>>()?,
    })
}

fn failure_to_proto((txn, error): &(TxnId, Error)) -> proto::TxnFailure {
    proto::TxnFailure { txn: txn.to_string(), error: Some(error_to_proto(error)) }
}

fn failure_from_proto(failure: proto::TxnFailure) -> Result<(TxnId, Error)> {
    let error = failure.error.ok_or_else(|| invalid("a failure comes without its error"))?;
    Ok((txn_from_proto(&failure.txn)?, error_from_proto(error)))
}

/// Transaction ids as texts.
pub fn txns_to_proto(txns: &[TxnId]) -> Vec<String> {
    txns.iter().map(TxnId::to_string).collect()
}

/// The transaction ids that texts name.
pub fn txns_from_proto(txns: &[String]) -> Result<Vec<TxnId>> {
    txns.iter().map(|txn| txn_from_proto(txn)).collect()
}

/// A status in parts of at most `lines` nodes or binds; at least one part.
pub fn status_to_proto(
    status: AllocatorStatus,
    lines: usize,
) -> impl Iterator<Item = proto::StatusPart> + Send + 'static {
    let AllocatorStatus { at, services, binds } = status;
    let part = move || proto::StatusPart {
        at: Some(progress_to_proto(at)),
        ..proto::StatusPart::default()
    };
    let (mut services, mut binds) = (services.into_iter(), binds.into_iter());
    let mut first = true;
    std::iter::from_fn(move || {
        let nodes: Vec<_> =
            services.by_ref().take(lines).map(|service| node_to_proto(&service)).collect();
        let binds: Vec<_> = binds
            .by_ref()
            .take(lines - nodes.len())
            .map(|bind| bind_status_to_proto(&bind))
            .collect();
        let empty = nodes.is_empty() && binds.is_empty();
        (std::mem::take(&mut first) || !empty).then(|| proto::StatusPart { nodes, binds, ..part() })
    })
}

/// Adds a part of a status to what came before it.
pub fn add_status_from_proto(status: &mut AllocatorStatus, part: proto::StatusPart) -> Result<()> {
    status.at = progress_from_proto(part.at);
    for node in part.nodes {
        status.services.push(node_from_proto(&node)?);
    }
    for bind in part.binds {
        status.binds.push(bind_status_from_proto(bind)?);
    }
    Ok(())
}

fn node_to_proto(service: &ServiceStatus) -> proto::NodeStatus {
    let state = match service.state {
        ServiceState::Live => "live",
        ServiceState::Fenced => "fenced",
        ServiceState::Resigned => "resigned",
    };
    proto::NodeStatus {
        service: service.id.get(),
        node: service.node.to_string(),
        address: service.address.clone(),
        state: state.to_owned(),
    }
}

fn node_from_proto(node: &proto::NodeStatus) -> Result<ServiceStatus> {
    let state = match node.state.as_str() {
        "live" => ServiceState::Live,
        "fenced" => ServiceState::Fenced,
        "resigned" => ServiceState::Resigned,
        other => {
            return Err(invalid("a node is in a state that this version does not know")
                .with("state", other));
        }
    };
    Ok(ServiceStatus {
        id: ServiceId::new(node.service),
        node: NodeName::new(&node.node)?,
        address: node.address.clone(),
        state,
    })
}

pub(super) fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use lockservice_core::allocator::{Bind, BindState, BindStatus};
    use lockservice_core::{BindVersion, TableId, TableRef};

    use super::*;

    fn bind(n: u64) -> Bind {
        Bind {
            table: TableRef::new("g", format!("t{n}")).expect("a name"),
            id: TableId::new(n),
            partition: 0,
            owner: ServiceId::new(1 << 32 | 1),
            version: BindVersion::new(1 << 32 | n),
        }
    }

    #[test]
    fn what_nodes_and_the_allocator_say_crosses_the_wire() {
        let node = NodeName::new("n").expect("a name");
        let at = Progress {
            epoch: Epoch::new(3),
            write: 99,
            high_water: 12_345,
            leader: Nonce::new(77),
        };
        for replaces in [None, Some((ServiceId::new(1 << 32 | 4), Nonce::new(5)))] {
            let register = Registration {
                node: node.clone(),
                nonce: Nonce::new(7),
                address: "a:1".to_owned(),
                replaces,
            };
            assert_eq!(
                registration_from_proto(registration_to_proto(&register)).expect("own message"),
                register
            );
        }
        let report = Report::new(at, &lockservice_core::store::Cluster::random());
        assert_eq!(report_from_proto(report_to_proto(&report)), report);
        let started = Incarnation {
            service: ServiceId::new(8),
            at,
            lease_ttl: Duration::from_millis(1_234),
            constants: ClusterConstants { leadership_ttl_ms: 5_678, lease_ttl_ms: 1_234 },
        };
        assert_eq!(started_from_proto(started_to_proto(&started)), started);
        let ack = LeaseAck { at, lease_ttl: Duration::from_millis(4_321) };
        assert_eq!(lease_from_proto(lease_to_proto(&ack)), ack);
        for tokens in
            [None, Some(TokenBlock { next: FencingToken::new(5), end: FencingToken::new(9) })]
        {
            let bound = BoundTable {
                bind: bind(1),
                node: node.clone(),
                address: "b:2".to_owned(),
                at,
                tokens,
            };
            assert_eq!(bound_from_proto(bound_to_proto(&bound)).expect("own message"), bound);
        }
        assert!(tokens_from_proto(proto::TokenBlock { next: 2, end: 1 }).is_err());
        let tokens = TokenBlock { next: FencingToken::new(5), end: FencingToken::new(9) };
        let reserved = ReservedTokens { tokens, at };
        assert_eq!(
            reserved_from_proto(reserved_to_proto(&reserved)).expect("own message"),
            reserved
        );
        let state = BindState::Bound;
        for found in [
            None,
            Some(BindStatus {
                bind: bind(1),
                node: node.clone(),
                address: "b:2".to_owned(),
                state,
            }),
        ] {
            let latest = Latest { bind: found, at };
            assert_eq!(latest_from_proto(latest_to_proto(&latest)).expect("own message"), latest);
        }
        assert_eq!(progress_from_proto(acknowledged_to_proto(at).at), at);
        let txn = TxnId::new(ServiceId::new(1 << 32 | 1), 5, true);
        let why = Error::new(ErrorKind::UnknownOutcome, "who knows").with("txn", txn);
        let answer = CannotCommit {
            at,
            tombstoned: vec![txn],
            committing: vec![txn, txn],
            failed: vec![(txn, why.clone())],
        };
        let back = cannot_commit_from_proto(cannot_commit_to_proto(&answer)).expect("own message");
        assert_eq!((back.at, back.tombstoned, back.committing), (at, vec![txn], vec![txn, txn]));
        let (failed, error) = &back.failed[0];
        assert_eq!((*failed, error.kind(), error.to_string()), (txn, why.kind(), why.to_string()));
        let admission = CommitAdmission { commit_before: Duration::from_millis(77), at };
        assert_eq!(admission_from_proto(admission_to_proto(&admission)), admission);
        let request = BeginCommit {
            txn,
            binds: vec![(&bind(1)).into()],
            attempt: CommitAttempt::new(6),
            asked: CommitWindow { least: Duration::from_millis(1), most: Duration::from_millis(2) },
        };
        assert_eq!(
            begin_commit_from_proto(begin_commit_to_proto(&request)).expect("own message"),
            request
        );
    }

    #[test]
    fn a_status_crosses_the_wire_in_parts_of_bounded_size() {
        let service = |n| ServiceStatus {
            id: ServiceId::new(n),
            node: NodeName::new(format!("n{n}")).expect("a name"),
            address: "a:1".to_owned(),
            state: [ServiceState::Live, ServiceState::Fenced, ServiceState::Resigned]
                [n as usize % 3],
        };
        let status_of = |n| BindStatus {
            bind: bind(n),
            node: NodeName::new("n").expect("a name"),
            address: "a:1".to_owned(),
            state: BindState::Bound,
        };
        for (nodes, binds, parts) in [(0, 0, 1), (3, 0, 1), (2, 9, 3), (4, 5, 3)] {
            let status = AllocatorStatus {
                at: Progress {
                    epoch: Epoch::new(1),
                    write: 2,
                    high_water: 3,
                    leader: Nonce::new(4),
                },
                services: (0..nodes).map(service).collect(),
                binds: (0..binds).map(status_of).collect(),
            };
            let sent: Vec<_> = status_to_proto(status.clone(), 4).collect();
            assert_eq!(sent.len(), parts);
            assert!(sent.iter().all(|part| part.nodes.len() + part.binds.len() <= 4));
            let mut got = AllocatorStatus::default();
            for part in sent {
                add_status_from_proto(&mut got, part).expect("own message");
            }
            assert_eq!(got, status);
        }
    }
}
