//! [`SessionHandle`]: a session, as operators name it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ServiceId, SessionId};
use crate::error::{Error, ErrorKind};

number! {
    /// The number of a session at its incarnation, from 1, in the order in which they were opened.
    SessionNumber
}

number! {
    /// A digest of a session's id: names the session to a party that is not to use it.
    HolderMark
}

impl HolderMark {
    /// That of a session.
    pub fn of(session: SessionId) -> Self {
        let digest = Sha256::digest(session.get().to_be_bytes());
        // The first eight of 32 bytes.
        let first = digest.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte));
        Self(first)
    }
}

/// A session, as operators name it: the incarnation that opened it, and its number there.
///
/// It is no secret, and lets nobody use the session: the [`SessionId`](super::SessionId) does that.
/// A restarted node is another incarnation, so that an old handle never names a new session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionHandle {
    /// The incarnation that opened the session.
    pub service: ServiceId,
    /// The session's number there.
    pub number: SessionNumber,
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionHandle({self})")
    }
}

impl fmt::Display for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{:x}-{:x}", self.service.get(), self.number.get())
    }
}

impl std::str::FromStr for SessionHandle {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let hex = |part: &str| u64::from_str_radix(part, 16).ok();
        text.strip_prefix('s')
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(service, number)| Some((hex(service)?, hex(number)?)))
            .map(|(service, number)| Self {
                service: ServiceId::new(service),
                number: SessionNumber::new(number),
            })
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    "this is no handle of a session: take it from the list of sessions, for \
                     example s100000001-7",
                )
                .with("handle", text)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_read_as_it_is_shown_and_a_transaction_is_none() {
        let handle =
            SessionHandle { service: ServiceId::new(1 << 32 | 1), number: SessionNumber::new(26) };
        assert_eq!(handle.to_string(), "s100000001-1a");
        assert_eq!("s100000001-1a".parse::<SessionHandle>().expect("as shown"), handle);
        for text in ["100000001-1a", "s1", "s-", "sx-1", ""] {
            let kind = text.parse::<SessionHandle>().expect_err("no handle").kind();
            assert_eq!(kind, ErrorKind::InvalidArgument, "{text}");
        }
    }
}
