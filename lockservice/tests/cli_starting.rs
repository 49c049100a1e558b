//! `lockservice lock` while its server is starting, and while it is restarted.

mod cli_support;

use std::sync::Arc;

use cli_support::{Running, code, json_lines, lockservice, now, stderr};
use lockservice::server::{Server, ServerSettings, ServiceHost};
use lockservice_core::NodeName;
use lockservice_core::allocator::{AllocatorSettings, LocalAllocator, LockTableAllocator};
use lockservice_core::clock::{Clock, SystemClock};
use lockservice_core::service::ServiceParts;
use lockservice_core::store::MemoryStore;
use rustix::process::Signal;
use tokio::net::TcpListener;

/// `lock ARGS -- sh -c SCRIPT` at a server, running.
fn lock(server: &str, args: &[&str], script: &str) -> Running {
    Running::start(&mut lockservice(
        &[&["lock", "--server", server], args, &["--", "sh", "-c", script]].concat(),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_meets_a_node_that_is_starting_and_waits_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let node = NodeName::new("node").expect("a name");
    let (store, settings) = (Arc::new(MemoryStore::new(1)), AllocatorSettings::default());
    let allocator = LocalAllocator::open(store, Arc::clone(&clock), settings, node.clone())
        .await
        .expect("it opens");
    let allocator: Arc<dyn LockTableAllocator> = allocator;
    let mut server = Server::start(listener, Arc::clone(&allocator), ServerSettings::default())
        .await
        .expect("it listens");

    let mut waiting = lock(&address, &["t", "k", "--timeout", "60s"], "echo got it");
    let refused = address.clone();
    let refused = tokio::task::spawn_blocking(move || {
        lockservice(&["lock", "--server", &refused, "t", "k", "--no-wait", "--", "true"])
            .output()
            .expect("it starts")
    });
    let refused = refused.await.expect("no panic");
    assert_eq!(code(&refused), 69, "one that may not wait is answered: {}", stderr(&refused));
    assert!(stderr(&refused).contains("the node is starting"), "{}", stderr(&refused));

    let host = ServiceHost::start(ServiceParts::new(allocator, clock, node))
        .await
        .expect("it has a lease");
    server.host(host).await;
    let line = tokio::task::spawn_blocking(move || (waiting.line(), waiting.wait()))
        .await
        .expect("no panic");
    assert_eq!((line.0.as_str(), line.1.0.code()), ("got it", Some(0)), "{}", line.1.1);
}

#[test]
fn a_waiter_goes_on_when_its_server_is_restarted() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("file:{}", folder.path().join("db").display());
    // A port that was free a moment ago: the server comes back where it was.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("it is bound").to_string();
    drop(free);
    let serve = || {
        let mut server = Running::start(&mut lockservice(&[
            "serve", "--json", "--listen", &address, "--store", &store,
        ]));
        server.line();
        server
    };
    let server = serve();
    let mut holder = lock(&address, &["t", "k"], "echo held; exec sleep 1000");
    assert_eq!(holder.line(), "held");
    let mut waiting = lock(&address, &["t", "k", "--timeout", "120s"], "echo got it");
    let give_up = now() + cli_support::DEADLINE;
    while json_lines(
        &lockservice(&["waits", "--json", "--server", &address]).output().expect("it starts"),
    )
    .is_empty()
    {
        assert!(now() < give_up, "nobody waits");
    }
    server.signal(Signal::TERM);
    let (stopped, said) = server.wait();
    assert!(stopped.success(), "it stops in order: {said}");
    let _server = serve();
    // The holder goes on, too.
    let other = lockservice(&["lock", "other", "k", "--server", &address, "--", "true"]);
    assert_eq!(code(&{ other }.output().expect("it starts")), 0);
    holder.signal(Signal::TERM);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&holder.wait().0), Some(15));
    assert_eq!(waiting.line(), "got it");
    assert!(waiting.wait().0.success());
}
