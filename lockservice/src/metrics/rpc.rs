//! [`RpcMetrics`]: the calls that a server has responded to, by method.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockservice_core::metrics::{Distribution, Histogram};
use tonic::Code;
use tonic::codegen::http::HeaderMap;

/// The paths of all methods, sorted.
const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// The name for calls of other services: health and reflection, and whatever a client makes up.
pub(super) const OTHER: &str = "other";

/// The status codes of gRPC are 0 to 16.
const CODES: usize = 17;

/// The calls that a server has responded to, by method and by status code.
///
/// The time of a call runs until its response begins: of a stream that is its start.
#[derive(Debug)]
pub struct RpcMetrics(Box<[OfMethod]>);

#[derive(Debug)]
struct OfMethod {
    times: Histogram,
    /// ORDERING: `Relaxed`, without a partner: only the numbers count.
    codes: [AtomicU64; CODES],
}

impl Default for RpcMetrics {
    fn default() -> Self {
        let of_method = |_| OfMethod { times: Histogram::of_times(), codes: Default::default() };
        Self((0..=METHODS.len()).map(of_method).collect())
    }
}

/// What was counted of one method.
pub(super) struct MethodCounts {
    /// Service and method, as in `lockservice.v1.Locks/Lock`.
    pub(super) method: &'static str,
    pub(super) times: Distribution,
    /// The code's name, and the number of calls; always with `ok`.
    pub(super) codes: Vec<(&'static str, u64)>,
}

impl RpcMetrics {
    /// Counts a call of `path` that took this time, with the headers of its response.
    pub(crate) fn note(&self, path: &str, took: Duration, headers: &HeaderMap) {
        let of_method = &self.0[METHODS.binary_search(&path).unwrap_or(METHODS.len())];
        of_method.times.note_time(took);
        // Without the header the call goes on: a failure of a stream that comes later is none of
        // the call's begin.
        let code =
            headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        of_method.codes[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = MethodCounts> {
        let methods = METHODS.iter().map(|path| path.trim_start_matches('/')).chain([OTHER]);
        methods.zip(&self.0).map(|(method, OfMethod { times, codes })| MethodCounts {
            method,
            times: times.snapshot(),
            codes: (0..)
                .zip(codes)
                .map(|(code, count)| {
                    (code_name(Code::from_i32(code)), count.load(Ordering::Relaxed))
                })
                .filter(|(name, count)| *name == "ok" || *count > 0)
                .collect(),
        })
    }
}

/// The name of a status code, as a label.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(counts: &'a [MethodCounts], method: &str) -> &'a MethodCounts {
        counts.iter().find(|counts| counts.method == method).expect("a method")
    }

    #[test]
    fn calls_are_counted_by_method_and_code_and_made_up_paths_together() {
        let metrics = RpcMetrics::default();
        let mut failed = HeaderMap::new();
        failed.insert("grpc-status", "14".parse().expect("a value"));
        let took = Duration::from_millis(1);
        metrics.note("/lockservice.v1.Locks/Lock", took, &HeaderMap::new());
        metrics.note("/lockservice.v1.Locks/Lock", took, &failed);
        metrics.note("/made/Up", took, &failed);
        metrics.note("/made/Up2", took, &failed);
        let counts: Vec<_> = metrics.counts().collect();
        assert_eq!(counts.len(), METHODS.len() + 1);
        let lock = of(&counts, "lockservice.v1.Locks/Lock");
        assert_eq!((lock.times.count(), &*lock.codes), (2, &[("ok", 1), ("unavailable", 1)][..]));
        assert_eq!(of(&counts, OTHER).codes, [("ok", 0), ("unavailable", 2)]);
        let end = of(&counts, "lockservice.v1.Locks/End");
        assert_eq!((end.times.count(), &*end.codes), (0, &[("ok", 0)][..]));
    }

    #[test]
    fn the_methods_are_those_of_the_api_in_order() {
        assert!(METHODS.is_sorted());
        for method in ["Locks/Unlock", "Allocator/BeginCommit", "Admin/ListLocks"] {
            let path = format!("/lockservice.v1.{method}");
            assert!(METHODS.contains(&path.as_str()), "{path} {METHODS:?}");
        }
    }
}
