//! [`Log`]: the log of a server, on stderr. The server waits for no line of it. And the export of
//! its traces, which no filter of the log touches.

use std::io::{self, IsTerminal as _};
use std::sync::Mutex;

use clap::ValueEnum;
use lockservice_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
#[cfg(feature = "otel")]
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt};

use super::args::ServeArgs;
use super::config::Config;
use super::exit::say_warning;
use super::sink::LogLine;
#[cfg(feature = "otel")]
use super::traces::Traces;
use crate::server::audit::TARGET as AUDIT_TARGET;
#[cfg(feature = "otel")]
use crate::trace::TARGET as TRACE_TARGET;

/// The filter if nothing says another one.
const DEFAULT: &str = "warn";

/// The format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The log of this process, whose filter can be replaced.
pub(super) struct Log {
    filter: Handle<EnvFilter, Registry>,
    /// The setting that counts.
    current: Mutex<String>,
    /// Where the setting is read again.
    args: ServeArgs,
}

/// The filter that the setting `log` requests; that of `RUST_LOG`, or the default, if it is empty.
///
/// Fails with `InvalidArgument` if the setting is no filter.
pub(super) fn filter(log: &str) -> Result<EnvFilter> {
    let filter = match log {
        "" => filter_of_environment().unwrap_or_else(|_| EnvFilter::new(DEFAULT)),
        log => EnvFilter::try_new(log).map_err(|why| {
            let what =
                "the setting `log` is no filter: write for example info, or lockservice=debug";
            Error::new(ErrorKind::InvalidArgument, what).with("log", log).with_source(why)
        })?,
    };
    Ok(audited(filter))
}

/// The filter, and what operators do to others' work: that is always logged.
fn audited(filter: EnvFilter) -> EnvFilter {
    filter.add_directive(format!("{AUDIT_TARGET}=info").parse().expect("a target and a level"))
}

/// The filter of `RUST_LOG`. Fails with a sentence if it is wrong: it may be meant for other
/// programs, so it does not keep a server from its work.
fn filter_of_environment() -> Result<EnvFilter, String> {
    match std::env::var_os("RUST_LOG").filter(|wish| !wish.is_empty()) {
        None => Ok(EnvFilter::new(DEFAULT)),
        Some(wish) => EnvFilter::try_new(wish.to_string_lossy()).map_err(|error| {
            format!(
                "RUST_LOG is wrong ({error}), so warnings and errors are logged: write for \
                 example info, or lockservice=debug"
            )
        }),
    }
}

impl Log {
    /// Starts the log as `config` says, which was loaded with `args`. A panic is a line of it too.
    pub(super) fn start(
        config: &Config,
        args: &ServeArgs,
        json: bool,
        #[cfg(feature = "otel")] traces: Option<&Traces>,
    ) -> Self {
        if config.log.is_empty()
            && let Err(sentence) = filter_of_environment()
        {
            say_warning(json, "rust_log", &sentence);
        }
        let filter = filter(&config.log).unwrap_or_else(|_| audited(EnvFilter::new(DEFAULT)));
        let format = config.log_format.unwrap_or(match json {
            true => LogFormat::Json,
            false => LogFormat::Text,
        });
        let (filter, handle) = reload::Layer::new(filter);
        let lines = fmt::layer().with_writer(|| LogLine);
        let lines = match format {
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
            LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        };
        let log = tracing_subscriber::registry().with(lines.with_filter(filter));
        #[cfg(feature = "otel")]
        let log = log.with(traces.map(|traces| {
            let spans = filter_fn(|about| about.is_span() && about.target() == TRACE_TARGET);
            traces.layer().with_filter(spans)
        }));
        // This fails only if the process has a subscriber already. Then that one stays.
        let _ = log.try_init();
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!("{panic}; please report it (backtrace: {backtrace})");
        }));
        Self { filter: handle, current: Mutex::new(config.log.clone()), args: args.clone() }
    }

    /// True if there is a file in which the setting may have changed.
    pub(super) fn has_file(&self) -> bool {
        self.args.config.is_some()
    }

    /// Reads the setting `log` again, and logs by it from now on. If the settings cannot be used,
    /// that is logged and changes nothing. Reads a file: not for a task of a runtime.
    pub(super) fn reload(&self) {
        let config = match Config::load(&self.args, std::env::vars_os()) {
            Ok((config, _)) => config,
            Err(failure) => {
                tracing::error!(why = failure.sentence, "the settings cannot be read again");
                return;
            }
        };
        let Ok(mut current) = self.current.lock() else { return };
        if *current == config.log {
            return;
        }
        if let Ok(filter) = filter(&config.log)
            && self.filter.reload(filter).is_ok()
        {
            tracing::info!(log = config.log, "the log has another filter");
            *current = config.log;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_no_filter_is_refused_with_its_text() {
        for good in ["", "info", "warn,lockservice=debug", "lockservice::slow_wait=off"] {
            filter(good).expect(good);
        }
        let refused = filter("lockservice=loud").expect_err("no level");
        assert!(refused.to_string().contains("lockservice=loud"), "{refused}");
    }
}
