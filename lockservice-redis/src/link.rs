//! [`Link`]: one connection to the server that holds the store, made anew whenever it is lost or that server is no longer the master.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::{Error, Result};
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::RedisConfig;
use crate::error::{Errors, Stage};
use crate::scripts::Script;
use crate::topology::Topology;

/// How long to wait before the master is looked up again.
const PAUSE: Duration = Duration::from_millis(50);

/// The connection to the master.
pub(crate) struct Link {
    config: Arc<RedisConfig>,
    errors: Errors,
    topology: Topology,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    master: Option<Master>,
    connected: u64,
}

/// A server that was the master when it was asked.
#[derive(Clone)]
struct Master {
    client: Client,
    connection: MultiplexedConnection,
    /// Tells it from the connections before and after.
    serial: u64,
}

/// One call of a script.
pub(crate) struct Call<'a> {
    pub(crate) script: &'a Script,
    pub(crate) key: &'a str,
    pub(crate) arguments: Vec<Vec<u8>>,
    /// What an answer that does not come means.
    pub(crate) stage: Stage,
    /// Whether what it writes must reach the replicas before it counts (L4).
    pub(crate) waits: bool,
}

/// What a script answered.
pub(crate) struct Answer {
    pub(crate) value: Value,
    /// False if what it wrote did not reach as many replicas as it must.
    pub(crate) replicated: bool,
}

/// Why an attempt failed.
enum Failure {
    /// The server does not know the script: nothing ran.
    NoScript,
    /// This connection does not lead to the master: nothing was changed; look it up again.
    Elsewhere(Error),
    /// The connection was lost.
    Lost(Error),
    /// The answer.
    Final(Error),
}

impl Link {
    pub(crate) fn new(config: Arc<RedisConfig>, errors: Errors) -> Self {
        let topology = Topology::new(Arc::clone(&config), errors.clone());
        Self { config, errors, topology, current: Mutex::default() }
    }

    /// Runs a script on the master. What is no [`Stage::Write`] is sent once more over a new connection if the old one was lost.
    pub(crate) async fn run(&self, call: Call<'_>) -> Result<Answer> {
        let waits = call.waits && self.config.replicas > 0;
        let mut pipeline = self.pipeline(&call, waits, false);
        let within = self.config.response_timeout + if waits { self.config.wait_timeout } else { Duration::ZERO };
        let mut answers =
            self.persist(&mut pipeline, call.stage, within, |link| link.pipeline(&call, waits, true)).await?;
        let replicated = !waits || matches!(answers.pop(), Some(Value::Int(n)) if n >= i64::from(self.config.replicas));
        let value = answers.pop().ok_or_else(|| self.errors.strange("nothing"))?;
        Ok(Answer { value, replicated })
    }

    /// Runs a plain command that changes nothing on the master.
    pub(crate) async fn query(&self, command: Cmd) -> Result<Value> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let unchanged = pipeline.clone();
        let stage = Stage::Repeatable;
        let mut answers =
            self.persist(&mut pipeline, stage, self.config.response_timeout, |_| unchanged.clone()).await?;
        answers.pop().ok_or_else(|| self.errors.strange("nothing"))
    }

    /// A client for the server that was last found to be the master.
    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(self.master(Instant::now() + self.config.call_timeout).await?.client)
    }

    /// Sends until there is an answer, or none is to be had in the time of a call.
    async fn persist(
        &self,
        pipeline: &mut Pipeline,
        stage: Stage,
        within: Duration,
        whole: impl Fn(&Self) -> Pipeline,
    ) -> Result<Vec<Value>> {
        let end = Instant::now() + self.config.call_timeout;
        let mut again = stage != Stage::Write;
        loop {
            match self.attempt(pipeline, stage, within, end).await {
                Ok(answers) => return Ok(answers),
                Err(Failure::NoScript) => *pipeline = whole(self),
                Err(Failure::Lost(_)) if again && Instant::now() < end => again = false,
                Err(Failure::Elsewhere(_)) if Instant::now() + PAUSE < end => tokio::time::sleep(PAUSE).await,
                Err(Failure::Elsewhere(error) | Failure::Lost(error) | Failure::Final(error)) => return Err(error),
            }
        }
    }

    async fn attempt(
        &self,
        pipeline: &Pipeline,
        stage: Stage,
        within: Duration,
        end: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut master = self.master(end).await.map_err(Failure::Final)?;
        let commands = pipeline.len();
        let sent = master.connection.send_packed_commands(pipeline, 0, commands);
        let answers = match timeout(within.min(end - Instant::now()), sent).await {
            Ok(answers) => answers,
            Err(_) => {
                // It may be the connection that is dead, not the server.
                self.forget(master.serial).await;
                return Err(Failure::Final(self.errors.timed_out(stage)));
            }
        };
        let error = match answers {
            Ok(mut answers) => match answers.first_mut() {
                Some(Value::ServerError(_)) => match answers.swap_remove(0).extract_error() {
                    Ok(_) => return Err(Failure::Final(self.errors.strange("no error"))),
                    Err(error) => error,
                },
                _ => return Ok(answers),
            },
            Err(error) => error,
        };
        Err(self.failed(&error, stage, master.serial).await)
    }

    async fn failed(&self, error: &RedisError, stage: Stage, serial: u64) -> Failure {
        use redis::ErrorKind::Server;
        let found = self.errors.redis(error, stage);
        match error.kind() {
            Server(ServerErrorKind::NoScript) => return Failure::NoScript,
            Server(
                ServerErrorKind::ReadOnly
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown,
            ) => {
                self.forget(serial).await;
                return Failure::Elsewhere(found);
            }
            _ => {}
        }
        if error.code().is_some() {
            return Failure::Final(found);
        }
        self.forget(serial).await;
        Failure::Lost(found)
    }

    /// The connection to the master. One caller makes it, the others wait for it.
    async fn master(&self, end: Instant) -> Result<Master> {
        let connect = async {
            let mut current = self.current.lock().await;
            if let Some(master) = &current.master {
                return Ok(master.clone());
            }
            let client = self.topology.find().await?;
            let connection = self.topology.connect(&client).await?;
            current.connected += 1;
            let master = Master { client, connection, serial: current.connected };
            current.master = Some(master.clone());
            Ok(master)
        };
        timeout_at(end, connect).await.unwrap_or_else(|_| Err(self.errors.timed_out(Stage::Connect)))
    }

    async fn forget(&self, serial: u64) {
        let mut current = self.current.lock().await;
        if current.master.as_ref().is_some_and(|master| master.serial == serial) {
            current.master = None;
        }
    }

    fn pipeline(&self, call: &Call<'_>, waits: bool, whole: bool) -> Pipeline {
        let mut command = if whole { redis::cmd("EVAL") } else { redis::cmd("EVALSHA") };
        command.arg(if whole { &call.script.code } else { &call.script.digest }).arg(1).arg(call.key);
        for argument in &call.arguments {
            command.arg(argument.as_slice());
        }
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(command);
        if waits {
            // On the same connection: Redis waits for what this connection wrote last.
            pipeline.cmd("WAIT").arg(self.config.replicas).arg(self.config.wait_timeout.as_millis() as u64);
        }
        pipeline
    }
}
