//! The `lockservice` command: see `lockservice --help`.

use std::process::ExitCode;

/// The allocator of the system keeps nearly all that a peak of locks and waits has used, for a few
/// long-lived values lie among them. This one gives it back within ten seconds; in a server by a
/// thread of its own.
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    lockservice::cli::main()
}
