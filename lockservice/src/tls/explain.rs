//! The reasons of failed handshakes, as sentences that say what to do.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

use super::certificate::date;

/// The error of the TLS library in an error of the connection, if it comes from there.
pub(super) fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// The reason why a connection to the server at `address` failed. `trusted` names the CAs of this
/// end, and `own` its certificate, if it has one.
pub(super) fn to_server(
    error: &TlsError,
    address: &str,
    trusted: &str,
    own: Option<&str>,
) -> String {
    let certificate = |why: &str| format!("the certificate of the server at {address} {why}");
    let presented = own.map_or_else(
        || "this end presented no certificate".to_owned(),
        |file| format!("this end presented the certificate in {file}"),
    );
    match error {
        // The first bytes of another protocol: HTTP/2 in plain text begins with a short frame.
        TlsError::InvalidMessage(_) => format!(
            "the server at {address} does not speak TLS: use http://, or give it a certificate"
        ),
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                certificate(&format!("is signed by no CA of {trusted}: is it the right CA?"))
            }
            CertificateError::ExpiredContext { not_after, .. } => certificate(&format!(
                "expired on {}: it must be replaced there",
                date(not_after.as_secs())
            )),
            CertificateError::NotValidYetContext { not_before, .. } => certificate(&format!(
                "is not valid before {}: is the clock of this machine right?",
                date(not_before.as_secs())
            )),
            CertificateError::NotValidForNameContext { expected, presented } => {
                let names = presented.join(", ");
                certificate(&format!(
                    "is for {names} and not for {}: connect by a name that it has, or have one \
                     made for this name",
                    expected.to_str()
                ))
            }
            other => certificate(&format!("is not accepted: {other}")),
        },
        TlsError::AlertReceived(AlertDescription::CertificateRequired) => format!(
            "the server at {address} requires a certificate of its clients: present one \
             (--cert and --cert-key)"
        ),
        TlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            format!(
                "the server at {address} does not know the CA of this end's certificate: \
                 {presented}"
            )
        }
        TlsError::AlertReceived(AlertDescription::CertificateExpired) => {
            format!("the server at {address} refused an expired certificate: {presented}")
        }
        TlsError::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            format!("the server at {address} speaks TLS, but not HTTP/2: is it a lockservice?")
        }
        TlsError::AlertReceived(alert) => {
            format!("the server at {address} refused the connection ({alert:?}): {presented}")
        }
        other => format!("TLS with the server at {address} failed: {other}"),
    }
}

/// The reason why a client's connection failed.
#[cfg(feature = "server")]
pub(super) fn to_client(error: &TlsError) -> String {
    match error {
        TlsError::NoCertificatesPresented => "it presented no certificate".to_owned(),
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no CA of tls.client_ca signed its certificate".to_owned()
        }
        TlsError::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            format!("its certificate expired on {}", date(not_after.as_secs()))
        }
        TlsError::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown,
        ) => "it does not accept this server's certificate: does it have the right CA?".to_owned(),
        TlsError::AlertReceived(AlertDescription::CertificateExpired) => {
            "this server's certificate has expired: replace it".to_owned()
        }
        other => other.to_string(),
    }
}
