//! The time for which a command may be without its server, if that is less than was asked for.

use std::time::Duration;

use serde_json::json;

use crate::cli::exit::say_event;

/// Says on stderr, once for each length, that the server promises less than `--ttl` asks for (P1).
#[derive(Debug, Default)]
pub(super) struct ShorterPromise {
    said: Option<Duration>,
}

impl ShorterPromise {
    /// Compares what was asked for with the longest promise of the server, before the lock is
    /// waited for: who needs more can end the command then.
    pub(super) fn say(&mut self, ttl: Option<Duration>, longest: Option<Duration>, json: bool) {
        let (Some(ttl), Some(longest)) = (ttl, longest) else { return };
        if ttl <= longest || self.said == Some(longest) {
            return;
        }
        self.said = Some(longest);
        let object = json!({
            "event": "promise_is_shorter",
            "ttl_ms": millis(ttl),
            "longest_promise_ms": millis(longest),
        });
        let sentence = format!(
            "the server keeps promises of at most {longest:?}: the command is ended if the server \
             cannot be reached for that long, not {ttl:?}"
        );
        say_event("", &sentence, json.then_some(object));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
