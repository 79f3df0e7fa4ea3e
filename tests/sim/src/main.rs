//! Runs the simulation for one seed or many.

use std::process::ExitCode;

use clap::Parser;
use understudy_sim::{Options, REGRESSIONS, Weakness, run, seeds};

/// Simulates clusters under faults, and prints what was found.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How many steps of 25 simulated milliseconds the faults go on.
    #[arg(long)]
    steps: Option<u64>,
    /// How many hosts, instead of a number drawn from the seed.
    #[arg(long)]
    hosts: Option<usize>,
    /// Switches a protection off.
    #[arg(long)]
    weakness: Option<Weakness>,
    /// Propose sets of policies all the time.
    #[arg(long)]
    sets: bool,
    /// Instances resist their end, operators want failovers, and agents of another version cannot read records.
    #[arg(long)]
    ailing: bool,
    /// Parts of hosts fail while the rest of them works: a guard, one kind of call, an agent alone.
    #[arg(long)]
    partial: bool,
    /// Runs the seeds that failed once first.
    #[arg(long)]
    regressions: bool,
    /// Holds also what comes all the time among the events.
    #[arg(long)]
    detailed: bool,
    /// Prints every event.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Arguments { steps, hosts, weakness, sets, ailing, partial, detailed, .. } = arguments;
    let known = if arguments.regressions { seeds(REGRESSIONS) } else { Vec::new() };
    let mut failed = Vec::new();
    for seed in known.into_iter().chain(arguments.seed..arguments.seed.saturating_add(arguments.seeds)) {
        let outcome = run(seed, Options { steps, hosts, weakness, sets, ailing, partial, detailed });
        println!("{}", outcome.title);
        if arguments.verbose || (outcome.failure.is_some() && arguments.seeds == 1) {
            println!("{}", outcome.events.join("\n"));
        }
        let [failovers, restores, migrations] = outcome.counts;
        match outcome.failure {
            None => println!(
                "  holds: {failovers} failovers, {restores} restores, {migrations} migrations, at rest after {} ms",
                outcome.rest_ms
            ),
            Some(failure) => {
                println!("  BROKEN: {failure}");
                failed.push(seed);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("{} seeds broke something: {failed:?}", failed.len());
    eprintln!("look at one with --seed N --verbose, and add it to tests/sim/regressions.txt");
    ExitCode::FAILURE
}
