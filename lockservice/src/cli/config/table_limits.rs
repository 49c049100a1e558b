//! [`LimitSettings`]: the limits of tables; [`LimitFile`]: those in the configuration file, which
//! is read again when it changes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format as _, Toml};
use lockservice_core::service::{TableLimit, TableLimits};
use lockservice_core::{Error, ErrorKind, GroupName, Result};
use serde::{Deserialize, Serialize};

use crate::cli::args::duration;
use crate::reload::{Reloaded, Reloading};

/// The limits of the tables whose names begin with a prefix. Each time is a text: `30s`, `10m`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LimitSettings {
    /// The group of the tables. Default (empty): all groups.
    pub(crate) group: String,
    /// The prefix of the names of the tables. Default (empty): all tables.
    pub(crate) prefix: String,
    /// The longest wait of a call. Default (empty): no limit.
    pub(crate) longest_wait: String,
    /// The longest time that a transaction holds locks. Default (empty): no limit.
    pub(crate) longest_hold: String,
    /// The longest time that a transaction holds locks without a call. Default (empty): no limit.
    pub(crate) longest_idle_hold: String,
}

impl LimitSettings {
    fn parse(&self) -> Result<TableLimit> {
        let bad = |what: &str, why: &dyn std::fmt::Display| {
            let message = format!("the limit of {:?} has a wrong {what}: {why}", self.prefix);
            Error::new(ErrorKind::InvalidArgument, message)
        };
        let time = |name: &str, text: &str| -> Result<Option<Duration>> {
            if text.is_empty() {
                return Ok(None);
            }
            duration(text).map(Some).map_err(|why| bad(name, &why))
        };
        let group = (!self.group.is_empty()).then(|| GroupName::new(&self.group)).transpose();
        Ok(TableLimit {
            group: group.map_err(|why| bad("group", &why))?,
            prefix: self.prefix.clone(),
            longest_wait: time("longest-wait", &self.longest_wait)?,
            longest_hold: time("longest-hold", &self.longest_hold)?,
            longest_idle_hold: time("longest-idle-hold", &self.longest_idle_hold)?,
        })
    }
}

/// The limits that these settings set. Fails with `InvalidArgument`, naming the limit, if they make
/// no sense.
pub(crate) fn table_limits(settings: &[LimitSettings]) -> Result<Vec<TableLimit>> {
    let limits = settings.iter().map(LimitSettings::parse).collect::<Result<Vec<_>>>()?;
    // Only all of them together show whether they make sense.
    TableLimits::new(limits.clone())?;
    Ok(limits)
}

/// The limits in the configuration file.
#[derive(Debug)]
pub(crate) struct LimitFile {
    file: Arc<Reloaded<Vec<TableLimit>>>,
    limits: Arc<TableLimits>,
}

impl LimitFile {
    /// The limits in the file `path`.
    ///
    /// Fails with `InvalidArgument`, naming the file, if it cannot be used.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let read_path = path.to_owned();
        let file = Reloaded::new(vec![path.to_owned()], move || read(&read_path))?;
        let limits = Arc::new(TableLimits::new(file.current().to_vec())?);
        Ok(Self { file: Arc::new(file), limits })
    }

    /// The limits, which follow the file.
    pub(crate) fn limits(&self) -> Arc<TableLimits> {
        Arc::clone(&self.limits)
    }

    /// Reads the file again if it has changed, or if `always`. If it cannot be used, that is logged
    /// and changes nothing.
    ///
    /// # Cancel safety
    /// A reload that has begun is completed, and counts with the next one.
    pub(crate) async fn check(&self, always: bool) {
        let file = Arc::clone(&self.file);
        let checked = tokio::task::spawn_blocking(move || file.check(always)).await;
        let failed = match checked {
            Ok(Reloading::Done) => self.limits.replace(self.file.current().to_vec()).err(),
            Ok(Reloading::Failed(error)) => Some(error),
            // An error means that the runtime is going away.
            Ok(Reloading::Unchanged) | Err(_) => return,
        };
        match failed {
            None => tracing::info!("the limits of tables were read again"),
            Some(error) => {
                tracing::error!(%error, "the limits of tables cannot be replaced: the last ones \
                    count");
            }
        }
    }
}

/// The limits in a TOML file, which may hold other settings too.
fn read(path: &Path) -> Result<Vec<TableLimit>> {
    let bad = |why: &dyn std::fmt::Display| {
        let why = format!("the limits in the file {} cannot be read: {why}", path.display());
        Error::new(ErrorKind::InvalidArgument, why)
    };
    let text = std::fs::read_to_string(path).map_err(|why| bad(&why))?;
    let file = Figment::from(Toml::string(&text));
    let settings: Vec<LimitSettings> = match file.find_value("limit") {
        Ok(_) => file.extract_inner("limit").map_err(|why| bad(&why))?,
        Err(why) if why.missing() => Vec::new(),
        Err(why) => return Err(bad(&why)),
    };
    table_limits(&settings).map_err(|why| bad(&why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(text: &str) -> Result<Vec<TableLimit>> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        read(file.path())
    }

    #[test]
    fn limits_are_tables_of_the_file_with_times_as_texts() {
        let limits = in_file(
            "listen = '127.0.0.1:1'\n[[limit]]\nprefix = 'jobs/'\nlongest-wait = '30s'\n\
             longest-hold = '10m'\n[[limit]]\ngroup = 'bank'\nlongest-idle-hold = '1m 30s'\n",
        );
        let limits = limits.expect("valid");
        let expected = TableLimit {
            prefix: "jobs/".to_owned(),
            longest_wait: Some(Duration::from_secs(30)),
            longest_hold: Some(Duration::from_secs(600)),
            ..TableLimit::default()
        };
        assert_eq!(limits[0], expected);
        assert_eq!(limits[1].longest_idle_hold, Some(Duration::from_secs(90)));
        assert_eq!(limits[1].group.as_ref().expect("a group").as_str(), "bank");
        assert_eq!(in_file("").expect("none"), []);
    }

    #[test]
    fn a_limit_that_cannot_be_used_is_named() {
        for (text, said) in [
            ("longest-hold = 'soon'", "wrong longest-hold"),
            ("longest-hold = '1ms'", "too short"),
            ("", "limits nothing"),
            ("longest-holding = '1s'", "longest-holding"),
            ("longest-hold = '1s'\n[[limit]]\nprefix = 'p'\nlongest-wait = '1s'", "two limits"),
        ] {
            let refused = in_file(&format!("[[limit]]\nprefix = 'p'\n{text}\n")).expect_err(said);
            assert!(refused.to_string().contains(said), "{refused}");
        }
    }
}
