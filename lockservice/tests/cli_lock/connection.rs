//! The connection to the server is lost, and comes back.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_support::{Running, Server, lockservice};

/// Forwards connections to a server, until the test breaks them.
struct Proxy {
    address: String,
    shut: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (shut, sockets) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let proxy = Self { address, shut: Arc::clone(&shut), sockets: Arc::clone(&sockets) };
        let server = server.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if !shut.load(SeqCst) {
                    // A connection that cannot be made is one that breaks.
                    let _ = forward(client, &server, &sockets);
                }
            }
        });
        proxy
    }

    /// Breaks every connection.
    fn cut(&self) {
        for socket in self.sockets.lock().expect("no panic").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Breaks every connection that there is, and will be.
    fn shut(&self) {
        self.shut.store(true, SeqCst);
        self.cut();
    }

    fn reopen(&self) {
        self.shut.store(false, SeqCst);
    }
}

fn forward(client: TcpStream, server: &str, sockets: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    sockets.lock().expect("no panic").extend([client.try_clone()?, server.try_clone()?]);
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// `lock ARGS -- sh -c SCRIPT` through the proxy, running.
fn lock(proxy: &Proxy, args: &[&str], script: &str) -> Running {
    let args = [&["lock", "--server", &proxy.address], args, &["--", "sh", "-c", script]].concat();
    Running::start(&mut lockservice(&args))
}

/// The next line on stderr that has `text`.
fn says(running: &Running, text: &str) -> String {
    loop {
        let line = running.error_line();
        if line.contains(text) {
            return line;
        }
    }
}

#[test]
fn a_command_goes_on_while_the_connection_is_lost_and_that_is_said_once() {
    let server = Server::start();
    let proxy = Proxy::start(&server.address);
    let mut holder = lock(&proxy, &["t", "k", "--json"], "echo held; exec sleep 1000");
    assert_eq!(holder.line(), "held");
    proxy.cut();
    proxy.shut();
    let lost: Value = serde_json::from_str(&holder.error_line()).expect("one object");
    assert_eq!(lost["event"], "connection_lost");
    assert!(lost["valid_for_ms"].as_u64().is_some_and(|left| left > 0), "{lost}");
    proxy.reopen();
    let back: Value = serde_json::from_str(&holder.error_line()).expect("one object");
    assert_eq!(back["event"], "connection_back");
    holder.signal(Signal::TERM);
    let (_, said) = holder.wait();
    assert_eq!(said, "", "nothing else happened");
}

#[test]
fn a_wait_goes_on_while_the_connection_is_lost() {
    let server = Server::start();
    let (holder, _) = server.hold(&["t", "k"]);
    let proxy = Proxy::start(&server.address);
    let mut waiter = lock(&proxy, &["t", "k", "--timeout", "60s"], "echo got it");
    server.waits(1);
    proxy.shut();
    says(&waiter, "the connection to the server is lost: trying again; the wait goes on");
    proxy.reopen();
    says(&waiter, "the server is back; the wait goes on");
    holder.signal(Signal::TERM);
    assert_eq!(waiter.line(), "got it");
    assert!(waiter.wait().0.success());
    drop(holder);
}
