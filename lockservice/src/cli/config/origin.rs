//! The sources of the settings of a server.

use std::fmt;

use serde_json::json;

use crate::cli::exit::say_event;

/// The sources of the settings of a server: names only, for a value may be a secret.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Origin {
    /// The configuration file.
    pub(crate) file: Option<String>,
    /// Variables of the environment.
    pub(crate) variables: Vec<String>,
    /// Flags.
    pub(crate) flags: Vec<&'static str>,
}

impl Origin {
    /// Prints the sources on stderr, so that an operator can explain the server later.
    pub(crate) fn say(&self, json: bool) {
        let object = json.then(|| {
            json!({
                "event": "started_from",
                "config": self.file,
                "environment": self.variables,
                "flags": self.flags,
            })
        });
        say_event("started from ", &self.to_string(), object);
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.iter().map(|file| format!("the configuration file {file}"));
        let variables = (!self.variables.is_empty())
            .then(|| format!("the environment ({})", self.variables.join(", ")));
        let flags = (!self.flags.is_empty()).then(|| format!("flags ({})", self.flags.join(", ")));
        let all: Vec<String> = file.chain(variables).chain(flags).collect();
        f.write_str(&if all.is_empty() { "the defaults".to_owned() } else { all.join(", ") })
    }
}
