//! `integration/simulate`: runs the simulation for any number of seeds.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration::simulation::faults::{Focus, focus_of};
use integration::simulation::{Plan, run};
use lockservice_core::testing::Planted;

const USAGE: &str = "usage: simulate [N] [--seed SEED] [--echo] [--faults SECONDS] [--planted]

With --planted it plants each fault of lockservice_core::testing::Planted in turn, and counts the
seeds that find it.";

/// The value of the option `name`, if it is given.
fn value(args: &[String], name: &str) -> Option<u64> {
    let at = args.iter().position(|arg| arg == name)?;
    Some(args.get(at + 1).and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        eprintln!("{name} needs a number\n{USAGE}");
        std::process::exit(64);
    }))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let count = args.first().and_then(|text| text.parse::<u64>().ok());
    let seed = value(&args, "--seed");
    let faults = Duration::from_secs(value(&args, "--faults").unwrap_or(30));
    let echo = args.iter().any(|arg| arg == "--echo");
    if count.is_none() && seed.is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    }
    // Not for a decision: another run tries other seeds.
    #[allow(clippy::disallowed_methods, reason = "only the choice of seeds")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = seed.unwrap_or(now.as_micros() as u64);
    if args.iter().any(|arg| arg == "--planted") {
        for planted in Planted::ALL {
            Planted::plant(Some(planted));
            let focus = focus_of(planted);
            let plan = |n| Plan { seed: first.wrapping_add(n), faults, focus, echo: false };
            let runs = count.unwrap_or(1);
            let found = (0..runs).filter(|n| run(&plan(*n)).violation.is_some()).count();
            println!("{planted:?}: found by {found} of {runs} seeds from {first}");
        }
        return ExitCode::SUCCESS;
    }
    let (mut counts, mut befallen) = (BTreeMap::new(), BTreeMap::new());
    let (mut simulated, mut failed) = (Duration::ZERO, 0_u64);
    let count = count.unwrap_or(1);
    for n in 0..count {
        let report = run(&Plan { seed: first.wrapping_add(n), faults, focus: Focus::All, echo });
        simulated += report.simulated;
        if report.violation.is_some() {
            failed += 1;
            println!("{report}\n");
        }
        report.counts.iter().for_each(|(what, n)| *counts.entry(*what).or_insert(0) += n);
        report.faults.iter().for_each(|(what, n)| *befallen.entry(*what).or_insert(0) += n);
    }
    println!("{count} runs from seed {first}, {failed} of them violated an invariant");
    println!("{:.1} hours simulated", simulated.as_secs_f64() / 3_600.0);
    println!("what happened: {counts:#?}\nfaults: {befallen:#?}");
    ExitCode::from(u8::from(failed > 0))
}
