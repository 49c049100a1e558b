//! Keys, ranges of keys, and the items of a request.
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | a key |
//! | `range.rs` | a range of keys; the order of bounds |
//! | `item.rs` | the item of a lock, and its mode |

mod item;
mod range;

use std::fmt;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub use self::item::{LockItem, LockMode};
pub use self::range::KeyRange;
pub(crate) use self::range::{compare_ends, compare_starts, starts_before_end};
use crate::error::{Error, ErrorKind};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// A row's key: 1 to 4,096 opaque bytes, ordered lexicographically. Up to 22 bytes are kept inline.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Key(SmallVec<[u8; 22]>);

impl Key {
    /// The content of a slot without a key. It is no key: none is empty.
    pub(crate) const fn empty() -> Self {
        Self(SmallVec::new_const())
    }

    /// Checks and copies a key.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) if it is empty, or longer than
    /// [`KEY_BYTES_MAX`]. The caller uses another key.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, Error> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a key is empty: use 1 to 4096 bytes",
            ));
        }
        if bytes.len() > KEY_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a key is too long: use 1 to 4096 bytes",
            )
            .with("bytes", bytes.len()));
        }
        Ok(Self(SmallVec::from_slice(bytes)))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Copies the bytes at once. The derived one would copy one after another.
impl Clone for Key {
    fn clone(&self) -> Self {
        Self(SmallVec::from_slice(&self.0))
    }
}

impl TryFrom<Vec<u8>> for Key {
    type Error = Error;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::new(bytes)
    }
}

impl From<Key> for Vec<u8> {
    fn from(key: Key) -> Self {
        key.0.into_vec()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Shows a key that is text as text, any other with `\x..` escapes.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => {
                // Written in one go: byte by byte takes ten times as long, and the error of a
                // deadlock may name thousands of keys.
                let escaped: SmallVec<[u8; 4 * 22]> = self.0.escape_ascii().collect();
                f.write_str(&String::from_utf8_lossy(&escaped))
            }
        }
    }
}
