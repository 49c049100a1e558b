//! The arguments of `hot` and `top`.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, ValueEnum};
use lockservice_core::service::HotWindow;
use lockservice_core::{GroupName, TableName, TableRef};

use super::{ClientArgs, duration};

/// The shortest interval of `top`: a reading visits all waits and sessions of the node.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// One table, or all.
#[derive(Debug, Args)]
pub(crate) struct OneTableArgs {
    /// Only this table.
    table: Option<TableName>,
    /// The group of the table.
    #[arg(long, default_value = "default", requires = "table")]
    group: GroupName,
}

impl OneTableArgs {
    /// The table, if one was named.
    pub(crate) fn table(&self) -> Option<TableRef> {
        self.table.as_ref().map(|name| TableRef { group: self.group.clone(), name: name.clone() })
    }
}

/// The time over which waits are added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum WindowArg {
    /// The last minute.
    #[value(name = "1m")]
    Minute,
    /// The last ten minutes.
    #[value(name = "10m")]
    TenMinutes,
}

impl From<WindowArg> for HotWindow {
    fn from(window: WindowArg) -> Self {
        match window {
            WindowArg::Minute => Self::Minute,
            WindowArg::TenMinutes => Self::TenMinutes,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct HotArgs {
    #[command(flatten)]
    pub(crate) only: OneTableArgs,
    /// The most keys to list.
    #[arg(long, default_value = "20", value_name = "N")]
    pub(crate) limit: NonZeroU32,
    /// The time within which the waits ended that are added up.
    #[arg(long, value_enum, default_value = "10m", value_name = "TIME")]
    pub(crate) window: WindowArg,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) only: OneTableArgs,
    /// The time between two readings of the server, for example 500ms or 2s.
    #[arg(long, default_value = "1s", value_parser = interval, value_name = "TIME")]
    pub(crate) interval: Duration,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < INTERVAL_MIN => Err(format!("use at least {INTERVAL_MIN:?}")),
        interval => Ok(interval),
    }
}
