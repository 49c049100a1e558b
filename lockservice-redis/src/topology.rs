//! Finding the server that holds the store: itself, the master that Sentinels name, or the node of
//! a Cluster that has the key's slot.

use std::sync::Arc;
use std::time::Duration;

use lockservice_core::{Error, ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo,
    TlsCertificates, Value,
};
use tokio::task::JoinSet;

use crate::config::{Address, RedisConfig, RedisTls, Servers};
use crate::error::{Errors, Stage};

/// Finds the master, and connects.
pub(crate) struct Topology {
    config: Arc<RedisConfig>,
    errors: Errors,
    /// Nodes of the Cluster that were learnt, tried before those of the configuration.
    learnt: parking_lot::Mutex<Vec<Address>>,
}

impl Topology {
    pub(crate) fn new(config: Arc<RedisConfig>, errors: Errors) -> Self {
        Self { config, errors, learnt: parking_lot::Mutex::default() }
    }

    /// A client for the server that holds the store, by the responses of the known servers. Bounded
    /// by the time-out of a connection.
    pub(crate) async fn find(&self) -> Result<Client> {
        match &self.config.servers {
            Servers::Single(address) => self.client(address),
            Servers::Client(client) => Ok(client.clone()),
            Servers::Sentinel { sentinels, master } => {
                let command =
                    redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(master).to_owned();
                let response = self.query_any(sentinels, Login::Sentinel, vec![command]).await?;
                let address = response.first().and_then(host_and_port).ok_or_else(|| {
                    self.errors
                        .about(
                            ErrorKind::StoreUnusable,
                            "the Sentinels watch no master of this name: correct it in the URL",
                        )
                        .with("master", master)
                })?;
                self.client(&address)
            }
            Servers::Cluster(nodes) => {
                let mut known = self.learnt.lock().clone();
                known.extend(
                    nodes.iter().filter(|node| !known.contains(node)).cloned().collect::<Vec<_>>(),
                );
                let slot = redis::cmd("CLUSTER").arg("KEYSLOT").arg(self.config.key()).to_owned();
                let slots = redis::cmd("CLUSTER").arg("SLOTS").to_owned();
                let response = self.query_any(&known, Login::Server, vec![slot, slots]).await?;
                let (address, learnt) = owner(&response).ok_or_else(|| {
                    self.errors.about(
                        ErrorKind::Unavailable,
                        "no node of the Redis Cluster has the key's slot: repair it",
                    )
                })?;
                *self.learnt.lock() = learnt;
                self.client(&address)
            }
        }
    }

    /// A connection of the client, within the time-out.
    pub(crate) async fn connect(&self, client: &Client) -> Result<MultiplexedConnection> {
        connect(client, self.config.connect_timeout, &self.errors).await
    }

    /// A client for the server at this address.
    pub(crate) fn client(&self, address: &Address) -> Result<Client> {
        client(&self.config, Login::Server, address)
            .map_err(|error| self.errors.redis(&error, Stage::Connect).with("server", address))
    }

    /// Queries all of them at once. The first response counts: one of those that fell silent must
    /// not cost the time-out.
    async fn query_any(
        &self,
        servers: &[Address],
        login: Login,
        commands: Vec<redis::Cmd>,
    ) -> Result<Vec<Value>> {
        let mut queries = JoinSet::new();
        for address in servers {
            let (config, errors, address) =
                (Arc::clone(&self.config), self.errors.clone(), address.clone());
            let commands = commands.clone();
            queries.spawn(async move {
                let response = query(&config, &errors, login, &address, &commands).await;
                response.map_err(|error| error.with("server", &address))
            });
        }
        let mut failure = None;
        while let Some(response) = queries.join_next().await {
            match response {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => failure = worse(failure, error),
                // Only when the runtime ends.
                Err(_) => break,
            }
        }
        Err(failure.unwrap_or_else(|| self.errors.timed_out(Stage::Connect)))
    }
}

/// The error to report of several: one that needs an operator before one that passes.
fn worse(before: Option<Error>, error: Error) -> Option<Error> {
    match before {
        Some(before) if before.kind() != ErrorKind::Unavailable => Some(before),
        _ => Some(error),
    }
}

/// The owner of the credentials to use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Login {
    Server,
    Sentinel,
}

async fn query(
    config: &RedisConfig,
    errors: &Errors,
    login: Login,
    address: &Address,
    commands: &[redis::Cmd],
) -> Result<Vec<Value>> {
    let client =
        client(config, login, address).map_err(|error| errors.redis(&error, Stage::Connect))?;
    let mut connection = connect(&client, config.connect_timeout, errors).await?;
    let mut responses = Vec::with_capacity(commands.len());
    for command in commands {
        let response =
            tokio::time::timeout(config.response_timeout, connection.send_packed_command(command))
                .await;
        let response = response.map_err(|_| errors.timed_out(Stage::Connect))?;
        responses.push(response.map_err(|error| errors.redis(&error, Stage::Connect))?);
    }
    // The server that responded: a node that does not know its own address leaves it out.
    responses.push(Value::SimpleString(address.host.clone()));
    Ok(responses)
}

async fn connect(
    client: &Client,
    within: Duration,
    errors: &Errors,
) -> Result<MultiplexedConnection> {
    // The caller counts the time of each response: a reply that comes too late must not look like a
    // lost connection.
    let settings =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    match tokio::time::timeout(
        within,
        client.get_multiplexed_async_connection_with_config(&settings),
    )
    .await
    {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(errors.redis(&error, Stage::Connect)),
        Err(_) => Err(errors.timed_out(Stage::Connect)),
    }
}

fn client(config: &RedisConfig, login: Login, address: &Address) -> redis::RedisResult<Client> {
    let (username, password, database) = match login {
        Login::Server => (&config.username, &config.password, config.database),
        Login::Sentinel => (&config.sentinel_username, &config.sentinel_password, 0),
    };
    let mut settings = RedisConnectionInfo::default().set_db(database);
    if let Some(username) = username {
        settings = settings.set_username(username);
    }
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    let (host, port) = (address.host.clone(), address.port);
    let Some(tls) = &config.tls else {
        return Client::open(
            ConnectionAddr::Tcp(host, port).into_connection_info()?.set_redis_settings(settings),
        );
    };
    let place = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
    Client::build_with_tls(
        place.into_connection_info()?.set_redis_settings(settings),
        certificates(tls),
    )
}

fn certificates(tls: &RedisTls) -> TlsCertificates {
    // rustls needs a choice of cryptography; that of the program counts, if it made one.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // It fails only if another thread was faster, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let client_tls = tls
        .identity
        .clone()
        .map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
    TlsCertificates { client_tls, root_cert: tls.authorities.clone() }
}

/// A Sentinel's response: host and port. Nothing for a master that it does not know.
fn host_and_port(response: &Value) -> Option<Address> {
    let Value::Array(parts) = response else { return None };
    let [host, port] = parts.as_slice() else { return None };
    Some(Address::new(text(host)?, text(port)?.parse().ok()?))
}

/// The node that has the slot, and all nodes, from the responses to `CLUSTER KEYSLOT` and `CLUSTER
/// SLOTS` and the host that responded.
fn owner(responses: &[Value]) -> Option<(Address, Vec<Address>)> {
    let [Value::Int(slot), Value::Array(ranges), Value::SimpleString(responder)] = responses else {
        return None;
    };
    let mut found = None;
    let mut all = Vec::new();
    for range in ranges {
        let Value::Array(parts) = range else { continue };
        let [Value::Int(first), Value::Int(last), nodes @ ..] = parts.as_slice() else { continue };
        let nodes: Vec<_> = nodes.iter().filter_map(|node| cluster_node(node, responder)).collect();
        if (first..=last).contains(&slot) {
            found = nodes.first().cloned();
        }
        for node in nodes {
            if !all.contains(&node) {
                all.push(node);
            }
        }
    }
    Some((found?, all))
}

fn cluster_node(node: &Value, responder: &str) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = text(host)
        .filter(|host| !host.is_empty() && host != "?")
        .unwrap_or_else(|| responder.to_owned());
    Some(Address::new(host, u16::try_from(*port).ok()?))
}

/// The text that Redis sends.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}
