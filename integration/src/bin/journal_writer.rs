//! The work under a lock that a test supervises: `journal_writer JOURNAL KEY NAME MILLISECONDS
//! STATUS`.
//!
//! It writes a line to the shared journal every 10 ms, for so long, and exits with the status. It
//! ends early once there is a file `JOURNAL.stop`. It holds a kernel lock for its life, so that the
//! journal shows for certain that another writer of the key still runs. See `integration::journal`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The pause between two lines.
const PAUSE: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    match run() {
        Ok(status) => status,
        Err(why) => {
            eprintln!("journal_writer: {why}");
            ExitCode::from(99)
        }
    }
}

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [journal, key, name, milliseconds, status] = args.as_slice() else {
        return Err("JOURNAL KEY NAME MILLISECONDS STATUS".into());
    };
    let (milliseconds, status): (u64, u8) = (milliseconds.parse()?, status.parse()?);
    let token: u64 = std::env::var("LOCKSERVICE_TOKEN")?.parse()?;
    let (pid, stop) = (std::process::id(), format!("{journal}.stop"));
    let mut file = OpenOptions::new().append(true).create(true).open(journal)?;
    // One write a line: the kernel puts the lines of all writers in one order.
    let mut say =
        |does: &str| file.write_all(format!("{does} {key} {name} {token} {pid}\n").as_bytes());
    let alone = File::create(format!("{journal}.{key}.flock"))?;
    match alone.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => say("overlaps")?,
        Err(TryLockError::Error(e)) => return Err(e.into()),
    }
    say("begins")?;
    for _ in 0..milliseconds / PAUSE.as_millis() as u64 {
        if Path::new(&stop).exists() {
            break;
        }
        pause();
        say("works")?;
    }
    say("ends")?;
    Ok(ExitCode::from(status))
}

#[expect(clippy::disallowed_methods, reason = "the passing of time is the work")]
fn pause() {
    std::thread::sleep(PAUSE);
}
