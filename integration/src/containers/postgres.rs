//! PostgreSQL 15.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use testcontainers::core::IntoContainerPort as _;
use testcontainers::{ContainerRequest, GenericImage, ImageExt as _};

use super::Program;
use super::container::{Container, Parts, Probe};
use super::ports::Port;

const DATA: &str = "/var/lib/postgresql/data";
const PORT: u16 = 5432;

/// The settings of a [`Postgres`].
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Settings of the server, such as `("max_connections", "20")`.
    pub settings: Vec<(&'static str, String)>,
    /// Keep the data in memory, with this much room in bytes (at least 100 MB, or PostgreSQL has no
    /// room for its own), so that [`Container::fill_disk`] can be used. Such data is lost when the
    /// container stops.
    pub data_bytes_max: Option<u64>,
    /// Serve TLS too, with a certificate for 127.0.0.1 from an authority made for this server.
    /// Plain connections are still accepted.
    pub tls: bool,
}

/// A PostgreSQL 15 in a container, empty, with an owner's role and database of its own.
#[derive(Debug)]
pub struct Postgres {
    container: Container,
    url: String,
    /// The certificate of its authority.
    authority: Option<(TempDir, PathBuf)>,
}

impl Postgres {
    /// Starts one; returns when it responds. `None`, having said so, where there is no Docker or no
    /// image.
    ///
    /// # Panics
    /// If it does not come up; in CI also where there is no Docker or no image.
    pub async fn start(options: PostgresOptions) -> Option<Self> {
        let image = Program::Postgres.image().await?.with_exposed_port(PORT.tcp());
        let port = Port::reserve();
        let url = format!("postgres://lockservice:secret@127.0.0.1:{}/lockservice", port.number());
        let mut arguments: Vec<String> = vec!["postgres".into()];
        for (name, value) in &options.settings {
            arguments.extend(["-c".into(), format!("{name}={value}")]);
        }
        let (request, authority) = if options.tls {
            let (request, authority) = with_tls(image, arguments);
            (request, Some(authority))
        } else {
            (image.with_cmd(arguments), None)
        };
        let request = request
            .with_env_var("POSTGRES_USER", "lockservice")
            .with_env_var("POSTGRES_PASSWORD", "secret")
            .with_env_var("POSTGRES_DB", "lockservice");
        let published = vec![(port.number(), PORT)];
        let parts = Parts {
            published,
            network_of: None,
            data: DATA,
            data_bytes_max: options.data_bytes_max,
        };
        let container =
            Container::run(request, parts, vec![port], Probe::Postgres(url.clone())).await;
        Some(Self { container, url, authority })
    }

    /// Its URL, the same for its whole life: `postgres://USER:PASSWORD@127.0.0.1:PORT/DATABASE`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate of the authority behind its TLS, in PEM.
    ///
    /// # Panics
    /// If it was started without TLS.
    pub fn authority(&self) -> &Path {
        &self.authority.as_ref().expect("started with TLS").1
    }

    /// Its URL for a client that insists on TLS and checks the server's name.
    ///
    /// # Panics
    /// If it was started without TLS.
    pub fn tls_url(&self) -> String {
        format!("{}?sslmode=verify-full&sslrootcert={}", self.url, self.authority().display())
    }
}

impl Deref for Postgres {
    type Target = Container;

    fn deref(&self) -> &Container {
        &self.container
    }
}

/// Has the server serve TLS. Its key must belong to the server's user, as which only the container
/// knows: a shell inside sees to that.
fn with_tls(
    image: GenericImage,
    mut arguments: Vec<String>,
) -> (ContainerRequest<GenericImage>, (TempDir, PathBuf)) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()])
        .expect("names of this machine");
    let certificate = params.signed_by(&key, &authority).expect("a certificate");

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("authority.pem");
    std::fs::write(&path, authority.pem()).expect("a file can be written");

    for setting in
        ["ssl=on", "ssl_cert_file=/tls/own/server.crt", "ssl_key_file=/tls/own/server.key"]
    {
        arguments.extend(["-c".into(), setting.into()]);
    }
    let script = "install -d -o postgres -m 700 /tls/own && install -o postgres -m 600 \
        /tls/server.* /tls/own && exec docker-entrypoint.sh \"$@\"";
    let command = ["-c".into(), script.into(), "sh".into()].into_iter().chain(arguments);
    let request = image
        .with_entrypoint("sh")
        .with_cmd(command)
        .with_copy_to("/tls/server.crt", certificate.pem().into_bytes())
        .with_copy_to("/tls/server.key", key.serialize_pem().into_bytes());
    (request, (directory, path))
}

/// One question to the server.
pub(super) async fn select_one(url: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query("SELECT 1").execute(&mut connection).await?;
    connection.close().await
}
