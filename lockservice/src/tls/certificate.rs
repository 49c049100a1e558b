//! [`Certificate`]: the name and the validity in a certificate.

use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a certificate says about its owner and its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Certificate {
    /// The common name of its subject; empty if it has none, or several.
    pub(crate) name: String,
    /// The first second of its validity, since 1970.
    not_before: i64,
    /// The last second of its validity, since 1970.
    not_after: i64,
}

impl Certificate {
    /// `None` if it cannot be read.
    pub(crate) fn parse(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let mut names = parsed.subject().iter_common_name();
        let name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        let validity = parsed.validity();
        let (not_before, not_after) =
            (validity.not_before.timestamp(), validity.not_after.timestamp());
        Some(Self { name, not_before, not_after })
    }

    /// The reason why it is not valid at `now`, if it is not.
    pub(super) fn invalid_at(&self, now: UnixTime) -> Option<String> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < self.not_before {
            return Some(format!("is not valid before {}", date(seconds(self.not_before))));
        }
        (now > self.not_after).then(|| format!("expired on {}", date(seconds(self.not_after))))
    }
}

fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or_default()
}

/// The date and time that lies `since_1970` seconds after the begin of 1970, in UTC.
pub(super) fn date(since_1970: u64) -> String {
    // Beyond the year 9999 there is no such format.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(since_1970.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_valid_from_its_first_second_to_its_last() {
        let certificate = Certificate { name: String::new(), not_before: 100, not_after: 200 };
        let at = |second| certificate.invalid_at(UnixTime::since_unix_epoch(second));
        let at = |second| at(Duration::from_secs(second));
        assert_eq!(at(99).as_deref(), Some("is not valid before 1970-01-01T00:01:40Z"));
        assert_eq!((at(100), at(200)), (None, None));
        assert_eq!(at(201).as_deref(), Some("expired on 1970-01-01T00:03:20Z"));
    }

    #[test]
    fn a_date_of_any_certificate_can_be_written() {
        assert_eq!(date(u64::MAX), "9999-12-31T23:59:59Z");
        assert!(Certificate::parse(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }
}
