//! pgbouncer before a PostgreSQL, as a process of this machine.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::ports::Port;
use super::postgres::Postgres;
use crate::{skip, within};

/// Not in the `PATH` of every user.
const PROGRAMS: [&str; 2] = ["/usr/sbin/pgbouncer", "/usr/local/bin/pgbouncer"];

/// A pgbouncer with one connection to a server. Killed on drop.
#[derive(Debug)]
pub struct PgBouncer {
    port: Port,
    _process: Child,
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts one before `server`, with these settings, such as `("pool_mode", "transaction")`,
    /// beside its own. Returns when it responds. `None`, having said so, where it is not installed.
    ///
    /// # Panics
    /// If it does not come up; in CI also where it is not installed.
    pub async fn start(server: &Postgres, settings: &[(&str, &str)]) -> Option<Self> {
        let Some(program) = PROGRAMS.iter().find(|program| Path::new(program).exists()) else {
            skip("pgbouncer is not installed (./integration/test sees to it)");
            return None;
        };
        let port = Port::reserve();
        let options: PgConnectOptions = server.url().parse().expect("the server's URL");
        let mut text = format!(
            "[databases]\nlockservice = host=127.0.0.1 port={} user=lockservice password=secret\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\nauth_type \
             = any\n",
            options.get_port(),
            port.number(),
        );
        // One connection: the next caller has it.
        let own = [("default_pool_size", "1"), ("reserve_pool_size", "0")];
        for (name, value) in own.iter().chain(settings) {
            text.push_str(&format!("{name} = {value}\n"));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("pgbouncer.ini");
        std::fs::write(&config, text).expect("a file");
        let mut command = Command::new(program);
        if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            // As which it refuses to run.
            command.args(["-u", "nobody"]);
        }
        command
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let process = command.spawn().expect("it starts");
        let bouncer = Self { port, _process: process, _folder: folder };
        within("pgbouncer", async {
            while PgConnection::connect_with(&bouncer.application()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        Some(bouncer)
    }

    /// Its URL, for a store.
    pub fn url(&self) -> String {
        format!("postgres://lockservice:secret@127.0.0.1:{}/lockservice", self.port.number())
    }

    /// How another application connects, which requests nothing that pgbouncer refuses.
    pub fn application(&self) -> PgConnectOptions {
        let options: PgConnectOptions = self.url().parse().expect("a URL");
        options.extra_float_digits(None).application_name("another")
    }
}
