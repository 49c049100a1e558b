//! [`Cluster`]: the cluster that a store belongs to, and the proof that a node can read it (L4,
//! T3).

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::env::Env;
use crate::error::{Error, ErrorKind};

/// Separates proofs from any later use of the key.
const PURPOSE: &[u8] = b"lockservice report 1\0";

/// The cluster that a store belongs to. Made when the store is led for the first time, and never
/// changed.
///
/// The first leader of a store names its cluster: a random [`ClusterId`] and a random
/// [`ClusterKey`]. Both stand in the [`Head`](super::Head), so that every backend keeps them, and a
/// store of an older version gets them at its first leadership. Every candidate reads them with
/// each response of the store.
///
/// **The id** is public. Nodes send it with every call between them, and ignore everything of
/// another cluster (T3).
///
/// **The key** never leaves the nodes. It shows that a report comes from a process that can read
/// the store, and only nodes can. A leader needs that where its store no longer knows the node:
///
/// 1. B observes write 90 of leader A. The store goes back to write 40, before B had registered,
///    and C leads it.
/// 2. B renews at C. C does not know B's incarnation, and must believe nothing of it: a stranger
///    can invent an incarnation, and the epoch of its report, and would end the leadership and make
///    every bind invalid.
/// 3. B proves its report with the key, which a copy of the store has as well.
///    C compares the report, and ends its leadership: the next one takes every bind as invalid.
///
/// The key does not cover these cases:
///
/// - **The store went back to before it had a key, or forgot everything.** A node that leads it
///   names the cluster that it knows; if a fresh node leads, it is another cluster from then on. An
///   older node reads the new key from the store as soon as it reaches it, and reports with that.
///   Until then its reports are not believed. No promise depends on that: an empty store has an
///   unknown data loss, so that its leader waits out every lease, and where the store's server has
///   a clock, numbers begin with it.
/// - **The store was copied.** The copy is the same cluster to a node that compares ids. A restored
///   dump is not: it gets an id of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The cluster's name for its nodes and its operators.
    pub id: ClusterId,
    /// The secret of the processes that can read the store.
    pub key: ClusterKey,
}

impl Cluster {
    /// A new cluster.
    pub fn random() -> Self {
        Self::in_env(&Env::system())
    }

    /// A new cluster, with the randomness of `env`.
    pub(crate) fn in_env(env: &Env) -> Self {
        let id = ClusterId(u128::from_le_bytes(env.random_bytes()));
        Self { id, key: ClusterKey(env.random_bytes()) }
    }
}

/// Distinguishes a cluster from any other (T3). Random, and no secret; 32 hexadecimal digits as
/// text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ClusterId(u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.to_string()
    }
}

impl FromStr for ClusterId {
    type Err = Error;

    /// Reads the text that `Display` writes.
    ///
    /// # Errors
    /// `InvalidArgument` for any other text.
    fn from_str(text: &str) -> Result<Self, Error> {
        hexadecimal(text).map(|bytes| Self(u128::from_be_bytes(bytes)))
    }
}

impl TryFrom<String> for ClusterId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

/// A secret that stands in the store and is never sent: see [`Cluster`].
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ClusterKey([u8; 32]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

impl From<ClusterKey> for String {
    fn from(key: ClusterKey) -> Self {
        key.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for ClusterKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        hexadecimal(&text).map(Self)
    }
}

impl ClusterKey {
    /// The proof that `words` come from a process that knows the key. It proves nothing about a
    /// process that repeats them.
    pub(crate) fn prove(&self, words: &[u8]) -> Proof {
        Proof(self.mac(words).finalize().into_bytes().into())
    }

    /// True if `proof` was made for `words` with this key.
    pub(crate) fn proves(&self, words: &[u8], proof: &Proof) -> bool {
        self.mac(words).verify_slice(&proof.0).is_ok()
    }

    fn mac(&self, words: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(PURPOSE);
        mac.update(words);
        mac
    }
}

/// A proof that its sender knows a [`ClusterKey`]. The default proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Proof([u8; 32]);

impl Proof {
    /// The form that crosses a network.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The proof in the form that came over a network. Malformed bytes prove nothing.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        bytes.try_into().map(Self).unwrap_or_default()
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(…)")
    }
}

/// `N` bytes from twice as many lower-case digits.
fn hexadecimal<const N: usize>(text: &str) -> Result<[u8; N], Error> {
    let invalid = || {
        Error::new(
            ErrorKind::InvalidArgument,
            "a cluster's id or key is lower-case hexadecimal digits",
        )
    };
    if text.len() != 2 * N || !text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(invalid());
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_survives_its_encoding_and_its_key_is_not_printed() {
        let cluster = Cluster::random();
        let text = serde_json::to_string(&cluster).expect("plain data");
        assert_eq!(serde_json::from_str::<Cluster>(&text).expect("its own encoding"), cluster);
        assert_eq!(cluster.id.to_string().parse::<ClusterId>().expect("its own text"), cluster.id);
        let key = String::from(cluster.key);
        assert!(text.contains(&key) && !format!("{cluster:?}").contains(&key), "{cluster:?}");
        for wrong in
            ["", "7", "+f000000000000000000000000000000f", "F0000000000000000000000000000000"]
        {
            wrong.parse::<ClusterId>().expect_err(wrong);
        }
    }

    #[test]
    fn a_proof_holds_for_these_words_and_this_key_alone() {
        let (one, other) = (Cluster::random().key, Cluster::random().key);
        let proof = one.prove(b"words");
        assert!(one.proves(b"words", &Proof::from_bytes(proof.as_bytes())));
        assert!(!one.proves(b"other words", &proof) && !other.proves(b"words", &proof));
        assert!(
            !one.proves(b"words", &Proof::default())
                && !one.proves(b"words", &Proof::from_bytes(b"short"))
        );
    }
}
