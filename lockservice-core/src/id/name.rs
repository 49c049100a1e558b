//! Names of nodes, groups and tables, as users choose them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Longest name of a table, group or node, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 255 bytes of UTF-8 without control characters; cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidArgument`]: choose another name.
            pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
                let name = name.as_ref();
                check_name($what, name)?;
                Ok(Self(Arc::from(name)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(name: String) -> Result<Self, Error> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self, Error> {
                Self::new(name)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// Name of a lock space: equal table names in two groups never conflict.
    GroupName, "group"
}
name! {
    /// Name of a lock table within its group.
    TableName, "table"
}
name! {
    /// Name of a node, the same over its restarts.
    NodeName, "node"
}

impl Default for GroupName {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "is longer than 255 bytes"
    } else if name.chars().any(char::is_control) {
        "contains a control character"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(40).collect();
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("the {what} name {problem}: use 1 to 255 bytes of printable UTF-8"),
    )
    .with("given", format!("{shown:?}")))
}

/// A lock table as users name it: its group and its name.
///
/// ```
/// use lockservice_core::{ErrorKind, TableRef};
///
/// let accounts = TableRef::new("bank", "accounts")?;
/// assert_eq!(accounts.to_string(), "bank/accounts");
/// assert_ne!(accounts, TableRef::new("shop", "accounts")?, "another group, another table");
///
/// let nameless = TableRef::new("bank", "").unwrap_err();
/// assert_eq!(nameless.kind(), ErrorKind::InvalidArgument);
/// # Ok::<(), lockservice_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableRef {
    /// The lock space.
    pub group: GroupName,
    /// The table within the group.
    pub name: TableName,
}

impl TableRef {
    /// The table `name` of `group`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if either is no valid name.
    pub fn new(group: impl AsRef<str>, name: impl AsRef<str>) -> Result<Self, Error> {
        Ok(Self { group: GroupName::new(group)?, name: TableName::new(name)? })
    }
}

impl fmt::Debug for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.group, self.name)
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}
