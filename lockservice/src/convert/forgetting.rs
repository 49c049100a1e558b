//! The messages between nodes and the allocator about tables that are forgotten.

use lockservice_core::Result;
use lockservice_core::allocator::{ForgetOutcome, Forgetting, Released};

use super::{
    bind_status_from_proto, bind_status_to_proto, error_from_proto, error_to_proto,
    progress_from_proto, progress_to_proto,
};
use crate::proto;
use crate::proto::forget_table_response::Outcome;

/// The response to a release as a message.
pub fn released_to_proto(released: &Released) -> proto::ReleaseTableResponse {
    proto::ReleaseTableResponse {
        kept: released.kept.as_ref().map(error_to_proto),
        at: Some(progress_to_proto(released.at)),
    }
}

/// The response to a release in a message.
pub fn released_from_proto(released: proto::ReleaseTableResponse) -> Released {
    Released { kept: released.kept.map(error_from_proto), at: progress_from_proto(released.at) }
}

/// The fate of a table that an operator wants forgotten, as a message.
pub fn forgetting_to_proto(response: &Forgetting) -> proto::ForgetTableResponse {
    let outcome = match &response.outcome {
        ForgetOutcome::Forgotten => Outcome::Forgotten(proto::Forgotten {}),
        ForgetOutcome::Unknown => Outcome::Unknown(proto::UnknownTable {}),
        ForgetOutcome::Owned(bind) => Outcome::Owned(bind_status_to_proto(bind)),
    };
    proto::ForgetTableResponse { outcome: Some(outcome), at: Some(progress_to_proto(response.at)) }
}

/// The fate of a table that an operator wants forgotten, from a message.
///
/// # Errors
/// `InvalidArgument` if the message cannot be read.
pub fn forgetting_from_proto(response: proto::ForgetTableResponse) -> Result<Forgetting> {
    let outcome = match response.outcome {
        Some(Outcome::Forgotten(_)) => ForgetOutcome::Forgotten,
        Some(Outcome::Unknown(_)) => ForgetOutcome::Unknown,
        Some(Outcome::Owned(bind)) => ForgetOutcome::Owned(bind_status_from_proto(bind)?),
        None => {
            return Err(super::allocator::invalid(
                "the response does not say what became of the table",
            ));
        }
    };
    Ok(Forgetting { outcome, at: progress_from_proto(response.at) })
}

#[cfg(test)]
mod tests {
    use lockservice_core::allocator::{Bind, BindSlot, BindState, BindStatus, Progress};
    use lockservice_core::{
        BindVersion, Epoch, EpochNumber, Error, ErrorKind, NodeName, Nonce, ServiceId, TableId,
        TableRef, WriteNumber,
    };

    use super::*;

    #[test]
    fn what_became_of_a_table_crosses_the_wire() {
        let at = Progress {
            epoch: Epoch::new(3),
            write: WriteNumber::new(99),
            high_water: EpochNumber::new(12_345),
            leader: Nonce::new(77),
        };
        let bind = BindStatus {
            bind: Bind {
                table: TableRef::new("g", "t").expect("names"),
                id: TableId::new(1),
                partition: 0,
                owner: ServiceId::new(2),
                version: BindVersion::new(3),
                slot: BindSlot::NONE,
            },
            node: NodeName::new("n").expect("a name"),
            address: "b:2".to_owned(),
            state: BindState::Bound,
        };
        for outcome in
            [ForgetOutcome::Forgotten, ForgetOutcome::Unknown, ForgetOutcome::Owned(bind)]
        {
            let response = Forgetting { outcome, at };
            assert_eq!(
                forgetting_from_proto(forgetting_to_proto(&response)).expect("own message"),
                response
            );
        }
        assert!(forgetting_from_proto(proto::ForgetTableResponse::default()).is_err());
        for kept in [None, Some(Error::new(ErrorKind::TableInUse, "a commit").with("table", "g/t"))]
        {
            let released =
                released_from_proto(released_to_proto(&Released { kept: kept.clone(), at }));
            assert_eq!(released.at, at);
            assert_eq!(released.kept.map(|e| e.to_string()), kept.map(|e| e.to_string()));
        }
    }
}
