//! [`IdentityFiles`]: who may do what, in files that are read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::Figment;
use figment::providers::{Format as _, Toml};
use lockservice_core::{Error, ErrorKind, Result};

use super::Config;
use crate::reload::{Reloaded, Reloading};
use crate::server::{Access, IdentitySettings};

/// The identities in the configuration file and in the file that it names.
#[derive(Clone, Debug)]
pub(crate) struct IdentityFiles {
    identities: Arc<Reloaded<Vec<IdentitySettings>>>,
    access: Access,
}

impl IdentityFiles {
    /// The identities of `config`, which was read from the file `main` if there is one. `None` if
    /// every caller may do everything.
    ///
    /// Fails with `InvalidArgument`, naming the file, if one cannot be used.
    pub(crate) fn load(config: &Config, main: Option<&Path>) -> Result<Option<Self>> {
        if !config.has_identities() {
            return Ok(None);
        }
        let more = Some(&config.identity_file).filter(|path| !path.as_os_str().is_empty());
        let files: Vec<PathBuf> =
            main.into_iter().chain(more.map(PathBuf::as_path)).map(Path::to_owned).collect();
        let read_files = files.clone();
        let identities = Reloaded::new(files, move || {
            let mut all = Vec::new();
            for path in &read_files {
                all.extend(read(path)?);
            }
            // What cannot be used does not replace what is used.
            Access::new(&all)?;
            Ok(all)
        })?;
        let access = Access::new(&identities.current())?;
        Ok(Some(Self { identities: Arc::new(identities), access }))
    }

    /// The access that follows the files.
    pub(crate) fn access(&self) -> Access {
        self.access.clone()
    }

    /// Reads the files again if they have changed, or if `always`. If they cannot be used, that is
    /// logged and changes nothing.
    ///
    /// # Cancel safety
    /// A reload that has begun is completed, and counts with the next one.
    pub(crate) async fn check(&self, always: bool) {
        let identities = Arc::clone(&self.identities);
        let checked = tokio::task::spawn_blocking(move || identities.check(always)).await;
        let failed = match checked {
            Ok(Reloading::Done) => self.access.replace(&self.identities.current()).err(),
            Ok(Reloading::Failed(error)) => Some(error),
            // An error means that the runtime is going away.
            Ok(Reloading::Unchanged) | Err(_) => return,
        };
        match failed {
            None => tracing::info!("the identities were read again"),
            Some(error) => {
                tracing::error!(%error, "the identities cannot be replaced: the last ones count");
            }
        }
    }
}

/// The identities in a TOML file, which may hold other settings too.
fn read(path: &Path) -> Result<Vec<IdentitySettings>> {
    let text = std::fs::read_to_string(path).map_err(|why| unreadable(path, &why))?;
    parse(&text, path)
}

/// The identities in a text, which was read from the file `path`.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Vec<IdentitySettings>> {
    let bad = |why: &dyn std::fmt::Display| unreadable(path, why);
    let file = Figment::from(Toml::string(text));
    match file.find_value("identity") {
        Ok(_) => file.extract_inner("identity").map_err(|why| bad(&why)),
        Err(why) if why.missing() => Ok(Vec::new()),
        Err(why) => Err(bad(&why)),
    }
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let why = format!("the identities in the file {} cannot be read: {why}", path.display());
    Error::new(ErrorKind::InvalidArgument, why)
}
