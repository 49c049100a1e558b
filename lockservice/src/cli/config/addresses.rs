//! The addresses of a node: those it listens on, and those at which others reach it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use super::Config;
use crate::cli::exit::Failure;

impl Config {
    /// The addresses to listen on, tried in this order. Fails if one can be reached from other
    /// machines, and not both TLS is used and callers are checked, unless `insecure` is set.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let addresses = resolve(&self.listen, "--listen")?;
        if self.is_open() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(Failure::usage(format!(
                "{} can be reached from other machines, and this server does not both encrypt and \
                 check who calls: listen on 127.0.0.1, use TLS (--tls-cert, --tls-key) with \
                 --tls-client-ca or identities, or say --insecure if the network is trusted",
                self.listen
            )));
        }
        Ok(addresses)
    }

    /// The addresses to listen on for other nodes, tried in this order, if clients are listened to
    /// on `clients`; `None` if there can be no other nodes. Fails if one can be reached from other
    /// machines, and not both TLS is used and callers are checked, unless `insecure` is set.
    pub(crate) fn peer_addresses(
        &self,
        clients: SocketAddr,
    ) -> Result<Option<Vec<SocketAddr>>, Failure> {
        if !self.store_url()?.is_shared() {
            return Ok(None);
        }
        if self.peer_listen.is_empty() {
            if !clients.ip().is_loopback() {
                return Err(Failure::usage(
                    "nodes that share a store must reach each other, and by default only those on \
                     this machine do: say with \
                     --peer-listen HOST:PORT where this node listens to other nodes \
                     (127.0.0.1:PORT if it is alone). A process that reaches that \
                     port owns the cluster",
                ));
            }
            // Port 0 still means any free port.
            let port = resolve(&self.listen, "--listen")?.first().map_or(0, SocketAddr::port);
            let port = match port {
                0 => 0,
                port => port.checked_add(1).ok_or_else(|| {
                    Failure::usage(
                        "there is no port after that of --listen: say with \
                        --peer-listen where to listen to other nodes",
                    )
                })?,
            };
            return Ok(Some(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))]));
        }
        let addresses = resolve(&self.peer_listen, "--peer-listen")?;
        if self.is_open() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(Failure::usage(format!(
                "{} can be reached from other machines, and a process that reaches it owns the \
                 cluster: use TLS (--tls-cert, --tls-key) with --tls-client-ca or identities, or \
                 let only its nodes reach it and say --insecure",
                self.peer_listen
            )));
        }
        Ok(Some(addresses))
    }

    /// True if every process that reaches this server can use it, and `insecure` is not set.
    fn is_open(&self) -> bool {
        let closed = self.tls.is_mutual() || (self.tls.is_set() && self.has_identities());
        !self.insecure && !closed
    }

    /// The addresses to listen on for monitoring, tried in this order, if clients are listened to
    /// on `clients`; `None` if there is no such listener. Fails if the address is that of clients.
    ///
    /// It may be reached from other machines without further ado: what it says names no table, key
    /// or client, and it changes nothing.
    pub(crate) fn metrics_addresses(
        &self,
        clients: SocketAddr,
    ) -> Result<Option<Vec<SocketAddr>>, Failure> {
        if self.metrics.is_empty() {
            return Ok(None);
        }
        let addresses = resolve(&self.metrics, "--metrics")?;
        let is_taken = |address: &SocketAddr| {
            let same = address.ip() == clients.ip();
            let any = address.ip().is_unspecified() || clients.ip().is_unspecified();
            address.port() == clients.port() && (same || any)
        };
        if addresses.iter().any(is_taken) {
            return Err(Failure::usage(format!(
                "{} is the address for clients too: choose another port with --metrics",
                self.metrics
            )));
        }
        Ok(Some(addresses))
    }

    /// The address at which clients reach a node that listens on `address`. Fails if several nodes
    /// share the store and no client could follow a table there.
    pub(crate) fn advertised(&self, address: SocketAddr) -> Result<String, Failure> {
        self.reached_at(&self.advertise, "--advertise", address)
    }

    /// The address at which other nodes reach a node that listens to them on `address`. Fails if
    /// none could.
    pub(crate) fn peer_advertised(&self, address: SocketAddr) -> Result<String, Failure> {
        self.reached_at(&self.peer_advertise, "--peer-advertise", address)
    }

    fn reached_at(&self, given: &str, flag: &str, address: SocketAddr) -> Result<String, Failure> {
        if !given.is_empty() {
            crate::channel::endpoint(given, std::time::Duration::ZERO).map_err(|_| {
                Failure::usage(format!(
                    "{given:?} is no address to connect to: write HOST:PORT in {flag}"
                ))
            })?;
            return Ok(given.to_owned());
        }
        if self.store_url()?.is_shared() && address.ip().is_unspecified() {
            return Err(Failure::usage(format!(
                "nodes that share a store must reach each other, and {address} is no address to \
                 connect to: \
                 say with {flag} HOST:PORT where this node is reached"
            )));
        }
        Ok(address.to_string())
    }
}

fn resolve(address: &str, flag: &str) -> Result<Vec<SocketAddr>, Failure> {
    let address = ["http://", "https://"]
        .iter()
        .find_map(|scheme| address.strip_prefix(scheme))
        .unwrap_or(address);
    let resolved = address.to_socket_addrs().map_err(|error| {
        Failure::usage(format!(
            "cannot listen on {address:?}: {error}; write HOST:PORT in {flag}, for example \
                127.0.0.1:7654"
        ))
    })?;
    Ok(resolved.collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;
    use crate::cli::exit;

    #[test]
    fn a_node_of_a_shared_store_must_say_where_it_is_reached() {
        let everywhere: SocketAddr = "0.0.0.0:7".parse().unwrap();
        let shared = ["--store", "postgres://h/d"];
        let refused = load(&shared, &[]).unwrap().advertised(everywhere).unwrap_err();
        assert!(
            refused.status == exit::USAGE && refused.sentence.contains("--advertise"),
            "{}",
            refused.sentence
        );
        assert_eq!(
            load(&shared, &[("LOCKSERVICE_ADVERTISE", "h:7")])
                .unwrap()
                .advertised(everywhere)
                .unwrap(),
            "h:7"
        );
        assert_eq!(
            load(&shared, &[]).unwrap().advertised("127.0.0.1:7".parse().unwrap()).unwrap(),
            "127.0.0.1:7"
        );
        assert_eq!(
            load(&[], &[]).unwrap().advertised(everywhere).unwrap(),
            "0.0.0.0:7",
            "there are no other nodes"
        );
        assert!(load(&["--advertise", "a b"], &[]).unwrap().advertised(everywhere).is_err());
    }

    #[test]
    fn other_nodes_are_listened_to_on_loopback_beside_the_clients_or_where_the_option_says() {
        let local: SocketAddr = "127.0.0.1:9000".parse().unwrap();
        let peers = |flags: &[&str], clients| load(flags, &[]).unwrap().peer_addresses(clients);
        let shared = ["--store", "postgres://h/d", "--listen", "127.0.0.1:9000"];
        assert_eq!(peers(&shared, local).unwrap().unwrap(), ["127.0.0.1:9001".parse().unwrap()]);
        let free = ["--store", "postgres://h/d", "--listen", "127.0.0.1:0"];
        assert_eq!(peers(&free, local).unwrap().unwrap(), ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(
            peers(&["--peer-listen", "127.0.0.1:9"], local).unwrap(),
            None,
            "a file has no other nodes"
        );
        let args = [&shared[..], &["--peer-listen", "127.0.0.1:9"]].concat();
        assert_eq!(peers(&args, local).unwrap().unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        let last = ["--store", "postgres://h/d", "--listen", "127.0.0.1:65535"];
        assert!(peers(&last, local).unwrap_err().sentence.contains("--peer-listen"));
        let open = [&shared[..], &["--peer-listen", "0.0.0.0:9"]].concat();
        assert!(peers(&open, local).unwrap_err().sentence.contains("--insecure"));
        assert!(peers(&[&open[..], &["--insecure"]].concat(), local).is_ok());
        // A node that listens to clients of other machines has peers there too.
        let everywhere = "0.0.0.0:9000".parse().unwrap();
        assert!(peers(&shared, everywhere).unwrap_err().sentence.contains("--peer-listen"));
        assert!(peers(&args, everywhere).is_ok());
    }

    #[test]
    fn metrics_have_an_address_of_their_own_or_none() {
        let clients: SocketAddr = "127.0.0.1:9000".parse().unwrap();
        let metrics =
            |address: &str| load(&["--metrics", address], &[]).unwrap().metrics_addresses(clients);
        assert_eq!(load(&[], &[]).unwrap().metrics_addresses(clients).unwrap(), None);
        assert_eq!(
            metrics("127.0.0.1:9001").unwrap().unwrap(),
            ["127.0.0.1:9001".parse().unwrap()]
        );
        assert!(metrics("0.0.0.0:9001").is_ok());
        for taken in ["127.0.0.1:9000", "0.0.0.0:9000"] {
            let refused = metrics(taken).unwrap_err();
            assert!(refused.status == exit::USAGE && refused.sentence.contains("--metrics"));
        }
        assert!(metrics("nonsense").unwrap_err().sentence.contains("--metrics"));
    }

    #[test]
    fn an_address_that_others_can_reach_is_refused_unless_insecure_is_set() {
        assert_eq!(
            load(&["--listen", "0.0.0.0:0"], &[]).unwrap().addresses().unwrap_err().status,
            exit::USAGE
        );
        assert!(load(&["--listen", "0.0.0.0:0", "--insecure"], &[]).unwrap().addresses().is_ok());
        assert!(load(&["--listen", "nonsense"], &[]).unwrap().addresses().is_err());
    }
}
