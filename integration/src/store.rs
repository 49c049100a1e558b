//! The stores that a test runs on.

use std::path::Path;
use std::process::Command;

use lockservice_core::maintenance::{ProblemKind, diagnose};
use lockservice_core::store::Inspection;

use crate::{binary, skip};

/// A kind of store that outlives its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreKind {
    /// `file:`
    File,
    /// `rocks:`
    Rocks,
}

impl StoreKind {
    /// The URL of such a store in `directory`.
    pub fn url(self, directory: &Path) -> String {
        match self {
            Self::File => format!("file:{}", directory.join("lockservice.db").display()),
            Self::Rocks => format!("rocks:{}", directory.join("rocks").display()),
        }
    }

    /// True if the binary was built with this store; otherwise says that the test is skipped.
    ///
    /// # Panics
    /// If it was not, in CI.
    pub fn is_there(self) -> bool {
        if self == Self::File {
            return true;
        }
        // A port that cannot be listened on would end `serve` before the store is looked at, so an
        // impossible path shows it.
        let path = Path::new("/dev/null/no-such-directory");
        let output = Command::new(binary::lockservice())
            .args(["serve", "--listen", "127.0.0.1:0", "--store", &self.url(path)])
            .output()
            .expect("the binary can be started");
        let sentence = String::from_utf8_lossy(&output.stderr);
        let missing = sentence.contains("--features rocks");
        if missing {
            skip(
                "this lockservice was built without RocksDB: cargo build -p lockservice \
                    --features rocks",
            );
        }
        !missing
    }
}

/// The findings of an inspection, by name.
pub fn named(inspection: &Inspection) -> Vec<(ProblemKind, String)> {
    diagnose(inspection).into_iter().map(|problem| (problem.kind, problem.record)).collect()
}

/// Runs an `async fn(StoreKind)` as one test for each store.
#[macro_export]
macro_rules! on_each_store {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_the_file_store() {
                super::check::$name($crate::store::StoreKind::File).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_rocksdb() {
                if $crate::store::StoreKind::Rocks.is_there() {
                    super::check::$name($crate::store::StoreKind::Rocks).await;
                }
            }
        }
    )*};
}
