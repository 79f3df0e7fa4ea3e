//! Owns `cargo xtask demo`: the main job, for real, with a verdict for each promise.
//!
//! Promises: exit 0 only if every verdict holds; what was started is ended, also when this is interrupted; what a
//! killed run left behind is removed by the next.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use understudy_e2e::browser::Browser;
use understudy_e2e::stage::Stage;
use understudy_e2e::story::{Act, Story, table};

use crate::artifacts::{self, Profile};
use crate::setup;

/// The name of the demo's lab.
const PREFIX: &str = "ustlab-demo";

/// Options of the demo.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    setup: setup::Options,
    /// Use the binaries that the tests build: slower, and not built twice.
    #[arg(long, hide = true)]
    debug: bool,
    /// Leave everything standing for a look with browser and CLI.
    #[arg(long)]
    keep: bool,
    /// Take down what --keep left.
    #[arg(long, conflicts_with = "keep")]
    tear_down: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    if options.tear_down {
        let swept = understudy_lab::sweep(PREFIX)?;
        println!("{swept:?}");
        return Ok(true);
    }
    setup::ensure(&options.setup)?;
    if !nix_is_root() {
        bail!("the demo makes network namespaces and runs libvirtd: run it as root, or with sudo -E");
    }
    understudy_lab::tear_down_on_signals()?;
    let began = Instant::now();
    let say = |text: &str| println!("[{:7.1} s] {text}", began.elapsed().as_secs_f64());
    let artifacts = artifacts::all(root, if options.debug { Profile::Test } else { Profile::Release })?;
    say("raising three hosts: libvirtd, etcd, guard and agent on each");
    let stage = Stage::raise(&artifacts, PREFIX)?;
    let pictures = artifacts::target(root).join("demo");
    let told = tell(&stage, &pictures, root, &say);
    if told.is_err() {
        let logs = pictures.join("logs");
        match stage.save_logs(&logs) {
            Ok(()) => say(&format!("the logs of all hosts are in {}", logs.display())),
            Err(error) => say(&format!("the logs could not be kept: {error:#}")),
        }
    }
    let acts = told?;
    println!("{}", table(&acts));
    println!("screenshots are in {}", pictures.display());
    let holds = acts.iter().all(Act::holds);
    println!("{}", if holds { "every verdict holds" } else { "NOT every verdict holds" });
    if options.keep {
        keep(stage, &artifacts.binaries)?;
    } else {
        stage.into_cluster().into_lab().down()?;
    }
    Ok(holds)
}

fn tell(stage: &Stage, pictures: &Path, root: &Path, say: &dyn Fn(&str)) -> Result<Vec<Act>> {
    std::fs::create_dir_all(pictures)?;
    let profile = pictures.join("browser");
    let browser = Browser::start(&profile)?;
    let story = Story { stage, browser: &browser, pictures: pictures.to_path_buf(), say };
    story.raise(&root.join("config/terminals/alice.toml"))?;
    say(&format!("alice's screen: {}", stage.page("alice", 1)));
    let mut acts = Vec::new();
    for act in [Story::display_dies, Story::execution_host_dies, Story::host_is_drained] {
        let act = act(&story)?;
        say(&format!("{}: {}", act.title, if act.holds() { "holds" } else { "DOES NOT HOLD" }));
        acts.push(act);
    }
    Ok(acts)
}

/// Keeps the hosts, and the way to their pages for as long as this runs.
fn keep(stage: Stage, binaries: &Path) -> Result<()> {
    let page = stage.page("alice", 1);
    // Named, so that the way to the pages stays open until a signal comes.
    let (cluster, _pages) = stage.into_parts();
    cluster.into_lab().keep()?;
    let understudy = binaries.join("understudy");
    println!("left standing. While this runs, alice's screen is at {page}");
    println!(
        "commands: cargo run -q -p understudy-lab -- --prefix {PREFIX} sh 1 {} status",
        understudy.display()
    );
    println!("Ctrl-C ends this and keeps the hosts; cargo xtask demo --tear-down takes them down");
    understudy_lab::wait_for_signal()
}

fn nix_is_root() -> bool {
    // Only root may read this; asking the kernel needs no more crates.
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
