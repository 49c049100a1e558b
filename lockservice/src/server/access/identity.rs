//! [`IdentitySettings`]: who may do what; [`Identity`]: the same, checked.

use std::collections::HashSet;
use std::sync::Arc;

use lockservice_core::{Error, ErrorKind, GroupName, Result, TableName, TableRef};
use serde::{Deserialize, Deserializer, Serialize};

use super::ClientLimits;
use crate::token::TokenHash;

/// The most identities of a server: each call with a token is compared with the tokens of all.
const IDENTITIES_MAX: usize = 10_000;

/// What an identity may do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AccessRole {
    /// Lock, validate commits, and list locks, in the tables of the identity.
    Client,
    /// Act as a node of the cluster. Such an identity owns the cluster.
    Peer,
    /// List everything, and drop tables.
    Operator,
}

impl AccessRole {
    /// The name, as settings have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Operator => "operator",
        }
    }
}

/// One who may use a server, how it shows who it is, and what it may do.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentitySettings {
    /// Its name, for errors and the log.
    pub name: String,
    /// What it may do.
    pub roles: Vec<AccessRole>,
    /// The SHA-256 hashes of its bearer tokens, in hexadecimal digits: see
    /// [`TokenHash`](crate::token::TokenHash). Two of them let clients change from one to the
    /// other.
    #[serde(deserialize_with = "one_or_many")]
    pub token_sha256: Vec<String>,
    /// The common names of its client certificates, which a CA of the server's must have signed.
    #[serde(deserialize_with = "one_or_many")]
    pub certificates: Vec<String>,
    /// The groups whose tables it may use as a client. Empty: all.
    pub groups: Vec<String>,
    /// The prefixes of the names of the tables that it may use as a client. Empty: all.
    pub tables: Vec<String>,
    /// Its limits, where they differ from those that the server has for one client.
    pub limits: ClientLimits,
}

/// One text, or a list of texts. The error does not show what it is instead: it may be a secret.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    match OneOrMany::deserialize(deserializer) {
        Ok(OneOrMany::One(one)) => Ok(vec![one]),
        Ok(OneOrMany::Many(many)) => Ok(many),
        Err(_) => Err(serde::de::Error::custom("it is one text, or a list of texts")),
    }
}

/// Settings that were checked.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(super) name: String,
    roles: HashSet<AccessRole>,
    tokens: Vec<TokenHash>,
    certificates: HashSet<String>,
    groups: HashSet<GroupName>,
    tables: Vec<String>,
    limits: ClientLimits,
}

impl Identity {
    fn parse(settings: &IdentitySettings) -> Result<Self> {
        let bad = |why: &str| bad(&settings.name, why);
        if settings.name.is_empty() || settings.name.chars().any(char::is_control) {
            return Err(bad("needs a name without control characters"));
        }
        if settings.roles.is_empty() {
            return Err(bad("has no role: give it client, peer or operator"));
        }
        if settings.token_sha256.is_empty() && settings.certificates.is_empty() {
            return Err(bad("has neither a token nor a certificate: add token_sha256, the hash \
                that `lockservice token new` prints, or certificates"));
        }
        if settings.certificates.iter().any(String::is_empty) {
            return Err(bad("has a certificate without a name: write its common name"));
        }
        let tokens = settings.token_sha256.iter().map(|hash| hash.parse());
        let tokens = tokens.collect::<Result<_>>().map_err(|e: Error| bad(e.message()))?;
        let groups = settings.groups.iter().map(GroupName::new).collect::<Result<_>>();
        for prefix in &settings.tables {
            TableName::new(prefix).map_err(|_| bad("has a table prefix that no table can have"))?;
        }
        settings.limits.check().map_err(|e| bad(e.message()))?;
        Ok(Self {
            name: settings.name.clone(),
            limits: settings.limits,
            roles: settings.roles.iter().copied().collect(),
            tokens,
            certificates: settings.certificates.iter().cloned().collect(),
            groups: groups.map_err(|_| bad("has a group that no table can have"))?,
            tables: settings.tables.clone(),
        })
    }

    pub(super) fn has(&self, role: AccessRole) -> bool {
        self.roles.contains(&role)
    }

    /// True if there are tables that it may not use as a client.
    pub(super) fn is_limited(&self) -> bool {
        !self.groups.is_empty() || !self.tables.is_empty()
    }

    /// True if it may use `table` as a client.
    pub(super) fn reaches(&self, table: &TableRef) -> bool {
        (self.groups.is_empty() || self.groups.contains(&table.group))
            && (self.tables.is_empty()
                || self.tables.iter().any(|prefix| table.name.as_str().starts_with(&**prefix)))
    }
}

/// How a caller showed who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Proof {
    /// With the token of this hash.
    Token(TokenHash),
    /// With a certificate of this common name.
    Certificate(String),
}

/// All who may use a server.
#[derive(Debug, Default)]
pub(super) struct Identities(Vec<Arc<Identity>>);

impl Identities {
    /// Fails with `InvalidArgument`, naming the identity, if one cannot be used, or if two cannot
    /// be told apart.
    pub(super) fn parse(settings: &[IdentitySettings]) -> Result<Self> {
        if settings.len() > IDENTITIES_MAX {
            let why = format!("too many identities: at most {IDENTITIES_MAX} are allowed");
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        let (mut names, mut tokens, mut certificates) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        let mut all = Vec::with_capacity(settings.len());
        for settings in settings {
            let identity = Identity::parse(settings)?;
            let mut hashes = settings.token_sha256.iter().map(|hash| hash.to_lowercase());
            let is_new = names.insert(identity.name.clone())
                && hashes.all(|hash| tokens.insert(hash))
                && identity.certificates.iter().all(|name| certificates.insert(name.clone()));
            if !is_new {
                return Err(bad(
                    &identity.name,
                    "has a name, a token or a certificate that an identity before it has too",
                ));
            }
            all.push(Arc::new(identity));
        }
        Ok(Self(all))
    }

    /// The limits of the identity with this name.
    pub(super) fn limits(&self, name: &str) -> Option<ClientLimits> {
        self.0.iter().find(|identity| identity.name == name).map(|identity| identity.limits)
    }

    /// The identity that this proves. Every token is compared, so that the time says nothing.
    pub(super) fn find(&self, proof: &Proof) -> Option<&Arc<Identity>> {
        match proof {
            Proof::Token(hash) => self.0.iter().fold(None, |found, identity| {
                let has = identity.tokens.iter().fold(false, |has, own| (own == hash) | has);
                if has { Some(identity) } else { found }
            }),
            Proof::Certificate(name) => {
                self.0.iter().find(|identity| identity.certificates.contains(name))
            }
        }
    }
}

fn bad(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the identity {name:?} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> IdentitySettings {
        IdentitySettings {
            name: "billing".to_owned(),
            roles: vec![AccessRole::Client],
            token_sha256: vec![TokenHash::of("secret").to_string()],
            certificates: vec!["billing".to_owned()],
            groups: vec!["bank".to_owned()],
            tables: vec!["acc".to_owned(), "tmp".to_owned()],
            limits: ClientLimits::default(),
        }
    }

    #[test]
    fn an_identity_reaches_the_tables_of_its_groups_that_begin_with_its_prefixes() {
        let identity = Identity::parse(&settings()).expect("valid");
        let reaches = |group, table| identity.reaches(&TableRef::new(group, table).expect("names"));
        assert!(reaches("bank", "accounts") && reaches("bank", "tmp") && identity.is_limited());
        assert!(!reaches("bank", "other") && !reaches("bank", "ac"));
        assert!(!reaches("ban", "accounts") && !reaches("bank2", "accounts"));
        let all = IdentitySettings { groups: Vec::new(), tables: Vec::new(), ..settings() };
        let all = Identity::parse(&all).expect("valid");
        assert!(!all.is_limited() && all.reaches(&TableRef::new("g", "t").expect("names")));
    }

    #[test]
    fn a_proof_finds_its_identity_alone() {
        let other = IdentitySettings {
            name: "other".to_owned(),
            token_sha256: vec![TokenHash::of("b").to_string(), TokenHash::of("c").to_string()],
            certificates: Vec::new(),
            ..settings()
        };
        let all = Identities::parse(&[settings(), other]).expect("valid");
        let name = |proof| all.find(&proof).map(|identity| identity.name.as_str());
        assert_eq!(name(Proof::Token(TokenHash::of("secret"))), Some("billing"));
        assert_eq!(name(Proof::Token(TokenHash::of("c"))), Some("other"));
        assert_eq!(name(Proof::Token(TokenHash::of(""))), None);
        assert_eq!(name(Proof::Certificate("billing".to_owned())), Some("billing"));
        assert_eq!(name(Proof::Certificate("other".to_owned())), None);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_with_the_name_of_the_identity() {
        let with = |change: fn(&mut IdentitySettings)| {
            let mut changed = settings();
            change(&mut changed);
            changed
        };
        for (identities, said) in [
            (vec![with(|it| it.name.clear())], "needs a name"),
            (vec![with(|it| it.roles.clear())], "has no role"),
            (
                vec![with(|it| {
                    it.token_sha256.clear();
                    it.certificates.clear();
                })],
                "neither a token nor a certificate",
            ),
            (vec![with(|it| it.token_sha256[0].push('0'))], "64 hexadecimal digits"),
            (vec![with(|it| it.certificates[0].clear())], "certificate without a name"),
            (vec![with(|it| it.limits.txns_max = Some(0))], "limits.txns_max must be at least 1"),
            (vec![settings(), with(|it| it.name.push('2'))], "\"billing2\" has a name, a token"),
        ] {
            let refused = Identities::parse(&identities).expect_err(said);
            assert!(refused.to_string().contains(said), "{refused}");
        }
    }
}
