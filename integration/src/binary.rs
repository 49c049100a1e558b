//! Finds the programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `lockservice` command of this build.
pub fn lockservice() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("lockservice", &["--bin", "lockservice"]))
}

/// The bank example of this build.
pub fn bank() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("examples/bank", &["--example", "bank"]))
}

/// The program beside the test's own executable. Compiled only if it is missing, and then without
/// RocksDB: `integration/test` builds all programs with every feature before it runs the tests.
fn find(name: &str, build: &[&str]) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its executable");
    let profile = test.parent().and_then(Path::parent).expect("tests are in target/PROFILE/deps");
    let program = profile.join(name);
    if !program.exists() {
        eprintln!("{} is missing: compiling it", program.display());
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "-p", "lockservice"])
            .args(build)
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo
            .arg("--target-dir")
            .arg(profile.parent().expect("the profile is in the target directory"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo can be started");
        assert!(
            status.success() && program.exists(),
            "cannot compile {name}: run cargo build -p lockservice {build:?}"
        );
    }
    program
}
