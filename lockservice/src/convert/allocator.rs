//! The messages between nodes and the allocator.
//!
//! Promises are rounded down and waits up to whole milliseconds, so that neither side relies on
//! more than was meant.

use std::time::Duration;

use lockservice_core::allocator::{
    BoundTable, Incarnation, Latest, LeaseAck, Progress, Registration, Report, ReservedTokens,
    TokenBlock,
};
use lockservice_core::store::{ClusterConstants, Proof};
use lockservice_core::{
    Epoch, EpochNumber, Error, ErrorKind, FencingToken, NodeName, Nonce, Result, ServiceId,
    WriteNumber,
};

use super::{
    bind_from_proto, bind_status_from_proto, bind_status_to_proto, bind_to_proto, left_from_proto,
    left_to_proto, millis_down,
};
use crate::proto;

/// The progress of an allocator as a message.
pub fn progress_to_proto(at: Progress) -> proto::Progress {
    proto::Progress {
        epoch: at.epoch.get(),
        write: at.write.get(),
        high_water: at.high_water.get(),
        leader: at.leader.get(),
    }
}

/// The progress of an allocator in a message; none if the message has none.
pub fn progress_from_proto(at: Option<proto::Progress>) -> Progress {
    let at = at.unwrap_or_default();
    Progress {
        epoch: Epoch::new(at.epoch),
        write: WriteNumber::new(at.write),
        high_water: EpochNumber::new(at.high_water),
        leader: Nonce::new(at.leader),
    }
}

/// A report as a message.
pub fn report_to_proto(report: &Report) -> proto::ReportRequest {
    let proof = report.proof.as_bytes().to_vec().into();
    proto::ReportRequest { observed: Some(progress_to_proto(report.observed)), proof }
}

/// The report in a message.
pub fn report_from_proto(report: proto::ReportRequest) -> Report {
    Report {
        observed: progress_from_proto(report.observed),
        proof: Proof::from_bytes(&report.proof),
    }
}

/// A success as a message.
pub fn acknowledged_to_proto(at: Progress) -> proto::Acknowledged {
    proto::Acknowledged { at: Some(progress_to_proto(at)) }
}

/// An incarnation and its nonce as a message.
pub fn incarnation_to_proto(service: ServiceId, nonce: Nonce) -> proto::IncarnationRef {
    proto::IncarnationRef { service: service.get(), nonce: nonce.get() }
}

/// The incarnation and the nonce in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
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

/// The request to start in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
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
        left: started.left.iter().map(left_to_proto).collect(),
    }
}

/// The new incarnation in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn started_from_proto(started: proto::RegisterResponse) -> Result<Incarnation> {
    Ok(Incarnation {
        service: ServiceId::new(started.service),
        at: progress_from_proto(started.at),
        lease_ttl: Duration::from_millis(started.lease_ttl_ms),
        constants: ClusterConstants {
            leadership_ttl_ms: started.constant_leadership_ttl_ms,
            lease_ttl_ms: started.constant_lease_ttl_ms,
        },
        left: started.left.iter().map(left_from_proto).collect::<Result<_>>()?,
    })
}

/// A renewed lease as a message.
pub fn lease_to_proto(ack: &LeaseAck) -> proto::KeepaliveResponse {
    proto::KeepaliveResponse {
        at: Some(progress_to_proto(ack.at)),
        lease_ttl_ms: millis_down(ack.lease_ttl),
    }
}

/// The renewed lease in a message.
pub fn lease_from_proto(ack: proto::KeepaliveResponse) -> LeaseAck {
    LeaseAck { at: progress_from_proto(ack.at), lease_ttl: Duration::from_millis(ack.lease_ttl_ms) }
}

/// The bind of a table, as a message.
pub fn bound_to_proto(bound: &BoundTable) -> proto::BindResponse {
    proto::BindResponse {
        bind: Some(bind_to_proto(&bound.bind)),
        node: bound.node.to_string(),
        address: bound.address.clone(),
        at: Some(progress_to_proto(bound.at)),
        tokens: bound.tokens.as_ref().map(tokens_to_proto),
    }
}

/// The bind of a table in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn bound_from_proto(bound: proto::BindResponse) -> Result<BoundTable> {
    Ok(BoundTable {
        bind: bind_from_proto(
            bound.bind.ok_or_else(|| invalid("a response about a bind comes without it"))?,
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

/// The block of tokens in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
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

/// The further block of tokens in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn reserved_from_proto(reserved: proto::ReserveTokensResponse) -> Result<ReservedTokens> {
    let tokens =
        reserved.tokens.ok_or_else(|| invalid("a response about tokens comes without them"))?;
    Ok(ReservedTokens { tokens: tokens_from_proto(tokens)?, at: progress_from_proto(reserved.at) })
}

/// The latest bind of a table, as a message.
pub fn latest_to_proto(latest: &Latest) -> proto::LatestResponse {
    proto::LatestResponse {
        bind: latest.bind.as_ref().map(bind_status_to_proto),
        at: Some(progress_to_proto(latest.at)),
    }
}

/// The latest bind of a table in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn latest_from_proto(latest: proto::LatestResponse) -> Result<Latest> {
    let bind = latest.bind.map(bind_status_from_proto).transpose()?;
    Ok(Latest { bind, at: progress_from_proto(latest.at) })
}

pub(super) fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

#[cfg(test)]
pub(super) mod tests {
    use lockservice_core::allocator::{Bind, BindSlot, BindState, BindStatus, TableClaim};
    use lockservice_core::{BindVersion, TableId, TableRef};

    use super::*;

    pub(crate) fn bind(n: u64) -> Bind {
        Bind {
            table: TableRef::new("g", format!("t{n}")).expect("a name"),
            id: TableId::new(n),
            partition: 0,
            owner: ServiceId::new(1 << 32 | 1),
            version: BindVersion::new(1 << 32 | n),
            slot: BindSlot::NONE,
        }
    }

    fn node() -> NodeName {
        NodeName::new("n").expect("a name")
    }

    fn progress() -> Progress {
        Progress {
            epoch: Epoch::new(3),
            write: WriteNumber::new(99),
            high_water: EpochNumber::new(12_345),
            leader: Nonce::new(77),
        }
    }

    #[test]
    fn what_an_incarnation_and_its_allocator_say_crosses_the_wire() {
        let (node, at) = (node(), progress());
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
            left: vec![TableClaim {
                table: TableRef::new("g", "t").expect("names"),
                version: BindVersion::new(5),
            }],
        };
        assert_eq!(started_from_proto(started_to_proto(&started)).expect("whole"), started);
        let ack = LeaseAck { at, lease_ttl: Duration::from_millis(4_321) };
        assert_eq!(lease_from_proto(lease_to_proto(&ack)), ack);
        assert_eq!(progress_from_proto(acknowledged_to_proto(at).at), at);
    }

    #[test]
    fn binds_and_tokens_cross_the_wire() {
        let (node, at) = (node(), progress());
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
    }
}
