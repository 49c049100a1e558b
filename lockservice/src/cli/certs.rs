//! `certs`: a CA and certificates to try TLS with.
//!
//! Files are replaced by renaming, the key before its certificate: a server or client that reads
//! them in between finds that they do not fit, and tries again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::UnixTime;
use serde_json::json;

use super::args::CertsArgs;
use super::exit::{self, Failure};
use super::output::Output;

/// How long the CA is valid, in days.
const CA_DAYS: u16 = 3_650;
/// Certificates begin to be valid so long ago: clocks of machines differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Makes the certificates, and the CA if there is none yet.
pub(crate) fn run(args: &CertsArgs, json: bool) -> Result<(), Failure> {
    let folder = Folder(&args.dir);
    fs::create_dir_all(&args.dir).map_err(|error| folder.failed(&args.dir, &error))?;
    let ca = folder.ca()?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut hosts =
        vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), host.clone()];
    hosts.extend(args.hosts.iter().cloned());
    hosts.sort_unstable();
    hosts.dedup();
    // A node also connects to other nodes.
    let uses = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let mut made = vec![folder.certificate(&ca, "server", &host, hosts, &uses, args.days)?];
    for name in &args.clients {
        if name.is_empty() || name.contains(['/', '\0']) || ["ca", "server"].contains(&&**name) {
            let sentence = format!("{name:?} is no name for a client's files: choose another");
            return Err(Failure::usage(sentence));
        }
        let uses = [ExtendedKeyUsagePurpose::ClientAuth];
        made.push(folder.certificate(&ca, name, name, Vec::new(), &uses, args.days)?);
    }
    let output = Output::new(json);
    for Made { name, cert, key } in made {
        let (cert, key) = (cert.display().to_string(), key.display().to_string());
        if json {
            output.line(&json!({ "name": name, "cert": cert, "key": key }).to_string())?;
        } else {
            output.line(&format!("{name}: {cert}, {key}"))?;
        }
    }
    Ok(())
}

/// A certificate that was written.
struct Made {
    name: String,
    cert: PathBuf,
    key: PathBuf,
}

/// The folder of the files.
struct Folder<'a>(&'a Path);

impl Folder<'_> {
    /// The CA, which is made if there is none.
    fn ca(&self) -> Result<Issuer<'static, KeyPair>, Failure> {
        let (cert, key) = (self.0.join("ca.pem"), self.0.join("ca-key.pem"));
        let unusable = |error: rcgen::Error| {
            let sentence = format!(
                "{} and {} are no CA that can be used: {error}; remove both for a new CA",
                cert.display(),
                key.display()
            );
            Failure::new(exit::DATA, "certificate", sentence)
        };
        if cert.exists() || key.exists() {
            let read =
                |path: &Path| fs::read_to_string(path).map_err(|error| self.failed(path, &error));
            let pair = KeyPair::from_pem(&read(&key)?).map_err(unusable)?;
            return Issuer::from_ca_cert_pem(&read(&cert)?, pair).map_err(unusable);
        }
        let mut params = params("lockservice test CA", Vec::new(), CA_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pair = KeyPair::generate().map_err(not_made)?;
        let signed = params.self_signed(&pair).map_err(not_made)?;
        self.replace(&key, &pair.serialize_pem(), 0o600)?;
        self.replace(&cert, &signed.pem(), 0o644)?;
        Ok(Issuer::new(params, pair))
    }

    fn certificate(
        &self,
        ca: &Issuer<'_, KeyPair>,
        file: &str,
        name: &str,
        hosts: Vec<String>,
        uses: &[ExtendedKeyUsagePurpose],
        days: u16,
    ) -> Result<Made, Failure> {
        let mut params = params(name, hosts, days)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = uses.to_vec();
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate().map_err(not_made)?;
        let signed = params.signed_by(&pair, ca).map_err(not_made)?;
        let (cert, key) =
            (self.0.join(format!("{file}.pem")), self.0.join(format!("{file}-key.pem")));
        self.replace(&key, &pair.serialize_pem(), 0o600)?;
        self.replace(&cert, &signed.pem(), 0o644)?;
        Ok(Made { name: name.to_owned(), cert, key })
    }

    /// Writes the file, or a new one in its place.
    fn replace(&self, path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            // One that was left behind may have another mode.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        };
        write().map_err(|error| self.failed(path, &error))
    }

    fn failed(&self, path: &Path, error: &io::Error) -> Failure {
        let sentence = format!("cannot read or write {}: {error}", path.display());
        Failure::new(exit::IO, "certificate", sentence)
    }
}

/// A certificate of `name` for `hosts`.
fn params(name: &str, hosts: Vec<String>, days: u16) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(hosts).map_err(|error| {
        Failure::usage(format!("a host of the certificate is no name or address: {error}"))
    })?;
    params.distinguished_name.push(DnType::CommonName, name);
    let now = UNIX_EPOCH + Duration::from_secs(UnixTime::now().as_secs());
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * u32::from(days)).into();
    Ok(params)
}

fn not_made(error: rcgen::Error) -> Failure {
    let sentence = format!("a certificate could not be made: {error}");
    Failure::new(exit::LOST, "certificate", sentence)
}
