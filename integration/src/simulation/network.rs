//! [`Network`]: carries the calls between simulated processes, and loses, delays, repeats and
//! reorders them as networks do.
//!
//! A unary call is one message each way. Either may be lost, the request may arrive twice, and two
//! calls overtake each other, for each message has a delay of its own. The frames of a stream stay
//! in their order, for they share a connection; what befalls it is a reset. While a link is cut, or
//! the process at its other end is frozen, nothing arrives over it: what was sent arrives after the
//! end of the cut, unless an end has noticed the silence (as HTTP/2 pings do) and given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use lockservice::simulation::{Network as Carrier, NetworkError, NetworkResponse};
use lockservice_core::env::Env;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tower_service::Service as _;

use super::log::Log;
use super::pipe;

/// The silence after which a client gives a connection up.
pub(super) const CLIENT_SILENCE: Duration = Duration::from_millis(2_500);
/// The silence after which a server does.
pub(super) const SERVER_SILENCE: Duration = Duration::from_secs(20);

/// The longest time after a silence until a connection is tried again, in milliseconds.
const AGAIN_MAX_MS: u64 = 800;

/// The call that opens a session stream.
const STREAMS: [&str; 1] = ["/lockservice.v1.Locks/Session"];

/// What the network does to messages, in parts of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Messages of unary calls that are lost.
    pub lost: u32,
    /// Requests of unary calls that arrive twice.
    pub repeated: u32,
    /// Messages that are slow.
    pub slow: u32,
    /// How slow they are at most.
    pub slow_max: Duration,
}

/// The network of one simulated world. Clones are the same.
#[derive(Clone, Debug)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Changes with each cut, heal, reset, freeze and thaw.
    changed: watch::Sender<u64>,
    log: Log,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    weather: Weather,
    hosts: BTreeMap<String, Host>,
    /// Directed, by the names of the processes.
    cuts: BTreeSet<(String, String)>,
    frozen: BTreeSet<String>,
    /// The number of resets between two processes, by their names in order.
    resets: BTreeMap<(String, String), u64>,
    faults: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug)]
struct Host {
    process: String,
    env: Env,
    routes: Routes,
}

/// What happens to one unary call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Carried,
    RequestLost,
    ResponseLost,
    Repeated,
}

impl Network {
    /// A network without hosts.
    pub fn new(seed: u64, log: Log) -> Self {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            weather: Weather::default(),
            hosts: BTreeMap::new(),
            cuts: BTreeSet::new(),
            frozen: BTreeSet::new(),
            resets: BTreeMap::new(),
            faults: BTreeMap::new(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0), log }))
    }

    /// The network as the process `name` uses it.
    pub fn end(&self, name: &str, env: &Env) -> Arc<dyn Carrier> {
        Arc::new(End { network: self.clone(), name: name.to_owned(), env: env.clone() })
    }

    /// From now on calls to `address` are those of `process`.
    pub fn serve(&self, address: &str, process: &str, env: &Env, routes: Routes) {
        let host = Host { process: process.to_owned(), env: env.clone(), routes };
        self.0.state.lock().hosts.insert(address.to_owned(), host);
    }

    /// Nothing of `process` is served any more.
    pub fn gone(&self, process: &str) {
        self.0.state.lock().hosts.retain(|_, host| host.process != process);
        self.say_changed();
    }

    /// From now on it does this to messages.
    pub fn set_weather(&self, weather: Weather) {
        self.0.state.lock().weather = weather;
    }

    /// Nothing arrives at `to` from `from` until [`heal`](Self::heal).
    pub fn cut(&self, from: &str, to: &str) {
        self.0.state.lock().cuts.insert((from.to_owned(), to.to_owned()));
        self.say_changed();
    }

    /// Ends the cut of this direction.
    pub fn heal(&self, from: &str, to: &str) {
        self.0.state.lock().cuts.remove(&(from.to_owned(), to.to_owned()));
        self.say_changed();
    }

    /// A frozen process reads and sends nothing.
    pub fn set_frozen(&self, process: &str, frozen: bool) {
        let mut state = self.0.state.lock();
        if frozen {
            state.frozen.insert(process.to_owned());
        } else {
            state.frozen.remove(process);
        }
        drop(state);
        self.say_changed();
    }

    /// Breaks every connection between two processes.
    pub fn reset(&self, a: &str, b: &str) {
        *self.0.state.lock().resets.entry(pair(a, b)).or_default() += 1;
        self.say_changed();
    }

    /// How often each kind of fault happened.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.0.state.lock().faults.clone()
    }

    fn say_changed(&self) {
        self.0.changed.send_modify(|changes| *changes += 1);
    }

    /// The delay of one message.
    pub(super) fn delay(&self) -> Duration {
        let mut state = self.0.state.lock();
        let State { random, weather, .. } = &mut *state;
        if random.random_ratio(weather.slow.min(1_000), 1_000) && !weather.slow_max.is_zero() {
            let most = u64::try_from(weather.slow_max.as_millis()).unwrap_or(u64::MAX);
            let slow = Duration::from_millis(random.random_range(5..=most.max(5)));
            *state.faults.entry("slow message").or_default() += 1;
            return slow;
        }
        Duration::from_millis(random.random_range(0..3))
    }

    fn fate(&self) -> Fate {
        let mut state = self.0.state.lock();
        let State { random, weather, .. } = &mut *state;
        let drawn = random.random_range(0..1_000);
        let lost = weather.lost;
        let (fate, fault) = match drawn {
            n if n < lost / 2 => (Fate::RequestLost, "request lost"),
            n if n < lost => (Fate::ResponseLost, "response lost"),
            n if n < lost + weather.repeated => (Fate::Repeated, "request repeated"),
            _ => return Fate::Carried,
        };
        *state.faults.entry(fault).or_default() += 1;
        fate
    }

    fn host(&self, address: &str) -> Option<Host> {
        self.0.state.lock().hosts.get(address).cloned()
    }

    fn resets(&self, a: &str, b: &str) -> u64 {
        self.0.state.lock().resets.get(&pair(a, b)).copied().unwrap_or_default()
    }

    /// True if nothing arrives at `to` from `from` now.
    fn is_silent(&self, from: &str, to: &str) -> bool {
        let state = self.0.state.lock();
        state.cuts.contains(&(from.to_owned(), to.to_owned())) || state.frozen.contains(from)
    }

    /// Resolves when messages arrive at `to` from `from`. After a silence each connection has to
    /// wait until it is tried again, for a time of its own.
    pub(super) async fn open(&self, from: &str, to: &str) {
        let mut changed = self.0.changed.subscribe();
        let mut again = Duration::ZERO;
        while self.is_silent(from, to) {
            let most = AGAIN_MAX_MS;
            again = Duration::from_millis(self.0.state.lock().random.random_range(0..most));
            if changed.changed().await.is_err() {
                return;
            }
        }
        if !again.is_zero() {
            tokio::time::sleep(again).await;
        }
    }

    /// Resolves when an end with this patience gives up a connection between itself and `other`:
    /// it was reset since `resets`, or nothing came over it, in either direction, for that long.
    pub(super) async fn broken(&self, own: &str, other: &str, resets: u64, patience: Duration) {
        let mut changed = self.0.changed.subscribe();
        loop {
            if self.resets(own, other) != resets {
                return;
            }
            let silent = self.is_silent(other, own) || self.is_silent(own, other);
            if silent {
                let ended = async {
                    loop {
                        if changed.changed().await.is_err() || self.resets(own, other) != resets {
                            return;
                        }
                        if !self.is_silent(other, own) && !self.is_silent(own, other) {
                            return;
                        }
                    }
                };
                if tokio::time::timeout(patience, ended).await.is_err() {
                    return;
                }
            } else if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

fn pair(a: &str, b: &str) -> (String, String) {
    let (a, b) = if a < b { (a, b) } else { (b, a) };
    (a.to_owned(), b.to_owned())
}

/// The network as one process uses it.
#[derive(Debug)]
struct End {
    network: Network,
    name: String,
    env: Env,
}

/// The reason why a call failed in the network.
pub(super) fn failed(why: &'static str) -> NetworkError {
    Box::new(tonic::Status::unavailable(why))
}

impl Carrier for End {
    fn call(&self, address: &str, request: Request<Body>) -> NetworkResponse {
        let way = Way {
            network: self.network.clone(),
            from: self.name.clone(),
            env: self.env.clone(),
            address: address.to_owned(),
        };
        if STREAMS.contains(&request.uri().path()) {
            Box::pin(way.stream(request))
        } else {
            Box::pin(way.unary(request))
        }
    }
}

/// One call on its way.
struct Way {
    network: Network,
    from: String,
    env: Env,
    address: String,
}

impl Way {
    /// Waits until the request has arrived. Returns the host, and its process's resets.
    async fn arrive(&self) -> Result<(Host, u64), NetworkError> {
        let network = &self.network;
        tokio::time::sleep(network.delay()).await;
        let Some(host) = network.host(&self.address) else {
            return Err(failed("connection refused"));
        };
        let resets = network.resets(&self.from, &host.process);
        tokio::select! {
            biased;
            () = network.open(&self.from, &host.process) => {}
            () = network.broken(&self.from, &host.process, resets, CLIENT_SILENCE) => {
                return Err(failed("no connection"));
            }
        }
        // It may have ended meanwhile, and started again.
        network.host(&self.address).map(|host| (host, resets)).ok_or_else(|| failed("refused"))
    }

    async fn unary(self, request: Request<Body>) -> Result<Response<Body>, NetworkError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|e| Box::new(e) as NetworkError)?.to_bytes();
        let fate = self.network.fate();
        let (host, resets) = self.arrive().await?;
        let network = self.network.clone();
        let copy = || {
            let body = Body::new(http_body_util::Full::new(body.clone()));
            Request::from_parts(head.clone(), body)
        };
        let make = |request: Request<Body>| {
            let mut routes = host.routes.clone();
            host.env.spawn(async move {
                let response = match routes.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                let (head, body) = response.into_parts();
                body.collect().await.map(|body| (head, body))
            })
        };
        if fate == Fate::RequestLost {
            network.0.log.note(|| format!("{} -> {}: request lost", self.from, host.process));
            return self.silence(&host, resets).await;
        }
        let response = make(copy());
        if fate == Fate::Repeated {
            tokio::time::sleep(network.delay()).await;
            drop(make(copy()));
        }
        let response = tokio::select! {
            biased;
            response = response => response,
            () = network.broken(&self.from, &host.process, resets, CLIENT_SILENCE) => {
                return Err(failed("the connection broke"));
            }
        };
        // The process has ended.
        let Ok(response) = response else { return Err(failed("the connection broke")) };
        if fate == Fate::ResponseLost {
            network.0.log.note(|| format!("{} -> {}: response lost", self.from, host.process));
            return self.silence(&host, resets).await;
        }
        tokio::time::sleep(network.delay()).await;
        tokio::select! {
            biased;
            () = network.open(&host.process, &self.from) => {}
            () = network.broken(&self.from, &host.process, resets, CLIENT_SILENCE) => {
                return Err(failed("the connection broke"));
            }
        }
        let (head, body) = response.map_err(|e| Box::new(e) as NetworkError)?;
        Ok(Response::from_parts(head, Body::new(body)))
    }

    /// A message was lost: at some time the connection is given up.
    async fn silence(&self, host: &Host, resets: u64) -> Result<Response<Body>, NetworkError> {
        let broken = self.network.broken(&self.from, &host.process, resets, CLIENT_SILENCE);
        drop(tokio::time::timeout(CLIENT_SILENCE, broken).await);
        Err(failed("the connection broke"))
    }

    async fn stream(self, request: Request<Body>) -> Result<Response<Body>, NetworkError> {
        let (host, resets) = self.arrive().await?;
        let network = self.network;
        let (head, body) = request.into_parts();
        let there = pipe::Ends {
            network: network.clone(),
            from: self.from.clone(),
            to: host.process.clone(),
            resets,
        };
        let back = pipe::Ends { from: there.to.clone(), to: there.from.clone(), ..there.clone() };
        let request = pipe::carry(&self.env, body, there, SERVER_SILENCE);
        let (begin, begun) = tokio::sync::oneshot::channel();
        let mut routes = host.routes.clone();
        let served = back.clone();
        let env = host.env.clone();
        host.env.spawn(async move {
            let response = match routes.call(Request::from_parts(head, request)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let (head, body) = response.into_parts();
            let body = pipe::carry(&env, body, served, CLIENT_SILENCE);
            drop(begin.send(Response::from_parts(head, body)));
        });
        let begun = async {
            let response = begun.await.map_err(|_| failed("the connection broke"))?;
            tokio::time::sleep(network.delay()).await;
            network.open(&back.from, &back.to).await;
            Ok(response)
        };
        tokio::select! {
            biased;
            response = begun => response,
            () = network.broken(&back.to, &back.from, resets, CLIENT_SILENCE) => {
                Err(failed("the connection broke"))
            }
        }
    }
}
