//! What the leader's decisions cost, in optimised code: `cargo xtask bench` builds it for release and reads what it
//! prints.
//!
//! - `measure-leader lost RUNS HOSTS`: a host is lost, the built-in rule decides;
//! - `measure-leader policy RUNS HOSTS LIBRARY SPREAD.wasm`: the same where the policy is asked for each place;
//! - `measure-leader rest RUNS HOSTS...`: a renewal, and a fact that changes one instance;
//! - `measure-leader rack HOSTS LOST`: so many hosts are lost at once, each step of what follows;
//! - `measure-leader admit RUNS HOSTS`: a terminal with three nodes is admitted;
//! - `measure-leader beside ENDPOINT HOSTS`: so many hosts live in an etcd, for agents that are watched: a line every 5 s.
//!
//! Promises: one line of JSON, which `tests/bench/src/leader.rs` reads. Must not do: judge a figure.

mod beside;
mod cluster;
mod lost;
mod rack;
mod rest;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use understudy_policy::{Library, Limits, PolicySet, Settings};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().with_context(|| format!("'{text}' is no number"));
    let line = match arguments[..] {
        ["lost", runs, hosts] => serde_json::to_string(&lost::measure(number(hosts)?, number(runs)?, None)?)?,
        ["policy", runs, hosts, library, component] => {
            let policy = policy(Path::new(library), Path::new(component))?;
            serde_json::to_string(&lost::measure(number(hosts)?, number(runs)?, Some(&policy))?)?
        }
        ["rest", runs, ref hosts @ ..] => {
            let hosts = hosts.iter().map(|hosts| number(hosts)).collect::<Result<Vec<usize>>>()?;
            serde_json::to_string(&rest::measure(&hosts, number(runs)?)?)?
        }
        ["rack", hosts, lost] => serde_json::to_string(&rack::measure(number(hosts)?, number(lost)?)?)?,
        ["admit", runs, hosts] => serde_json::to_string(&rest::admit(number(hosts)?, number(runs)?)?)?,
        ["beside", endpoint, hosts] => return beside::run(endpoint, number(hosts)?),
        _ => bail!(
            "lost RUNS HOSTS, policy RUNS HOSTS LIBRARY SPREAD.wasm, rest RUNS HOSTS..., rack HOSTS LOST, admit RUNS HOSTS, or beside \
             ENDPOINT HOSTS"
        ),
    };
    println!("{line}");
    Ok(())
}

/// The set with this policy alone, as the daemon loads it.
fn policy(library: &Path, component: &Path) -> Result<PolicySet> {
    let name = component.file_stem().and_then(|stem| stem.to_str()).context("a file without a name")?;
    let bytes = std::fs::read(component).with_context(|| format!("read {}", component.display()))?;
    let limits = Limits::default();
    let library = Library::open(library)?;
    let digests = BTreeMap::from([(name.to_owned(), library.add(&bytes, limits.file_size)?)]);
    let (set, faults) =
        PolicySet::load(&library, &digests, &Settings::without_file(limits), &BTreeSet::new());
    ensure!(faults.is_empty(), "{name}: {faults:?}");
    Ok(set)
}
