//! [`StoreConnection`]: one connection to the server that holds the store, made again
//! whenever it is lost or that server is no longer the master.
//!
//! # Implementation details
//! **A slot of a Cluster that is being moved.** The store is one key. Until that key has moved its
//! old node responds; then the old node responds `ASK`, and the new one serves a client that says
//! `ASKING` right before the command. So each call takes two steps until the move is over: nothing
//! is remembered but the connection to the new node, for a move may be given up. `MOVED` says that
//! the slot has another node for good, and is followed without looking the node up: other nodes may
//! not know it yet.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::{Error, Result};
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{Address, RedisConfig, Servers};
use crate::error::{Errors, Stage};
use crate::scripts::Script;
use crate::topology::Topology;

/// The pause before the master is looked up again.
const PAUSE: Duration = Duration::from_millis(50);

/// The number of times that a call is sent on by nodes that contradict each other, before it
/// pauses.
const HOPS_MAX: u32 = 5;

/// The connection to the master.
pub(crate) struct StoreConnection {
    config: Arc<RedisConfig>,
    errors: Errors,
    topology: Topology,
    current: Mutex<CurrentMaster>,
}

#[derive(Default)]
struct CurrentMaster {
    master: Option<Master>,
    /// The address of the master, as the one before it said.
    hint: Option<Address>,
    /// The node to which the key is being moved.
    next: Option<(Address, Master)>,
    connected: u64,
}

/// A server that was the master when it was checked.
#[derive(Clone)]
struct Master {
    client: Client,
    connection: MultiplexedConnection,
    /// Distinguishes it from the connections before and after.
    serial: u64,
}

/// One call of a script.
pub(crate) struct ScriptCall<'a> {
    pub(crate) script: &'a Script,
    pub(crate) key: &'a str,
    pub(crate) arguments: Vec<Vec<u8>>,
    /// The meaning of a response that does not come.
    pub(crate) stage: Stage,
    /// True if its writes must reach the replicas before they count (L4).
    pub(crate) waits: bool,
}

/// The response of a script.
pub(crate) struct ScriptResponse {
    pub(crate) value: Value,
    /// False if what it wrote did not reach as many replicas as it must.
    pub(crate) replicated: bool,
}

/// The reason why an attempt failed.
enum Failure {
    /// The server does not know the script: nothing ran.
    NoScript,
    /// This connection does not lead to the master: nothing was changed; look it up again.
    Elsewhere(Error),
    /// The key, or its whole slot, is on this node: nothing was changed.
    Redirected { to: Address, asking: bool, why: Error },
    /// The slot is being moved, and cannot be used at this moment: nothing was changed.
    TryAgain(Error),
    /// The time of the call ended in the middle of an attempt, and nothing was changed. If no
    /// attempt before it had a reason, this is the error.
    OutOfTime(Error),
    /// The connection was lost.
    Lost(Error),
    /// The response.
    Final(Error),
}

impl StoreConnection {
    pub(crate) fn new(config: Arc<RedisConfig>, errors: Errors) -> Self {
        let topology = Topology::new(Arc::clone(&config), errors.clone());
        Self { config, errors, topology, current: Mutex::default() }
    }

    /// Runs a script on the master. A call that is no [`Stage::Write`] is sent once more over a new
    /// connection if the old one was lost.
    pub(crate) async fn run(&self, call: ScriptCall<'_>) -> Result<ScriptResponse> {
        let waits = call.waits && self.config.replicas > 0;
        let mut pipeline = self.pipeline(&call, waits, false);
        let within = self.config.response_timeout
            + if waits { self.config.wait_timeout } else { Duration::ZERO };
        let mut responses = self
            .persist(&mut pipeline, call.stage, within, |store| store.pipeline(&call, waits, true))
            .await?;
        let replicated = !waits
            || matches!(responses.pop(), Some(Value::Int(n)) if n >= i64::from(self.config.replicas));
        let value = responses.pop().ok_or_else(|| self.errors.strange("nothing"))?;
        Ok(ScriptResponse { value, replicated })
    }

    /// Runs a plain command that changes nothing on the master.
    pub(crate) async fn query(&self, command: Cmd) -> Result<Value> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        let unchanged = pipeline.clone();
        let stage = Stage::Repeatable;
        let mut responses = self
            .persist(&mut pipeline, stage, self.config.response_timeout, |_| unchanged.clone())
            .await?;
        responses.pop().ok_or_else(|| self.errors.strange("nothing"))
    }

    /// A client for the server that was last found to be the master.
    pub(crate) async fn client(&self) -> Result<Client> {
        match self.master(Instant::now() + self.config.call_timeout).await {
            Ok(master) => Ok(master.client),
            Err(Failure::Final(error) | Failure::OutOfTime(error)) => Err(error),
            Err(_) => Err(self.errors.timed_out(Stage::Connect)),
        }
    }

    /// Sends until there is a response, or the time of the call is over.
    async fn persist(
        &self,
        pipeline: &mut Pipeline,
        stage: Stage,
        within: Duration,
        whole: impl Fn(&Self) -> Pipeline,
    ) -> Result<Vec<Value>> {
        let end = Instant::now() + self.config.call_timeout;
        // An attempt that is cut short says less than the one before it, and of a write nothing for
        // certain.
        let last_attempt = end - self.config.call_timeout / 4;
        let mut again = stage != Stage::Write;
        let (mut asking, mut hops) = (None, 0);
        let mut reason = None;
        loop {
            let failure = match self.attempt(pipeline, stage, within, end, asking.as_ref()).await {
                Ok(responses) => return Ok(responses),
                Err(failure) => failure,
            };
            match failure {
                Failure::NoScript => {
                    *pipeline = whole(self);
                    continue;
                }
                Failure::Redirected { to, asking: true, .. } if hops < HOPS_MAX => {
                    (asking, hops) = (Some(to), hops + 1);
                    continue;
                }
                Failure::Redirected { to, asking: false, .. } if hops < HOPS_MAX => {
                    self.current.lock().await.hint = Some(to);
                    (asking, hops) = (None, hops + 1);
                    continue;
                }
                _ => (asking, hops) = (None, 0),
            }
            match failure {
                Failure::Lost(_) if again && Instant::now() < end => again = false,
                Failure::Elsewhere(error)
                | Failure::TryAgain(error)
                | Failure::Redirected { why: error, .. }
                    if Instant::now() + PAUSE < last_attempt =>
                {
                    reason = Some(error);
                    tokio::time::sleep(PAUSE).await;
                }
                // The last word of the server is why the call is still under way.
                Failure::OutOfTime(error) => return Err(reason.unwrap_or(error)),
                Failure::Elsewhere(error)
                | Failure::TryAgain(error)
                | Failure::Redirected { why: error, .. }
                | Failure::Lost(error)
                | Failure::Final(error) => return Err(error),
                Failure::NoScript => {}
            }
        }
    }

    async fn attempt(
        &self,
        pipeline: &Pipeline,
        stage: Stage,
        within: Duration,
        end: Instant,
        asking: Option<&Address>,
    ) -> Result<Vec<Value>, Failure> {
        let mut with_asking = Pipeline::with_capacity(pipeline.len() + 1);
        let (mut master, pipeline, skipped) = match asking {
            None => (self.master(end).await?, pipeline, 0),
            Some(next) => {
                // Right before the command, and on its connection: it counts for one.
                with_asking.cmd("ASKING");
                for command in pipeline.cmd_iter() {
                    with_asking.add_command(command.clone());
                }
                (self.next(next, end).await?, &with_asking, 1)
            }
        };
        // The response to `ASKING` is meaningless.
        let sent =
            master.connection.send_packed_commands(pipeline, skipped, pipeline.len() - skipped);
        let left = end - Instant::now();
        let responses = match timeout(within.min(left), sent).await {
            Ok(responses) => responses,
            Err(_) => {
                // It may be the connection that is dead, not the server.
                self.forget(master.serial).await;
                let error = self.errors.timed_out(stage);
                // A write that was sent may have landed, even if an earlier attempt was refused.
                let cut_short = left < within && stage != Stage::Write;
                return Err(if cut_short {
                    Failure::OutOfTime(error)
                } else {
                    Failure::Final(error)
                });
            }
        };
        let error = match responses {
            Ok(mut responses) => match responses.first_mut() {
                Some(Value::ServerError(_)) => match responses.swap_remove(0).extract_error() {
                    Ok(_) => return Err(Failure::Final(self.errors.strange("no error"))),
                    Err(error) => error,
                },
                _ => return Ok(responses),
            },
            Err(error) => error,
        };
        Err(self.failed(&error, stage, master.serial).await)
    }

    async fn failed(&self, error: &RedisError, stage: Stage, serial: u64) -> Failure {
        use redis::ErrorKind::Server;
        let found = self.errors.redis(error, stage);
        if let Some(to) = self.redirection(error) {
            let asking = error.kind() == Server(ServerErrorKind::Ask);
            if !asking {
                self.forget(serial).await;
            }
            return Failure::Redirected { to, asking, why: found };
        }
        match error.kind() {
            Server(ServerErrorKind::TryAgain) => return Failure::TryAgain(found),
            Server(ServerErrorKind::NoScript) => return Failure::NoScript,
            Server(
                ServerErrorKind::ReadOnly
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
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
    async fn master(&self, end: Instant) -> Result<Master, Failure> {
        let connect = async {
            let mut current = self.current.lock().await;
            if let Some(master) = &current.master {
                return Ok(master.clone());
            }
            let client = match current.hint.take() {
                Some(hint) => self.topology.client(&hint)?,
                None => self.topology.find().await?,
            };
            let connection = self.topology.connect(&client).await?;
            current.connected += 1;
            let master = Master { client, connection, serial: current.connected };
            current.master = Some(master.clone());
            Ok(master)
        };
        timeout_at(end, connect)
            .await
            .map_err(|_| Failure::OutOfTime(self.errors.timed_out(Stage::Connect)))?
            .map_err(Failure::Final)
    }

    /// The connection to the node to which the key is being moved.
    async fn next(&self, address: &Address, end: Instant) -> Result<Master, Failure> {
        let connect = async {
            let mut current = self.current.lock().await;
            if let Some((known, next)) = &current.next
                && known == address
            {
                return Ok(next.clone());
            }
            let client = self.topology.client(address)?;
            let connection = self.topology.connect(&client).await?;
            current.connected += 1;
            let next = Master { client, connection, serial: current.connected };
            current.next = Some((address.clone(), next.clone()));
            Ok(next)
        };
        timeout_at(end, connect)
            .await
            .map_err(|_| Failure::OutOfTime(self.errors.timed_out(Stage::Connect)))?
            .map_err(Failure::Final)
    }

    /// The node that has the key, as a node of a Cluster says, if it names it.
    fn redirection(&self, error: &RedisError) -> Option<Address> {
        let Servers::Cluster(_) = &self.config.servers else { return None };
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        // A node that does not know its own address leaves it out; it is then looked up.
        let known = !host.is_empty() && host != "?";
        known.then_some(Address::new(host, port.parse().ok()?))
    }

    async fn forget(&self, serial: u64) {
        let mut current = self.current.lock().await;
        if current.master.as_ref().is_some_and(|master| master.serial == serial) {
            current.master = None;
        }
        if current.next.as_ref().is_some_and(|(_, next)| next.serial == serial) {
            current.next = None;
        }
    }

    fn pipeline(&self, call: &ScriptCall<'_>, waits: bool, whole: bool) -> Pipeline {
        let mut command = if whole { redis::cmd("EVAL") } else { redis::cmd("EVALSHA") };
        command
            .arg(if whole { &call.script.code } else { &call.script.digest })
            .arg(1)
            .arg(call.key);
        for argument in &call.arguments {
            command.arg(argument.as_slice());
        }
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(command);
        if waits {
            // On the same connection: Redis waits for what this connection wrote last.
            pipeline
                .cmd("WAIT")
                .arg(self.config.replicas)
                .arg(self.config.wait_timeout.as_millis() as u64);
        }
        pipeline
    }
}
