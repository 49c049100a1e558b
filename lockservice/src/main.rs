//! The `lockservice` command: see `lockservice --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockservice::cli::main()
}
