//! The status of a cluster, in parts.

use lockservice_core::allocator::{AllocatorStatus, ServiceStatus};
use lockservice_core::store::ServiceState;
use lockservice_core::{NodeName, Result, ServiceId};

use super::allocator::invalid;
use super::{bind_status_from_proto, bind_status_to_proto, progress_from_proto, progress_to_proto};
use crate::proto;

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
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
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

/// A node as a message.
pub fn node_to_proto(service: &ServiceStatus) -> proto::NodeStatus {
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
        cut: false,
    }
}

/// The node in a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn node_from_proto(node: &proto::NodeStatus) -> Result<ServiceStatus> {
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

#[cfg(test)]
mod tests {
    use lockservice_core::allocator::{BindState, BindStatus, Progress};
    use lockservice_core::{Epoch, EpochNumber, Nonce, WriteNumber};

    use super::*;
    use crate::convert::allocator::tests::bind;

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
                    write: WriteNumber::new(2),
                    high_water: EpochNumber::new(3),
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
