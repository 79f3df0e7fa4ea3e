//! Measures policies outside of the daemon:
//!
//! - `measure bench FILE...`: placement policies against the daemon's own rule in native code;
//! - `measure load FILE...`: how long a set of them takes to load, compiled and from the cache, and the memory that
//!   this process has before, after loading, and after questions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use understudy_policy::{
    BENCH_HOSTS, Digest, Library, Limits, Mode, PolicySet, Settings, Wanted, bench, built_in,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().context("say what to measure: bench or load")?;
    let mut components = BTreeMap::new();
    for file in arguments.map(PathBuf::from) {
        let name = file.file_stem().and_then(|stem| stem.to_str()).context("a file without a name")?;
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        components.insert(name.to_owned(), bytes);
    }
    match what.to_str() {
        Some("bench") => measure_questions(&components),
        Some("load") => measure_loading(components),
        _ => bail!("{} cannot be measured: bench or load", what.display()),
    }
}

fn measure_questions(components: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let settings = Settings::without_file(Limits::default()).of("measured");
    for (name, component) in components {
        println!("{name}\n   hosts  policy us  native us  ratio  columns us  questions/s");
        for row in
            bench(component, &settings, (&BENCH_HOSTS, Wanted::Few), Duration::from_secs(2), &built_in)?
        {
            let us = |time: Duration| time.as_secs_f64() * 1e6;
            println!(
                "{:8} {:10.1} {:10.1} {:6.2} {:11.1} {:12.0}",
                row.hosts,
                us(row.policy),
                us(row.native),
                row.ratio(),
                us(row.columns),
                row.per_second(),
            );
        }
    }
    Ok(())
}

fn measure_loading(components: BTreeMap<String, Vec<u8>>) -> Result<()> {
    let place = std::env::temp_dir().join(format!("understudy-measure-{}", std::process::id()));
    println!("{:28} {}", "at the start", memory()?);
    let loaded = load_twice(&place, components);
    std::fs::remove_dir_all(&place).with_context(|| format!("remove {}", place.display()))?;
    loaded
}

fn load_twice(place: &std::path::Path, components: BTreeMap<String, Vec<u8>>) -> Result<()> {
    let limits = Limits { deadline: Duration::from_secs(5), ..Limits::default() };
    let mut settings = Settings::without_file(limits);
    for name in components.keys() {
        // All are asked, none has to be chosen.
        let shadow = understudy_policy::PolicySettings { mode: Mode::Shadow, ..settings.of(name) };
        settings.policies.insert(name.clone(), shadow);
    }
    let library = Library::open(place)?;
    let digests =
        components.into_iter().map(|(name, bytes)| Ok((name, library.add(&bytes, limits.file_size)?)));
    let digests: BTreeMap<String, Digest> = digests.collect::<Result<_>>()?;
    println!("{:28} {}", "with an engine", memory()?);
    for what in ["compiled", "from the cache", "from the cache again"] {
        let start = Instant::now();
        let (set, faults) = PolicySet::load(&library, &digests, &settings, &BTreeSet::new());
        let took = start.elapsed();
        ensure!(faults.is_empty(), "{faults:?}");
        println!(
            "{:28} {}  {:8.2} ms",
            format!("{} {what}", digests.len()),
            memory()?,
            took.as_secs_f64() * 1e3
        );
        drop(set);
    }
    Ok(())
}

/// Memory of this process: its own, and pages of files, which the system takes back when it needs them.
fn memory() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status").context("read this process's memory")?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse::<f64>().ok())
    };
    let (own, files) = kib("RssAnon").zip(kib("RssFile")).context("this system does not tell them apart")?;
    Ok(format!("{:8.1} MiB own {:8.1} MiB of files", own / 1024.0, files / 1024.0))
}
