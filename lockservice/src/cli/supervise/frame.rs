//! The messages between the wrapper and the supervisor: frames of nine bytes, a kind and a number.

use std::time::Duration;

use lockservice_core::clock::Time;

/// Bytes of a frame on the socket.
pub(crate) const FRAME_BYTES: usize = 9;

/// One message. The numbers of times are nanoseconds of `CLOCK_BOOTTIME`: both ends run on one
/// machine, so they compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    /// To the supervisor: the deadline of the lock is now this instant (P2).
    Deadline(Time),
    /// To the supervisor: the lock is lost or about to be; end the command now.
    Stop,
    /// To the supervisor: the command gets this signal.
    Signal(i32),
    /// From the supervisor: the command was stopped by this signal, and the shell does not see that
    /// unless the wrapper stops too.
    Suspended(i32),
    /// From the supervisor, before it ends: the command ended, but some of its processes have not
    /// died of SIGKILL yet.
    Left,
    /// From the supervisor: the command ended by itself, with this exit status.
    Exited(u8),
    /// From the supervisor: the command died of this signal.
    Died(i32),
    /// From the supervisor: the command was ended because the lock was lost.
    Stopped,
    /// From the supervisor: the command could not be started for this reason (an errno).
    Failed(i32),
}

impl Frame {
    /// The frame's bytes.
    pub(crate) fn encode(self) -> [u8; FRAME_BYTES] {
        let (kind, value) = match self {
            Self::Deadline(end) => {
                (1, u64::try_from(end.since_origin().as_nanos()).unwrap_or(u64::MAX))
            }
            Self::Stop => (2, 0),
            Self::Signal(number) => (3, u64::from(number.unsigned_abs())),
            Self::Suspended(number) => (4, u64::from(number.unsigned_abs())),
            Self::Exited(status) => (5, u64::from(status)),
            Self::Stopped => (6, 0),
            Self::Failed(errno) => (7, u64::from(errno.unsigned_abs())),
            Self::Left => (8, 0),
            Self::Died(number) => (9, u64::from(number.unsigned_abs())),
        };
        let mut bytes = [kind; FRAME_BYTES];
        bytes[1..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    /// The frame in these bytes; `None` if they are no frame.
    pub(crate) fn decode(bytes: [u8; FRAME_BYTES]) -> Option<Self> {
        let [kind, value @ ..] = bytes;
        let value = u64::from_le_bytes(value);
        Some(match kind {
            1 => Self::Deadline(Time::from_origin(Duration::from_nanos(value))),
            2 => Self::Stop,
            3 => Self::Signal(i32::try_from(value).ok()?),
            4 => Self::Suspended(i32::try_from(value).ok()?),
            5 => Self::Exited(u8::try_from(value).ok()?),
            6 => Self::Stopped,
            7 => Self::Failed(i32::try_from(value).ok()?),
            8 => Self::Left,
            9 => Self::Died(i32::try_from(value).ok()?),
            _ => return None,
        })
    }

    /// True if `later` supersedes this frame, so that this one need not be sent any more.
    pub(super) fn is_said_by(self, later: Self) -> bool {
        self == later || matches!((self, later), (Self::Deadline(_), Self::Deadline(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_survives_the_socket() {
        for frame in [
            Frame::Deadline(Time::from_origin(Duration::from_nanos(12_345_678_901))),
            Frame::Stop,
            Frame::Signal(15),
            Frame::Suspended(20),
            Frame::Exited(255),
            Frame::Died(9),
            Frame::Stopped,
            Frame::Failed(2),
            Frame::Left,
        ] {
            assert_eq!(Frame::decode(frame.encode()), Some(frame));
        }
        assert_eq!(Frame::decode([10; FRAME_BYTES]), None);
    }
}
