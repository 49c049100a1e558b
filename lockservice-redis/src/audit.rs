//! The questions to a server when a store is opened: whether it can serve, and whether it may
//! forget.

use lockservice_core::{ErrorKind, Result};
use redis::Value;

use crate::config::RedisConfig;
use crate::connection::StoreConnection;
use crate::error::Errors;
use crate::topology::text;

/// Fails with `StoreUnusable` for a server that is too old; warns of one that may lose what it
/// acknowledged.
pub(crate) async fn audit(
    connection: &StoreConnection,
    config: &RedisConfig,
    errors: &Errors,
) -> Result<()> {
    let mut info = redis::cmd("INFO");
    info.arg("server").arg("persistence").arg("memory");
    let info = text(&connection.query(info).await?).ok_or_else(|| errors.strange("no INFO"))?;
    let version = field(&info, "redis_version").unwrap_or_default();
    if version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok())
        .is_none_or(|major| major < 7)
    {
        return Err(errors
            .about(
                ErrorKind::StoreUnusable,
                "this Redis is too old: version 7.0 or later is needed",
            )
            .with("version", version));
    }
    if config.replicas > 0 {
        // Refused here rather than after the first write.
        let mut wait = redis::cmd("WAIT");
        wait.arg(0).arg(1);
        connection.query(wait).await?;
    }
    let mut settings = redis::cmd("CONFIG");
    settings.arg("GET").arg("appendonly").arg("save").arg("appendfsync").arg("maxmemory-policy");
    let settings = connection.query(settings).await.ok().map(|response| pairs(&response));
    let known = Known { info: &info, settings: settings.as_deref() };
    for warning in known.warnings() {
        tracing::warn!(store = config.describe(), "{warning}");
    }
    Ok(())
}

/// The responses of the server about itself.
struct Known<'a> {
    info: &'a str,
    /// `None` if `CONFIG` is forbidden, as it is with many that run Redis for others.
    settings: Option<&'a [(String, String)]>,
}

impl Known<'_> {
    fn warnings(&self) -> Vec<String> {
        [self.persistence(), self.eviction()].into_iter().flatten().collect()
    }

    fn persistence(&self) -> Option<String> {
        const WHAT_THEN: &str = "A loss is noticed and the epoch is raised above it: locks are \
         granted again only after a pause, and \
             transactions that were not proven to hold their binds fail.";
        let appends = self.setting("appendonly").map(|value| value == "yes");
        let appends = appends
            .or_else(|| field(self.info, "aof_enabled").map(|value| value == "1"))
            .unwrap_or(false);
        if !appends {
            let saves = match self.setting("save") {
                Some("") => "and saves no snapshots: a restart forgets everything",
                Some(_) => "only snapshots: a restart goes back to the last one",
                None => {
                    "and whether it saves snapshots could not be checked (CONFIG is forbidden): a \
                        restart may forget everything"
                }
            };
            return Some(format!(
                "Redis keeps no append-only file {saves}. {WHAT_THEN} Set appendonly yes and \
                    appendfsync always."
            ));
        }
        match self.setting("appendfsync") {
            Some("always") => None,
            Some(policy) => Some(format!(
                "Redis syncs its append-only file to the disk with appendfsync {policy}: a crash \
                 of the machine can lose \
                 what was acknowledged. {WHAT_THEN} Set appendfsync always."
            )),
            None => Some(format!(
                "Redis keeps an append-only file, but how often it syncs it to the disk could not \
                 be checked (CONFIG is \
                 forbidden): unless that is appendfsync always, a crash of the machine can lose \
                 what was acknowledged. {WHAT_THEN}"
            )),
        }
    }

    fn eviction(&self) -> Option<String> {
        let policy =
            self.setting("maxmemory-policy").or_else(|| field(self.info, "maxmemory_policy"));
        match policy {
            Some("noeviction") => None,
            // The key never expires, so these never choose it.
            Some(volatile) if volatile.starts_with("volatile-") => None,
            Some(policy) => Some(format!(
                "DANGER: Redis deletes keys when its memory is full (maxmemory-policy {policy}), \
                 the lock service's too: every \
                 bind would be invalid at once. Set maxmemory-policy noeviction, or give the lock \
                 service a Redis of its own."
            )),
            None => Some(
                "Redis does not show its maxmemory-policy: make sure that it is noeviction, or it \
                 may delete the lock \
                 service's data when its memory is full."
                    .to_owned(),
            ),
        }
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings?.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn pairs(response: &Value) -> Vec<(String, String)> {
    let Value::Array(parts) = response else { return Vec::new() };
    parts.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(info: &str, settings: Option<[&str; 4]>) -> String {
        let settings = settings.map(|[appendonly, save, appendfsync, policy]| {
            [
                ("appendonly", appendonly),
                ("save", save),
                ("appendfsync", appendfsync),
                ("maxmemory-policy", policy),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        Known { info, settings: settings.as_ref().map(|settings| settings.as_slice()) }
            .warnings()
            .join("\n")
    }

    #[test]
    fn a_server_that_may_forget_is_warned_of_and_one_that_does_not_is_not() {
        for (settings, expected) in [
            (["yes", "", "always", "noeviction"], &[][..]),
            (["yes", "3600 1", "always", "volatile-lru"], &[]),
            (["yes", "", "everysec", "noeviction"], &["appendfsync everysec"]),
            (["no", "3600 1", "always", "noeviction"], &["only snapshots"]),
            (["no", "", "always", "allkeys-lru"], &["forgets everything", "DANGER"]),
        ] {
            let found = warnings("", Some(settings));
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
            assert!(expected.iter().all(|part| found.contains(part)), "{found}");
        }
    }

    #[test]
    fn what_could_not_be_checked_is_said() {
        let found =
            warnings("# Persistence\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\n", None);
        assert!(
            found.contains("appendfsync always") && found.contains("could not be checked"),
            "{found}"
        );
        assert!(!found.contains("maxmemory"), "{found}");
        let found = warnings("aof_enabled:0\r\n", None);
        assert!(
            found.contains("no append-only file") && found.contains("maxmemory-policy"),
            "{found}"
        );
    }
}
