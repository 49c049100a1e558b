//! Certificates, keys and CAs in PEM files.
//!
//! Errors name the file and the reason, and never a part of a key.

use std::path::Path;
use std::sync::Arc;

use lockservice_core::{Error, ErrorKind, Result};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;
use super::provider;

/// The largest file that is read, in bytes. The CAs of a whole system take about 200 KiB.
const BYTES_MAX: u64 = 4 << 20;

/// Reads a file. Fails with `InvalidArgument`, naming it and the reason.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let length = std::fs::metadata(path).map(|metadata| metadata.len());
    match length {
        Ok(length) if length > BYTES_MAX => {
            let why = format!("is larger than {BYTES_MAX} bytes: is it the right file?");
            return Err(bad(path, &why));
        }
        _ => {}
    }
    std::fs::read(path).map_err(|why| bad(path, &format!("cannot be read: {why}")))
}

/// The certificate of this end with its key, and the certificates between it and its CA.
///
/// Fails with `InvalidArgument` if a file cannot be read, if the certificate is not valid now, or
/// if the key is that of another certificate.
pub(super) fn certified_key(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>> {
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| {
        bad(key, "holds no private key that can be read: it is a PEM file without a passphrase")
    })?;
    let leaf = &chain[0];
    let parsed = Certificate::parse(leaf).ok_or_else(|| bad(cert, "holds no valid certificate"))?;
    if let Some(why) = parsed.invalid_at(UnixTime::now()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the certificate in {} {why}: replace it", cert.display()),
        ));
    }
    let made = CertifiedKey::from_der(chain, private, &provider()).map_err(|why| match why {
        rustls::Error::InconsistentKeys(_) => Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the key in {} is not that of the certificate in {}: replace both together",
                key.display(),
                cert.display()
            ),
        ),
        why => bad(key, &format!("holds a key that cannot be used: {why}")),
    })?;
    Ok(Arc::new(made))
}

/// The CAs in a file. Fails with `InvalidArgument` if there are none, or if none is valid now.
pub(super) fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let mut why = None;
    for certificate in certificates(path)? {
        let now = UnixTime::now();
        match Certificate::parse(&certificate).map(|parsed| parsed.invalid_at(now)) {
            Some(None) => match roots.add(certificate) {
                Ok(()) => {}
                Err(error) => why = Some(format!("holds a CA that cannot be used: {error}")),
            },
            Some(Some(invalid)) => why = Some(format!("holds a CA that {invalid}")),
            None => why = Some("holds a CA that cannot be read".to_owned()),
        }
    }
    match why {
        Some(why) if roots.is_empty() => Err(bad(path, &why)),
        _ => Ok(roots),
    }
}

/// The CAs that this machine trusts. Fails with `InvalidArgument` if there are none.
pub(super) fn native_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Systems have old ones that cannot be used.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            "this machine has no list of CAs that it trusts: name the CA of the server's \
             certificate with --ca FILE or LOCKSERVICE_CA",
        ));
    }
    Ok(roots)
}

/// The certificates in a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|why| bad(path, &format!("is no PEM file that can be read: {why}")))?;
    if read.is_empty() {
        return Err(bad(path, "holds no certificate: it begins with -----BEGIN CERTIFICATE-----"));
    }
    Ok(read)
}

fn bad(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the file {} {why}", path.display()))
}
