//! Servers with identities.

use std::path::{Path, PathBuf};
use std::process::Output;

use lockservice::token::{TokenHash, new_token};

use crate::cli_support::{Running, Server, code, lockservice, stderr};
use crate::tls_kit::call;

/// A token, and the file that holds it.
pub(crate) struct Token {
    pub(crate) text: String,
    folder: tempfile::TempDir,
}

impl Token {
    pub(crate) fn new() -> Self {
        let (text, folder) = (new_token().expect("random"), tempfile::tempdir().expect("a folder"));
        let token = Self { text, folder };
        token.write(&token.text);
        token
    }

    /// Replaces what the file holds.
    pub(crate) fn write(&self, text: &str) {
        replace(&self.path(), text);
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    pub(crate) fn hash(&self) -> String {
        TokenHash::of(&self.text).to_string()
    }

    /// The flags of a client that presents it.
    pub(crate) fn flags(&self) -> Vec<String> {
        vec!["--token-file".to_owned(), self.path().to_str().expect("text").to_owned()]
    }
}

/// Replaces a file by renaming.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("renamed");
}

/// An `[[identity]]` with a token.
pub(crate) fn identity(name: &str, roles: &str, token: &Token, more: &str) -> String {
    let hash = token.hash();
    format!("[[identity]]\nname = '{name}'\nroles = [{roles}]\ntoken_sha256 = '{hash}'\n{more}\n")
}

/// A server on loopback, in plain text, whose callers are those of an identity file.
pub(crate) struct Guarded {
    pub(crate) server: Server,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Guarded {
    pub(crate) fn start(identities: &str) -> Self {
        Self::start_with(identities, "")
    }

    /// With these settings.
    pub(crate) fn start_with(identities: &str, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("identities.toml");
        replace(&file, identities);
        let config = folder.path().join("settings.toml");
        replace(&config, settings);
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let flags = ["--identity-file", &text(&file), "--config", &text(&config)];
        let server = Server::start_with(&flags);
        Self { server, file, _folder: folder }
    }

    /// Replaces the identities. The server notices it by itself.
    pub(crate) fn set(&self, identities: &str) {
        replace(&self.file, identities);
    }

    pub(crate) fn call(&self, args: &[&str], token: &Token) -> Output {
        call(&self.server.address, args, &token.flags())
    }
}

/// The call was refused at once, with this in its sentence.
#[track_caller]
pub(crate) fn is_refused(output: &Output, said: &str) {
    let text = stderr(output);
    assert_eq!(code(output), 64, "{text}");
    assert!(text.contains(said), "{said}: {text}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[track_caller]
pub(crate) fn is_done(output: &Output) {
    assert_eq!(code(output), 0, "{}", stderr(output));
}

/// `serve` with a configuration file of this text, which is expected to serve.
pub(crate) fn serve_with(config: &Path, flags: &[&str]) -> (Running, String) {
    let config = config.to_str().expect("text");
    let args = ["serve", "--json", "--listen", "127.0.0.1:0", "--store", "memory:", "--config"];
    let mut command = lockservice(&args);
    command.arg(config).args(flags).env("RUST_LOG", "debug");
    let mut running = Running::start(&mut command);
    let ready: serde_json::Value = serde_json::from_str(&running.line()).expect("one object");
    (running, ready["address"].as_str().expect("the address").to_owned())
}
