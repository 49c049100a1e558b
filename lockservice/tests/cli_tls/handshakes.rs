//! Handshakes of clients that are not ours: they check nothing of their own, and finish when they
//! like.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::cli_support::{DEADLINE, Running, Server, code, lockservice, stderr};
use crate::kit::{Certs, call, error_line_with, wall_clock};

/// A TLS client that presents whatever certificate is in the files of `billing`.
fn raw_client(certs: &Certs) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(certs.file("ca.pem")).expect("a certificate");
    roots.add(ca).expect("a CA");
    let own = CertificateDer::from_pem_file(certs.file("billing.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(certs.file("billing-key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .expect("they fit");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn connect(address: &str, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let client = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time");
    StreamOwned::new(client, stream)
}

#[test]
fn a_certificate_that_has_expired_is_refused_by_the_server_itself() {
    let certs = Certs::make();
    let flags = certs.mutual_flags();
    let server = Server::start_with(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    // With one that is valid the same client is served: HTTP/2 begins with the server's settings.
    let mut accepted = connect(&server.address, &raw_client(&certs));
    accepted.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it is open");
    accepted.read_exact(&mut [0; 9]).expect("the settings of the server");

    certs.replace("billing", "billing", wall_clock() - Duration::from_secs(3_600));
    let mut expired = connect(&server.address, &raw_client(&certs));
    // A client has finished its part before the server has seen the certificate (TLS 1.3).
    let refused = expired
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .and_then(|()| expired.read_exact(&mut [0; 9]))
        .expect_err("it is refused");
    let alert = refused.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>());
    let alert = alert.unwrap_or_else(|| panic!("no alert: {refused:?}"));
    assert_eq!(refused.kind(), ErrorKind::InvalidData);
    assert_eq!(*alert, rustls::Error::AlertReceived(AlertDescription::CertificateExpired));
    error_line_with(&server.running, "expired");
}

#[test]
fn handshakes_that_one_address_does_not_finish_hold_up_those_of_no_other() {
    let certs = Certs::make();
    let flags = certs.mutual_flags();
    let args = ["serve", "--json", "--listen", "127.0.0.1:0", "--store", "memory:"];
    let mut command = lockservice(&args);
    // They are not ended while this test runs.
    command.args(flags).env("LOCKSERVICE_SERVER__HELLO_MS_MAX", "600000");
    let mut server = Running::start(&mut command);
    let ready: serde_json::Value = serde_json::from_str(&server.line()).expect("one object");
    let address = ready["address"].as_str().expect("the address");
    // Many more than may go on at a time. They have begun, and say no more.
    let begun: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = from_another_address(address.parse().expect("an address"));
            stream.write_all(&[22, 3, 1]).expect("it is open");
            stream
        })
        .collect();
    let output = call(address, &["locks"], &certs.client_flags());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    drop(begun);
}

/// A connection from another address of loopback.
fn from_another_address(address: std::net::SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let stream = runtime.expect("a runtime").block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 2], 0).into())?;
        socket.connect(address).await?.into_std()
    });
    let stream = stream.expect("it listens");
    stream.set_nonblocking(false).expect("a socket");
    stream
}
