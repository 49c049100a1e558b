//! The frames for the supervisor that could not be written yet. None is ever dropped.

use std::io;

use super::frame::{FRAME_BYTES, Frame};

/// Frames in their order. They need no limit: only the latest frame of a kind waits, and there are
/// few kinds and few signals.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Vec<Frame>,
    /// The frame that is being written, and the number of its bytes that were written.
    writing: Option<([u8; FRAME_BYTES], usize)>,
}

impl Outbox {
    /// Adds a frame.
    pub(super) fn push(&mut self, frame: Frame) {
        self.waiting.retain(|earlier| !earlier.is_said_by(frame));
        self.waiting.push(frame);
    }

    /// True if there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.writing.is_none() && self.waiting.is_empty()
    }

    /// Writes as much as `write` takes. True if all was written.
    pub(super) fn flush(
        &mut self,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        loop {
            let (bytes, gone) = match self.writing.take() {
                Some(writing) => writing,
                None if self.waiting.is_empty() => return Ok(true),
                None => (self.waiting.remove(0).encode(), 0),
            };
            match write(&bytes[gone..]) {
                Ok(more) if gone + more == FRAME_BYTES => {}
                Ok(more) => self.writing = Some((bytes, gone + more)),
                Err(error) => {
                    self.writing = Some((bytes, gone));
                    return if error.kind() == io::ErrorKind::WouldBlock {
                        Ok(false)
                    } else {
                        Err(error)
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockservice_core::clock::Time;

    use super::*;

    fn deadline(seconds: u64) -> Frame {
        Frame::Deadline(Time::from_origin(Duration::from_secs(seconds)))
    }

    #[test]
    fn a_frame_that_the_socket_does_not_take_yet_is_sent_later_and_whole() {
        let mut outbox = Outbox::default();
        outbox.push(Frame::Signal(15));
        let mut sent = Vec::new();
        let mut room = 0;
        let mut write = |bytes: &[u8]| {
            let taken = bytes.len().min(room);
            room -= taken;
            sent.extend_from_slice(&bytes[..taken]);
            if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        };
        assert!(!outbox.flush(&mut write).expect("it only has no room"));
        assert!(!outbox.is_empty());
        let mut write = |bytes: &[u8]| {
            sent.extend_from_slice(&bytes[..bytes.len().min(4)]);
            Ok(bytes.len().min(4))
        };
        assert!(outbox.flush(&mut write).expect("it has room"));
        assert!(outbox.is_empty());
        assert_eq!(sent, Frame::Signal(15).encode());
    }

    #[test]
    fn what_waits_is_bounded_however_long_the_supervisor_reads_nothing() {
        let mut outbox = Outbox::default();
        for second in 0..10_000 {
            outbox.push(deadline(second));
            outbox.push(Frame::Signal(15));
            outbox.push(Frame::Stop);
        }
        assert_eq!(outbox.waiting, [deadline(9_999), Frame::Signal(15), Frame::Stop]);
    }
}
