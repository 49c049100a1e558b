//! Certificates, and a proxy that cuts connections.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

use crate::cli_support::{DEADLINE, Running, code, lockservice, now, run, stderr};

/// The files of `lockservice certs`, in a folder of their own.
pub(crate) struct Certs(tempfile::TempDir);

impl Certs {
    pub(crate) fn make() -> Self {
        let certs = Self(tempfile::tempdir().expect("a folder"));
        certs.renew();
        certs
    }

    /// Makes new certificates of the same CA.
    pub(crate) fn renew(&self) {
        let folder = self.0.path().to_str().expect("text");
        let output = run(&["certs", folder, "--client", "billing"]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts the files of `other` in the place of these, one after the other.
    pub(crate) fn replace_by(&self, other: &Self) {
        let names = ["ca.pem", "server-key.pem", "server.pem", "billing-key.pem", "billing.pem"];
        for name in names {
            std::fs::copy(other.path(name), self.path("new")).expect("copied");
            std::fs::rename(self.path("new"), self.path(name)).expect("renamed");
        }
    }

    /// Puts a certificate of the same CA for `host` in the place of the server's, valid for `valid`
    /// from now on.
    pub(crate) fn replace_server(&self, host: &str, valid: Duration) {
        self.replace("server", host, wall_clock() + valid);
    }

    /// Puts a certificate of the same CA for `host` in the place of `name`'s, valid until `end`.
    pub(crate) fn replace(&self, name: &str, host: &str, end: SystemTime) {
        let text = |name| std::fs::read_to_string(self.path(name)).expect("it is there");
        let ca_key = KeyPair::from_pem(&text("ca-key.pem")).expect("a key");
        let ca = Issuer::from_ca_cert_pem(&text("ca.pem"), ca_key).expect("a CA");
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = (wall_clock() - Duration::from_secs(24 * 3_600)).into();
        params.not_after = end.into();
        let key = KeyPair::generate().expect("a key");
        let made = params.signed_by(&key, &ca).expect("signed");
        std::fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem())
            .expect("written");
        std::fs::write(self.path(&format!("{name}.pem")), made.pem()).expect("written");
    }

    /// The flags of a server with TLS.
    pub(crate) fn server_flags(&self) -> Vec<String> {
        let flags = ["--tls-cert", "server.pem", "--tls-key", "server-key.pem"];
        self.flags(&flags)
    }

    /// The flags of a server with mutual TLS.
    pub(crate) fn mutual_flags(&self) -> Vec<String> {
        let mut flags = self.server_flags();
        flags.extend(self.flags(&["--tls-client-ca", "ca.pem"]));
        flags
    }

    /// The flags of a client that trusts the CA.
    pub(crate) fn ca_flags(&self) -> Vec<String> {
        self.flags(&["--ca", "ca.pem"])
    }

    /// The flags of a client that presents its certificate too.
    pub(crate) fn client_flags(&self) -> Vec<String> {
        self.flags(&["--ca", "ca.pem", "--cert", "billing.pem", "--cert-key", "billing-key.pem"])
    }

    fn flags(&self, flags: &[&str]) -> Vec<String> {
        let place = |text: &&str| match text.starts_with("--") {
            true => (*text).to_owned(),
            false => self.file(text),
        };
        flags.iter().map(place).collect()
    }
}

/// The time now.
#[allow(clippy::disallowed_methods, reason = "a certificate is valid by the wall clock")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// `lockservice ARGS FLAGS` that talks to `address`.
pub(crate) fn command(address: &str, args: &[&str], flags: &[String]) -> Command {
    let mut command = lockservice(&[]);
    command.env("LOCKSERVICE_SERVER", address);
    let (own, of_command) =
        args.split_at(args.iter().position(|arg| *arg == "--").unwrap_or(args.len()));
    command.args(own).args(flags).args(of_command);
    command
}

pub(crate) fn call(address: &str, args: &[&str], flags: &[String]) -> Output {
    command(address, args, flags).output().expect("the command starts")
}

/// Calls until the outcome is `expected`, as after a change of files that is noticed in time.
pub(crate) fn call_until(
    address: &str,
    flags: &[String],
    expected: impl Fn(&Output) -> bool,
) -> Output {
    let give_up = now() + DEADLINE;
    loop {
        let output = call(address, &["locks", "--json"], flags);
        if expected(&output) {
            return output;
        }
        assert!(now() < give_up, "still {output:?}");
    }
}

/// The next line of stderr that contains `said`.
pub(crate) fn error_line_with(running: &Running, said: &str) -> String {
    loop {
        let line = running.error_line();
        if line.contains(said) {
            return line;
        }
    }
}

/// A lock that is held until its command gets a line or is signalled.
pub(crate) fn hold(address: &str, key: &str, flags: &[String]) -> Running {
    let args = ["lock", "t", key, "--ttl", "2s", "--", "sh", "-c", "echo held; exec sleep 1000"];
    let mut holder = Running::start(&mut command(address, &args, flags));
    assert_eq!(holder.line(), "held");
    holder
}

/// Passes connections on, and cuts them when it is told to.
pub(crate) struct Proxy {
    pub(crate) address: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub(crate) fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (open, server) = (Arc::<Mutex<Vec<TcpStream>>>::default(), server.to_owned());
        let kept = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                pass(&client, &upstream).expect("two streams");
                kept.lock().expect("no panic").extend([client, upstream]);
            }
        });
        Self { address, open }
    }

    /// Cuts every connection that is open now. Returns how many there were.
    pub(crate) fn cut(&self) -> usize {
        let cut = std::mem::take(&mut *self.open.lock().expect("no panic"));
        for stream in &cut {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        cut.len() / 2
    }
}

fn pass(a: &TcpStream, b: &TcpStream) -> io::Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

/// True if the file may be read by others than its owner.
pub(crate) fn is_public(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().expect("it is there").permissions().mode() & 0o077 != 0
}
