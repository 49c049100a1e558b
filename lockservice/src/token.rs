//! Bearer tokens: [`new_token`] makes one, [`TokenHash`] is what a server keeps of it.
//!
//! A token is 32 random bytes in hexadecimal digits, behind `lst_`: a scanner finds one that was
//! published. It is as hard to guess as a key, so a fast hash protects it: SHA-256.

use std::fmt;
use std::str::FromStr;

use lockservice_core::{Error, ErrorKind, Result};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The SHA-256 hash of a bearer token, in hexadecimal digits as text.
///
/// ```
/// use lockservice::token::{TokenHash, new_token};
///
/// let token = new_token()?;
/// let hash = TokenHash::of(&token);
/// assert_eq!(hash.to_string().parse::<TokenHash>()?, hash);
/// # Ok::<_, lockservice::Error>(())
/// ```
#[derive(Clone, Copy, Eq)]
pub struct TokenHash([u8; 32]);

/// A new token. Show it to its client alone; a server gets its [`TokenHash`].
///
/// # Errors
/// `Internal`: the operating system has no random numbers.
pub fn new_token() -> Result<String> {
    use rand::TryRngCore as _;
    let mut bytes = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|why| {
        Error::new(ErrorKind::Internal, "the system has no random numbers").with_source(why)
    })?;
    Ok(format!("lst_{}", Hex(&bytes)))
}

impl TokenHash {
    /// The hash of `token`.
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

/// In constant time: the time says nothing about the bytes.
impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for TokenHash {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digit = |at: usize| text.get(at..at + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
        let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bytes: Option<Vec<u8>> = (0..64).step_by(2).map(digit).collect();
        match bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
            Some(bytes) if is_hex => Ok(Self(bytes)),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                "the hash of a token is 64 hexadecimal digits: `lockservice token new` prints one",
            )),
        }
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(&self.0), f)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_other_tools_and_read_only_if_it_is_whole() {
        // printf abc | sha256sum
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenHash::of("abc").to_string(), hash);
        assert_eq!(hash.to_uppercase().parse::<TokenHash>().expect("whole"), TokenHash::of("abc"));
        assert_ne!(TokenHash::of("abd"), TokenHash::of("abc"));
        for bad in ["", &hash[1..], &format!("{hash}0"), &hash.replace('a', "g"), &"é".repeat(32)]
        {
            bad.parse::<TokenHash>().expect_err(bad);
        }
    }

    #[test]
    fn a_token_is_new_each_time_and_no_hash_shows_it() {
        let (one, other) = (new_token().expect("random"), new_token().expect("random"));
        assert_ne!(one, other);
        assert_eq!(one.len(), 68);
        assert_eq!(format!("{:?}", TokenHash::of(&one)), "TokenHash");
    }
}
