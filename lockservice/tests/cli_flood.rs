//! A client that floods the server with sessions, waits, giant messages, lists and connections is
//! refused at its limits. All others are served, and the server stays within its memory.

mod cli_support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use cli_support::{DEADLINE, Running, json_lines, lockservice, now, stderr};
use lockservice::token::{TokenHash, new_token};
use lockservice::{Client, Credentials, Key, LockItem, LockSpec, TableRef};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The limits of the client that floods, small enough to be reached at once.
const KEPT_BYTES: u64 = 16 * MIB;
const LOCK_BYTES: u64 = 16 * MIB;
/// What a server takes beside the limits: connections with their buffers, open calls, the memory
/// that its allocator keeps for a while.
const BESIDE: u64 = 160 * MIB;

/// Calls of the other client while the server is flooded.
const CALLS: usize = 2_000;

struct Flooded {
    server: Running,
    address: String,
    metrics: String,
    tokens: [(String, tempfile::NamedTempFile); 2],
    _folder: tempfile::TempDir,
}

impl Flooded {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = [(); 2].map(|()| {
            let (token, mut file) =
                (new_token().expect("random"), tempfile::NamedTempFile::new().expect("a file"));
            file.write_all(token.as_bytes()).expect("written");
            (token, file)
        });
        let identity = |name: &str, token: &str, limits: &str| {
            let hash = TokenHash::of(token);
            format!(
                "[[identity]]\nname = '{name}'\nroles = ['client']\ntoken_sha256 = '{hash}'\n\
                 {limits}\n"
            )
        };
        let limits = format!(
            "limits = {{ sessions_max = 20, txns_max = 5_000, ops_max = 500, calls_max = 200, \
             kept_bytes_max = {KEPT_BYTES}, lock_bytes_max = {LOCK_BYTES} }}"
        );
        let file = folder.path().join("identities.toml");
        let identities =
            identity("flood", &tokens[0].0, &limits) + &identity("other", &tokens[1].0, "");
        std::fs::write(&file, identities).expect("written");
        let mut command = lockservice(&[
            "serve",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "memory:",
            "--metrics",
            "127.0.0.1:0",
            "--identity-file",
        ]);
        let mut server = Running::start(command.arg(&file));
        let ready: Value = serde_json::from_str(&server.line()).expect("one object");
        let text = |key: &str| ready[key].as_str().expect("an address").to_owned();
        Self {
            address: text("address"),
            metrics: text("metrics_address"),
            server,
            tokens,
            _folder: folder,
        }
    }

    /// Begins the flood, and waits until it is refused something.
    fn flood(&self) -> Running {
        let file = self.tokens[0].1.path().to_str().expect("text");
        let mut command = lockservice(&["__bench_flood", &self.address, "--token-file", file]);
        let mut flood = Running::start(command.stdin(Stdio::piped()));
        assert_eq!(flood.line(), "flooding");
        assert_eq!(flood.line(), "at a limit");
        flood
    }

    fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.metrics).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").expect("it reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        let line = response.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number");
        value as u64
    }

    /// The resident memory of the server, in bytes.
    fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.server.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }
}

fn spec(key: &str) -> LockSpec {
    let row = LockItem::Row(Key::new(key).expect("a key"));
    LockSpec::new(TableRef::new("default", "others").expect("names"), vec![row])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_refused_at_its_limits_and_every_other_client_is_served() {
    let flooded = Flooded::start();
    let credentials = Credentials::default().token(flooded.tokens[1].0.clone());
    let client = Client::builder().credentials(credentials);
    let client = client.connect(&flooded.address).await.expect("it listens");
    let session = client.session(None).await.expect("it serves");
    // It holds this lock all the time, and waits for nothing.
    let kept = session.lock(spec("kept")).await.expect("free");
    let before = flooded.resident();
    let mut flood = flooded.flood();
    let (mut most, mut kept_bytes, mut lock_bytes) = (0, 0, 0);
    for call in 0..CALLS {
        let lock = session.lock(spec(&format!("k{call}"))).await.expect("others are served");
        lock.unlock().await.expect("others are served");
        if call % 100 == 0 {
            most = most.max(flooded.resident());
            kept_bytes = kept_bytes.max(flooded.metric("lockservice_operations_kept_bytes"));
            lock_bytes = lock_bytes.max(flooded.metric("lockservice_lock_memory_bytes"));
            // A session that begins now is served too, and ends.
            let more = client.session(None).await.expect("others are served");
            more.close().await.expect("acknowledged");
        }
    }
    assert!(kept.lost_now().is_none(), "no session of others is lost");
    kept.unlock().await.expect("it was held all the time");
    drop(flood.child.stdin.take());
    let done = flood.line();
    let (status, text) = flood.wait();
    assert!(status.success(), "{text}");
    println!("{done}; resident {before} then {most}, kept {kept_bytes}, locks {lock_bytes} bytes");
    let numbers: Vec<u64> = done.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [calls, refused] = numbers[..] else { panic!("two numbers: {done}") };
    assert!(calls > refused && refused > 0, "{done}");
    // The limits of the flood, and a little of the other client.
    assert!(kept_bytes <= KEPT_BYTES + 2 * MIB, "{kept_bytes} bytes are kept");
    // A hold that another call meets takes more than it was counted with.
    assert!(lock_bytes <= 2 * LOCK_BYTES, "{lock_bytes} bytes of locks");
    let grown = most.saturating_sub(before);
    assert!(grown <= KEPT_BYTES + LOCK_BYTES + BESIDE, "{} MiB more", grown / MIB);
    // The flood ends with its client.
    let give_up = now() + DEADLINE;
    while flooded.metric("lockservice_sessions") > 1 {
        assert!(now() < give_up, "sessions of the flood do not lapse");
    }
    let locks = lockservice(&["locks", "--json", "--server", &flooded.address])
        .env("LOCKSERVICE_AUTH_TOKEN", &flooded.tokens[1].0)
        .output()
        .expect("it starts");
    assert!(json_lines(&locks).is_empty(), "{}", stderr(&locks));
}
