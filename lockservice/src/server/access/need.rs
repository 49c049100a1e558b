//! [`Need`]: what a call needs.

use lockservice_core::{Error, ErrorKind, Result};

use super::{AccessRole, Principal};

/// What a call needs of its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Need {
    /// Nothing: it need not be known.
    Nothing,
    /// To be known.
    Known,
    /// The role `client`.
    Client,
    /// The role `client` or `operator`: where there is a table, the API looks at it.
    ClientOrOperator,
    /// The role `peer` or `operator`.
    PeerOrOperator,
    /// The role `operator`.
    Operator,
    /// The role `peer`.
    Peer,
}

/// Whom a listener is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Port {
    Clients,
    Nodes,
}

impl Need {
    /// What a call of `path` needs.
    pub(in crate::server) fn of(path: &str, port: Port) -> Self {
        if port == Port::Nodes {
            return Self::Peer;
        }
        let (service, call) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        match (service, call) {
            ("grpc.health.v1.Health", _) => Self::Nothing,
            ("lockservice.v1.Locks", _) => Self::Client,
            ("lockservice.v1.Allocator", "BeginCommit" | "FinishCommit" | "Latest") => Self::Client,
            ("lockservice.v1.Allocator", _) => Self::PeerOrOperator,
            ("lockservice.v1.Admin", "GetNode") => Self::Known,
            (
                "lockservice.v1.Admin",
                "ListLocks" | "ListWaits" | "ListBinds" | "ListNodes" | "ListHot",
            ) => Self::ClientOrOperator,
            ("lockservice.v1.Admin", _) => Self::Operator,
            ("lockservice.v1.Peer", _) => Self::Peer,
            _ => Self::Known,
        }
    }

    /// Fails with `NotPermitted` unless the caller has what is needed.
    pub(in crate::server) fn check(self, caller: &Principal) -> Result<()> {
        let roles: &[AccessRole] = match self {
            Self::Nothing | Self::Known => return Ok(()),
            Self::Client => &[AccessRole::Client],
            Self::ClientOrOperator => &[AccessRole::Client, AccessRole::Operator],
            Self::PeerOrOperator => &[AccessRole::Peer, AccessRole::Operator],
            Self::Operator => &[AccessRole::Operator],
            Self::Peer => &[AccessRole::Peer],
        };
        let Principal::Known(known) = caller else { return Ok(()) };
        if roles.iter().any(|role| known.identity.has(*role)) {
            return Ok(());
        }
        let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        Err(Error::new(
            ErrorKind::NotPermitted,
            format!(
                "this call needs the role {}, which the caller's identity does not have",
                names.join(" or ")
            ),
        )
        .with("identity", &known.identity.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_the_api_needs_what_the_table_of_the_module_says() {
        for (call, need) in [
            ("/lockservice.v1.Locks/Session", Need::Client),
            ("/lockservice.v1.Locks/OpenSession", Need::Client),
            ("/lockservice.v1.Locks/CloseSession", Need::Client),
            ("/lockservice.v1.Allocator/BeginCommit", Need::Client),
            ("/lockservice.v1.Allocator/Latest", Need::Client),
            ("/lockservice.v1.Allocator/Status", Need::PeerOrOperator),
            ("/lockservice.v1.Admin/GetNode", Need::Known),
            ("/lockservice.v1.Admin/ListBinds", Need::ClientOrOperator),
            ("/lockservice.v1.Admin/ListNodes", Need::ClientOrOperator),
            ("/lockservice.v1.Admin/ListHot", Need::ClientOrOperator),
            ("/lockservice.v1.Admin/GetStats", Need::Operator),
            ("/lockservice.v1.Admin/DropTable", Need::Operator),
            ("/lockservice.v1.Admin/ListSessions", Need::Operator),
            ("/lockservice.v1.Admin/ListTxns", Need::Operator),
            ("/lockservice.v1.Admin/KillSession", Need::Operator),
            ("/lockservice.v1.Admin/KillTxn", Need::Operator),
            ("/lockservice.v1.Admin/ForceRelease", Need::Operator),
            // One that a later version adds.
            ("/lockservice.v1.Admin/Drain", Need::Operator),
            ("/lockservice.v1.Peer/Report", Need::Peer),
            ("/grpc.health.v1.Health/Check", Need::Nothing),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::Known),
            ("", Need::Known),
        ] {
            assert_eq!(Need::of(call, Port::Clients), need, "{call}");
            assert_eq!(Need::of(call, Port::Nodes), Need::Peer, "{call}");
        }
    }
}
