//! What a fuzzer feeds bytes to (feature `fuzzing`): everything that reads what another program, or
//! a person, wrote. Each target takes any input, and panics where a promise about it does not hold.
//! Not for use.
//!
//! `integration/fuzz` runs them with libFuzzer; the test `fuzz_corpus` replays what it found.

use std::fmt::Debug;
use std::time::Duration;

use lockservice_core::Result;
use lockservice_core::clock::Time;
use lockservice_core::testing::{fuzz_dump, fuzz_store_entry};
use prost::Message;
use prost::bytes::Bytes;

use crate::codec::{self, Shaped};
use crate::convert::{self, KnownTables};
use crate::{cli, client, proto, server};

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// The targets by their names, which are those of the folders of their inputs.
pub const TARGETS: [(&str, Target); 6] = [
    ("client_frame", server::fuzz_client_frame),
    ("server_frame", client::fuzz_server_frame),
    ("message", message),
    ("settings", cli::fuzz_settings),
    ("store_entry", fuzz_store_entry),
    ("dump", fuzz_dump),
];

/// Feeds `input` to the target of this name.
///
/// # Panics
/// If there is no such target, and where a promise does not hold.
pub fn run(target: &str, input: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("the name of a target");
    run(input);
}

/// One message of any call: the first byte of `input` says which.
fn message(input: &[u8]) {
    let Some((which, message)) = input.split_first() else { return };
    let message = Bytes::copy_from_slice(message);
    let Some(convert) = MESSAGES.get(usize::from(*which) % MESSAGES.len()) else { return };
    convert(message);
}

/// The messages that become values of the core, by the way there and back.
const MESSAGES: [fn(Bytes); 27] = [
    |m| round(m, |m| Ok(convert::error_from_proto(m)), convert::error_to_proto),
    |m| round(m, |m| Ok(convert::report_from_proto(m)), convert::report_to_proto),
    |m| round(m, convert::registration_from_proto, convert::registration_to_proto),
    |m| round(m, convert::started_from_proto, convert::started_to_proto),
    |m| round(m, |m| Ok(convert::lease_from_proto(m)), convert::lease_to_proto),
    |m| round(m, convert::bound_from_proto, convert::bound_to_proto),
    |m| round(m, convert::tokens_from_proto, convert::tokens_to_proto),
    |m| round(m, convert::reserved_from_proto, convert::reserved_to_proto),
    |m| round(m, convert::latest_from_proto, convert::latest_to_proto),
    |m| round(m, convert::begin_commit_from_proto, convert::begin_commit_to_proto),
    |m| round(m, |m| Ok(convert::admission_from_proto(m)), convert::admission_to_proto),
    |m| round(m, convert::cannot_commit_from_proto, convert::cannot_commit_to_proto),
    |m| round(m, |m| Ok(convert::released_from_proto(m)), convert::released_to_proto),
    |m| round(m, convert::forgetting_from_proto, convert::forgetting_to_proto),
    |m| round(m, convert::bind_from_proto, convert::bind_to_proto),
    |m| round(m, |m| convert::lock_status_from_proto(m, now()), convert::lock_status_to_proto),
    |m| round(m, |m| convert::wait_status_from_proto(m, now()), convert::wait_status_to_proto),
    |m| round(m, convert::bind_status_from_proto, convert::bind_status_to_proto),
    |m| round(m, convert::session_status_from_proto, convert::session_status_to_proto),
    |m| round(m, convert::txn_status_from_proto, convert::txn_status_to_proto),
    |m| round(m, |m| convert::killed_from_proto(&m), convert::killed_to_proto),
    |m| {
        let granted =
            |m: proto::Locked| convert::granted_from_proto(&m, &mut KnownTables::default());
        round(m, granted, |it| convert::granted_to_proto(it, proto::Locked::default()));
    },
    |m| {
        let spec = |m: proto::LockOp| {
            convert::lock_spec_from_proto(&m, ITEMS_MAX, &mut KnownTables::default())
        };
        round(m, spec, |it| convert::lock_spec_to_proto(it, proto::LockOp::default()));
    },
    |m| {
        let status = |m: proto::StatusPart| {
            let mut status = Default::default();
            convert::add_status_from_proto(&mut status, m).map(|()| status)
        };
        let Ok(part) = codec::decode(m) else { return };
        let _: Result<_> = status(part);
    },
    |m| {
        let resigns = |(service, nonce, held): &(_, _, Vec<_>)| {
            convert::resignation_to_proto(*service, *nonce, held)
        };
        round(m, convert::resignation_from_proto, resigns);
    },
    |m| round(m, convert::claimed_from_proto, convert::claimed_to_proto),
    |m| {
        let claim = |m: proto::ClaimOp| convert::claim_from_proto(&m, ITEMS_MAX);
        let _: Result<_> = codec::decode(m).and_then(claim);
    },
];

/// As a server's setting of this name, about.
const ITEMS_MAX: usize = 10_000;

/// Any time that is late enough for waits to have begun before.
fn now() -> Time {
    Time::from_origin(Duration::from_secs(1 << 32))
}

/// A value that was made of a message is the same once it has become a message again.
fn round<M, T>(message: Bytes, from: impl Fn(M) -> Result<T>, to: impl Fn(&T) -> M)
where
    M: Message + Default + Shaped + PartialEq + Debug,
    T: Debug,
{
    let Ok(value) = codec::decode(message).and_then(&from) else { return };
    let again = from(to(&value)).expect("what was made can be read");
    assert_eq!(format!("{again:?}"), format!("{value:?}"));
}
