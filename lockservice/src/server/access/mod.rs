//! [`Access`]: who may use a server, and what they may do there.
//!
//! A caller shows who it is with a bearer token (metadata `authorization: Bearer TOKEN`) or with a
//! client certificate; the token counts if there are both. Every call is checked, before anything
//! of it is decoded.
//!
//! | call | role |
//! |---|---|
//! | `Locks`; `Allocator`: `BeginCommit`, `FinishCommit`, `Latest` | `client`, in its tables |
//! | `Admin`: `ListLocks`, `ListWaits`, `ListHot` of a table | `client` in them, or `operator` |
//! | the same of all tables, `ListBinds` | `client` of all tables, or `operator` |
//! | `Admin`: `ListNodes` | `client` or `operator` |
//! | `Admin`: `DropTable`, `ListSessions`, `ListTxns`, `KillSession`, `GetStats` | `operator` |
//! | `Allocator`: `Status` | `peer` or `operator` |
//! | `Peer`, and everything on the port for other nodes | `peer` |
//! | `Admin`: `GetNode`, reflection | any identity |
//! | health | every caller |
//!
//! A refusal says nothing about sessions and tables. It is `Unauthenticated` if the caller is not
//! known, and `NotPermitted` if it may not do this.
//!
//! A session belongs to the identity that opened it. For every other one it does not exist,
//! whatever its roles. All callers without an identity are one.
//!
//! When the identities change, each session stream whose token or certificate no longer proves its
//! identity ends with such an error. The client then resumes the session with the credentials that
//! it has now. If it has none that count, its session is lost: its work must stop, and its locks go
//! to others when the session has lapsed (P5).
//!
//! | file | noun |
//! |---|---|
//! | `mod.rs` | [`Access`], [`Principal`], [`Changes`] |
//! | `identity` | [`IdentitySettings`], and what is made of them |
//! | `limits` | [`ClientLimits`]: how much of a node an identity may use |
//! | `need` | [`Need`]: what a call needs |

mod identity;
mod limits;
mod need;

use std::sync::Arc;

use lockservice_core::{Error, ErrorKind, Result, TableRef};
use tokio::sync::watch;
use tonic::Extensions;
use tonic::codegen::http::HeaderMap;

pub use self::identity::{AccessRole, IdentitySettings};
use self::identity::{Identities, Identity, Proof};
pub(super) use self::limits::BYTES_MIN;
pub use self::limits::ClientLimits;
pub(super) use self::need::{Need, Port};
use crate::token::TokenHash;

/// The scheme of a token in the metadata `authorization`.
const BEARER: &str = "Bearer ";

/// Who may use a server, and what they may do. A cheap handle: several listeners may share one.
///
/// By default every caller may do everything, except that with [mutual TLS](super::TlsSettings) it
/// has to be one with a certificate.
#[derive(Clone, Debug)]
pub struct Access(Arc<watch::Sender<Arc<Rules>>>);

/// `None`: every caller may do everything.
type Rules = Option<Identities>;

/// The caller of a call.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    /// Every caller may do everything.
    Anyone,
    Known(Arc<Known>),
}

#[derive(Debug)]
pub(crate) struct Known {
    identity: Arc<Identity>,
    proof: Proof,
}

impl Default for Access {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(None))))
    }
}

impl Access {
    /// Access for these identities alone: for nobody if there are none.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the identity: one has no name, no role or no proof, or two cannot
    /// be told apart. Correct it.
    pub fn new(identities: &[IdentitySettings]) -> Result<Self> {
        let access = Self::default();
        access.replace(identities)?;
        Ok(access)
    }

    /// Replaces the identities, for calls from now on. Session streams of those that may not have
    /// them any more end.
    ///
    /// From then on nobody else has access, even if there are none: a list that was emptied by
    /// mistake opens nothing.
    ///
    /// # Errors
    /// As [`new`](Self::new). Nothing is changed then.
    pub fn replace(&self, identities: &[IdentitySettings]) -> Result<()> {
        self.0.send_replace(Arc::new(Some(Identities::parse(identities)?)));
        Ok(())
    }

    /// The caller of a call with these headers, on a connection with a certificate of this name.
    /// Fails with `Unauthenticated` if it is not known.
    pub(super) fn caller(
        &self,
        headers: &HeaderMap,
        certificate: Option<&str>,
    ) -> Result<Principal> {
        let rules = Arc::clone(&self.0.borrow());
        if rules.is_none() {
            return Ok(Principal::Anyone);
        }
        let proof = match (headers.get("authorization"), certificate) {
            (Some(value), _) => {
                let token = value.to_str().ok().and_then(|value| value.strip_prefix(BEARER));
                let token = token.ok_or_else(|| {
                    unknown("the metadata `authorization` is not `Bearer TOKEN`: correct it")
                })?;
                Proof::Token(TokenHash::of(token.trim()))
            }
            (None, Some(name)) => Proof::Certificate(name.to_owned()),
            (None, None) => return Err(nothing_shown()),
        };
        known(&rules, proof)
    }

    /// The limits that an identity has of its own, as far as there are any now.
    pub(super) fn limits(&self, identity: &str) -> Option<ClientLimits> {
        let rules = Arc::clone(&self.0.borrow());
        rules.as_ref().as_ref()?.limits(identity)
    }

    /// The identities, as they are replaced. Those of now are the first change: the caller was
    /// admitted with earlier ones, perhaps.
    pub(super) fn changes(&self) -> Changes {
        let mut identities = self.0.subscribe();
        identities.mark_changed();
        Changes(identities)
    }
}

/// The changes of the identities.
#[derive(Debug)]
pub(super) struct Changes(watch::Receiver<Arc<Rules>>);

impl Changes {
    /// Resolves when the identities were changed, with the caller as it is now. Fails if `caller`
    /// may not have its session stream any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self, caller: &Principal) -> Result<Principal> {
        if self.0.changed().await.is_err() {
            // The server is going away.
            return std::future::pending().await;
        }
        let rules = Arc::clone(&self.0.borrow_and_update());
        let now = match caller {
            Principal::Anyone if rules.is_none() => Principal::Anyone,
            Principal::Anyone => return Err(nothing_shown()),
            Principal::Known(last) => {
                let now = known(&rules, last.proof.clone())?;
                if !now.is(&last.identity.name) {
                    return Err(unproven(&last.proof));
                }
                now
            }
        };
        Need::Client.check(&now)?;
        Ok(now)
    }
}

/// The caller with this proof. Fails with `Unauthenticated` if it proves nothing.
fn known(rules: &Rules, proof: Proof) -> Result<Principal> {
    let Some(identities) = rules else { return Ok(Principal::Anyone) };
    match identities.find(&proof).map(Arc::clone) {
        Some(identity) => Ok(Principal::Known(Arc::new(Known { identity, proof }))),
        None => Err(unproven(&proof)),
    }
}

impl Principal {
    /// The caller of a call that was admitted.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or(Self::Anyone)
    }

    /// The name of its identity; empty if callers have none.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Anyone => "",
            Self::Known(known) => &known.identity.name,
        }
    }

    fn is(&self, name: &str) -> bool {
        match self {
            Self::Anyone => true,
            Self::Known(known) => known.identity.name == name,
        }
    }

    /// The name of its identity; `None` if callers have none.
    pub(super) fn identity(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Known(known) => Some(&known.identity.name),
        }
    }

    /// True if both were found among the same identities, so that they have the same limits.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Known(one), Self::Known(other)) => Arc::ptr_eq(&one.identity, &other.identity),
            (one, other) => one.identity() == other.identity(),
        }
    }

    /// True if there are tables that it may not use.
    pub(super) fn is_limited(&self) -> bool {
        match self {
            Self::Anyone => false,
            Self::Known(known) => known.identity.is_limited(),
        }
    }

    /// Fails with `NotPermitted` unless it may use `table` as a client.
    pub(crate) fn may_use(&self, table: &TableRef) -> Result<()> {
        match self {
            Self::Known(known) if !known.identity.reaches(table) => Err(Error::new(
                ErrorKind::NotPermitted,
                "this table is outside the groups and table prefixes of the caller's identity: \
                 use another table, or another identity",
            )
            .with("identity", &known.identity.name)
            .with("table", table)),
            _ => Ok(()),
        }
    }

    /// Fails with `NotPermitted` unless it may list `table`, or everything if that is `None`.
    pub(super) fn may_list(&self, table: Option<&TableRef>) -> Result<()> {
        let Self::Known(known) = self else { return Ok(()) };
        if known.identity.has(AccessRole::Operator) {
            return Ok(());
        }
        match table {
            Some(table) => self.may_use(table),
            None if !self.is_limited() => Ok(()),
            None => Err(Error::new(
                ErrorKind::NotPermitted,
                "a list of everything is for operators, or clients that may use every table: list \
                 one table, or use another identity",
            )
            .with("identity", &known.identity.name)),
        }
    }
}

fn unknown(why: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, why)
}

fn nothing_shown() -> Error {
    unknown(
        "this server requires a token or a certificate of its callers: present one (--token-file, \
         or --cert and --cert-key)",
    )
}

fn unproven(proof: &Proof) -> Error {
    match proof {
        Proof::Token(_) => unknown(
            "this server does not know the caller's token: it is wrong, or was revoked; get a new \
             one (lockservice token new)",
        ),
        Proof::Certificate(name) => unknown(
            "this server knows no identity with the caller's certificate: add its name to the \
             certificates of an identity",
        )
        .with("certificate", name),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn identity(name: &str, roles: &[AccessRole], tables: &[&str]) -> IdentitySettings {
        IdentitySettings {
            name: name.to_owned(),
            roles: roles.to_vec(),
            token_sha256: vec![TokenHash::of(name).to_string()],
            certificates: vec![format!("{name}.example")],
            tables: tables.iter().map(|&prefix| prefix.to_owned()).collect(),
            ..IdentitySettings::default()
        }
    }

    fn bearing(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", authorization.parse().expect("a value"));
        headers
    }

    #[test]
    fn a_caller_is_known_by_its_token_or_else_by_its_certificate() {
        let all =
            [identity("a", &[AccessRole::Client], &[]), identity("b", &[AccessRole::Peer], &[])];
        let access = Access::new(&all).expect("valid");
        let name = |headers: HeaderMap, certificate| match access.caller(&headers, certificate) {
            Ok(Principal::Known(known)) => Ok(known.identity.name.clone()),
            Ok(Principal::Anyone) => panic!("there are identities"),
            Err(e) => Err((e.kind(), e.to_string())),
        };
        assert_eq!(name(bearing("Bearer a"), None), Ok("a".to_owned()));
        assert_eq!(name(bearing("Bearer a"), Some("b.example")), Ok("a".to_owned()));
        assert_eq!(name(HeaderMap::new(), Some("b.example")), Ok("b".to_owned()));
        for (headers, certificate) in [
            (HeaderMap::new(), None),
            (HeaderMap::new(), Some("c.example")),
            (HeaderMap::new(), Some("")),
            (bearing("Bearer c"), Some("b.example")),
            (bearing("Bearer "), None),
            (bearing("Basic a"), None),
            (bearing("a"), None),
        ] {
            let (kind, sentence) = name(headers, certificate).expect_err("unknown");
            assert_eq!(kind, ErrorKind::Unauthenticated);
            assert!(!sentence.contains("Bearer c"), "{sentence}");
        }
        let open = Access::default().caller(&bearing("Bearer c"), None);
        assert!(matches!(open, Ok(Principal::Anyone)));
    }

    #[test]
    fn a_stream_ends_when_its_proof_its_name_or_its_role_is_gone_and_follows_its_limits() {
        let client = |tables| identity("a", &[AccessRole::Client], tables);
        let access = Access::new(&[client(&[])]).expect("valid");
        let mut changes = access.changes();
        let first = access.caller(&bearing("Bearer a"), None).expect("known");
        changes.next(&first).now_or_never().expect("those of now").expect("the same identity");
        assert!(changes.next(&first).now_or_never().is_none(), "nothing has changed");
        let table = TableRef::new("g", "other").expect("names");
        first.may_use(&table).expect("no limits");
        let mut after = |identities: &[IdentitySettings]| {
            access.replace(identities).expect("valid");
            changes.next(&first).now_or_never().expect("a change")
        };
        let limited = after(&[client(&["t"])]).expect("the same identity");
        assert_eq!(limited.may_use(&table).expect_err("limits").kind(), ErrorKind::NotPermitted);
        let renamed = IdentitySettings { name: "b".to_owned(), ..client(&[]) };
        for (identities, kind) in [
            (vec![identity("a", &[AccessRole::Operator], &[])], ErrorKind::NotPermitted),
            (vec![renamed], ErrorKind::Unauthenticated),
            (vec![identity("b", &[AccessRole::Client], &[])], ErrorKind::Unauthenticated),
            (Vec::new(), ErrorKind::Unauthenticated),
        ] {
            assert_eq!(after(&identities).expect_err("revoked").kind(), kind);
        }
        after(&[client(&[])]).expect("it is back");
    }

    #[test]
    fn a_server_that_has_had_identities_is_open_to_nobody_else_even_if_there_are_none() {
        let access = Access::default();
        let mut changes = access.changes();
        let anyone = access.caller(&HeaderMap::new(), None).expect("open");
        access.replace(&[]).expect("valid");
        let refused = access.caller(&HeaderMap::new(), None).expect_err("closed");
        assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
        assert!(changes.next(&anyone).now_or_never().expect("a change").is_err());
        // A stream that was admitted before the change and begins after it ends too.
        let mut late = access.changes();
        assert!(late.next(&anyone).now_or_never().expect("those of now").is_err());
    }
}
