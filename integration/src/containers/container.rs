//! A server in a container, and what can be done to it.

use std::collections::HashMap;
use std::time::Duration;

use testcontainers::bollard::models::PortBinding;
use testcontainers::core::{ExecCommand, Mount};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt as _};

use super::docker;
use super::ports::Port;
use crate::{LIMIT, within};

/// One command to a server that may not be up: short, because it is sent again.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Between two questions.
const PROBE_PAUSE: Duration = Duration::from_millis(30);
/// The time that a server may take to stop before Docker kills it, in seconds.
const STOP_SECONDS_MAX: i32 = 30;

/// The sign that a server serves.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    /// `SELECT 1` at this URL.
    Postgres(String),
    /// `PING` at this URL.
    Redis(String),
    /// The container only has to run.
    None,
}

/// The parts of a container beside its image and arguments.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Published on 127.0.0.1: (port of this machine, port in the container).
    pub(super) published: Vec<(u16, u16)>,
    /// Shares the network of the container with this id, instead of having its own.
    pub(super) network_of: Option<String>,
    /// The folder of the server's data.
    pub(super) data: &'static str,
    /// Its data is in memory, with this much room, in bytes.
    pub(super) data_bytes_max: Option<u64>,
}

/// A server in a container; it ends with this value.
#[derive(Debug)]
pub struct Container {
    inner: ContainerAsync<GenericImage>,
    probe: Probe,
    data: &'static str,
    data_is_bounded: bool,
    _ports: Vec<Port>,
}

impl Container {
    /// Starts it and waits until it serves.
    pub(super) async fn run(
        request: ContainerRequest<GenericImage>,
        parts: Parts,
        ports: Vec<Port>,
        probe: Probe,
    ) -> Self {
        let Parts { published, network_of, data, data_bytes_max } = parts;
        let mut request = request.with_startup_timeout(LIMIT);
        if let Some(bytes) = data_bytes_max {
            let bytes = i64::try_from(bytes).expect("a size of memory");
            request = request.with_mount(Mount::tmpfs_mount(data).with_size_bytes(bytes));
        }
        if let Some(id) = network_of {
            request = request.with_network(format!("container:{id}"));
        } else {
            request = request.with_host_config_modifier(move |host| {
                let binding = |host_port: u16| PortBinding {
                    host_ip: Some("127.0.0.1".into()),
                    host_port: Some(host_port.to_string()),
                };
                let bindings = published
                    .iter()
                    .map(|(ours, its)| (format!("{its}/tcp"), Some(vec![binding(*ours)])));
                host.port_bindings = Some(bindings.collect::<HashMap<_, _>>());
                host.publish_all_ports = Some(false);
            });
        }
        let inner = within("the start of a container", request.start())
            .await
            .expect("the container starts");
        let container =
            Self { inner, probe, data, data_is_bounded: data_bytes_max.is_some(), _ports: ports };
        container.wait_until_it_serves().await;
        container
    }

    /// Its id at Docker.
    pub fn id(&self) -> &str {
        self.inner.id()
    }

    /// Freezes every process in it: connections stay, questions get no response, until
    /// [`unpause`](Self::unpause).
    ///
    /// # Panics
    /// If Docker does not do it; so do all others here.
    pub async fn pause(&self) {
        within("docker pause", self.inner.pause()).await.expect("it can be paused");
    }

    /// Lets a paused server run on.
    pub async fn unpause(&self) {
        within("docker unpause", self.inner.unpause()).await.expect("it can go on");
    }

    /// SIGKILL to every process in it; returns when it is dead. The data stays unless it is in
    /// memory. [`start`](Self::start) brings it back.
    pub async fn kill(&self) {
        assert!(docker(&["kill", "--signal", "KILL", self.id()]).await, "it can be killed");
        assert!(docker(&["wait", self.id()]).await, "its end can be waited for");
    }

    /// A clean stop (SIGTERM, or what the image says); returns when it has ended.
    pub async fn stop(&self) {
        within("docker stop", self.inner.stop_with_timeout(Some(STOP_SECONDS_MAX)))
            .await
            .expect("it can be stopped");
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop), with its data and its
    /// port; returns when it serves.
    pub async fn start(&self) {
        self.start_without_waiting().await;
        self.wait_until_it_serves().await;
    }

    /// Like [`start`](Self::start), but returns at once: callers see the server come up.
    pub async fn start_without_waiting(&self) {
        assert!(docker(&["start", self.id()]).await, "it can be started again");
    }

    /// Runs a command in it, as root; returns its exit status and what it wrote, standard error
    /// after standard output.
    pub async fn exec<const N: usize>(&self, command: [&str; N]) -> (i64, String) {
        within(&format!("{command:?} in the container"), async {
            let mut result = self
                .inner
                .exec(ExecCommand::new(command))
                .await
                .expect("a command can be run in the container");
            let mut output = result.stdout_to_vec().await.expect("its output can be read");
            output.extend(result.stderr_to_vec().await.expect("its errors can be read"));
            let status =
                result.exit_code().await.expect("its status is known").expect("it has ended");
            (status, String::from_utf8_lossy(&output).into_owned())
        })
        .await
    }

    /// Fills the server's disk to the last byte, until [`free_disk`](Self::free_disk). Only for
    /// data of bounded size.
    pub async fn fill_disk(&self) {
        assert!(
            self.data_is_bounded,
            "this machine's own disk must not be filled: start it with `data_bytes_max`"
        );
        let (status, output) = self
            .exec(["dd", "if=/dev/zero", &format!("of={}/ballast", self.data), "bs=4096"])
            .await;
        assert!(status != 0 && output.contains("No space left"), "the disk is full: {output}");
    }

    /// Gives the disk's space back.
    pub async fn free_disk(&self) {
        let (status, output) = self.exec(["rm", &format!("{}/ballast", self.data)]).await;
        assert_eq!(status, 0, "{output}");
    }

    /// Everything that the server has logged, standard error after standard output.
    pub async fn log(&self) -> String {
        within("the server's log", async {
            let mut log = self.inner.stdout_to_vec().await.expect("its log can be read");
            log.extend(self.inner.stderr_to_vec().await.expect("its log can be read"));
            String::from_utf8_lossy(&log).into_owned()
        })
        .await
    }

    /// Repeats the probe until it gets a response.
    pub(super) async fn wait_until_it_serves(&self) {
        let responds = tokio::time::timeout(LIMIT, async {
            while !self.probe.responds_to_probe().await {
                // A server that refuses its settings ends: no reason to probe for a minute.
                if !self.inner.is_running().await.unwrap_or(true) {
                    return false;
                }
                tokio::time::sleep(PROBE_PAUSE).await;
            }
            true
        })
        .await;
        assert!(responds == Ok(true), "the server does not serve; its log:\n{}", self.log().await);
    }
}

impl Probe {
    /// One question.
    async fn responds_to_probe(&self) -> bool {
        let question = async {
            match self {
                Self::Postgres(url) => super::postgres::select_one(url).await.is_ok(),
                Self::Redis(url) => super::redis::ping(url).await.is_ok(),
                Self::None => true,
            }
        };
        tokio::time::timeout(PROBE_LIMIT, question).await.unwrap_or(false)
    }
}
