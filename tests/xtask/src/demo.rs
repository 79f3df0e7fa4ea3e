//! Owns `cargo xtask demo`: the main job, for real, with a verdict for each promise.
//!
//! Promises: exit 0 only if every verdict holds; what was reached is shown also when an act breaks off; what was started
//! is ended, also when this is interrupted, unless `--keep` was given; what a killed run left behind is removed by the
//! next.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use understudy_e2e::browser::Browser;
use understudy_e2e::stage::Stage;
use understudy_e2e::story::{Act, Story, table, tell};

use crate::artifacts::{self, Profile};
use crate::setup;

/// The name of the demo's lab.
const PREFIX: &str = "ustlab-demo";

/// Options of the demo.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    setup: setup::Options,
    #[command(flatten)]
    guests: artifacts::Guests,
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
        println!("{}", tear_down(PREFIX)?);
        return Ok(true);
    }
    setup::ensure(&options.setup)?;
    if !nix_is_root() {
        bail!("the demo makes network namespaces and runs libvirtd: run it as root, or with sudo -E");
    }
    understudy_lab::tear_down_on_signals()?;
    let began = Instant::now();
    let say = |text: &str| println!("[{:7.1} s] {text}", began.elapsed().as_secs_f64());
    let profile = if options.debug { Profile::Test } else { Profile::Release };
    let artifacts = artifacts::all(root, profile, options.guests)?;
    say("raising three hosts: libvirtd, etcd, guard and agent on each");
    let stage = Stage::raise(&artifacts, PREFIX)?;
    let pictures = artifacts::target(root).join("demo");
    let acts = show(&stage, &pictures, root, &say);
    let holds = acts.iter().all(Act::holds);
    if !holds {
        let logs = pictures.join("logs");
        match stage.save_logs(&logs) {
            Ok(()) => say(&format!("the logs of all hosts are in {}", logs.display())),
            Err(error) => say(&format!("the logs could not be kept: {error:#}")),
        }
    }
    println!("{}", ending(&acts, &pictures));
    if options.keep {
        keep(stage, &artifacts.binaries)?;
    } else {
        stage.into_cluster().into_lab().down()?;
    }
    Ok(holds)
}

/// Tells the story as far as it goes.
fn show(stage: &Stage, pictures: &Path, root: &Path, say: &dyn Fn(&str)) -> Vec<Act> {
    let profile = pictures.join("browser");
    let browser = match Browser::start(&profile) {
        Ok(browser) => browser,
        Err(error) => return vec![Act::not_begun("a browser is started", &error.into())],
    };
    let story = Story { stage, browser: &browser, pictures: pictures.to_path_buf(), say };
    let terminal = root.join("config/terminals/alice.toml");
    tell(
        &[
            &|act| story.raise(act, &terminal),
            &|act| story.display_dies(act),
            &|act| story.execution_host_dies(act),
            &|act| story.host_is_drained(act),
        ],
        say,
    )
}

/// The table of what was reached, and what came of it.
fn ending(acts: &[Act], pictures: &Path) -> String {
    let failed: Vec<&str> = acts.iter().filter(|act| !act.holds()).map(|act| act.title.as_str()).collect();
    let broken_off = if acts.iter().any(|act| act.broken_off) {
        "; the last act broke off, and what was to follow was not shown"
    } else {
        ""
    };
    let verdict = if failed.is_empty() {
        "every verdict holds".to_owned()
    } else {
        format!("NOT every verdict holds, in: {}{broken_off}", failed.join("; "))
    };
    format!("{}\nscreenshots are in {}\n{verdict}", table(acts), pictures.display())
}

/// Takes down what `--keep` left, and says what that was.
fn tear_down(prefix: &str) -> Result<String> {
    let swept = understudy_lab::sweep(prefix)?;
    Ok(if swept == understudy_lab::Swept::default() {
        "nothing of the demo was left standing".to_owned()
    } else {
        format!("taken down: {} cgroups, {} folders", swept.cgroups.len(), swept.dirs.len())
    })
}

/// Keeps the hosts, and the way to their pages for as long as this runs.
fn keep(stage: Stage, binaries: &Path) -> Result<()> {
    // An act that broke off may have left its host without power.
    let on = stage.cluster().hosts().iter().find(|host| host.is_on()).map_or(1, |host| host.index());
    let page = stage.page("alice", usize::from(on));
    // Named, so that the way to the pages stays open until a signal comes.
    let (cluster, _pages) = stage.into_parts();
    cluster.into_lab().keep()?;
    let understudy = binaries.join("understudy");
    println!("left standing. While this runs, alice's screen is at {page}");
    println!(
        "commands: cargo run -q -p understudy-lab -- --prefix {PREFIX} sh {on} {} status",
        understudy.display()
    );
    println!("Ctrl-C ends this and keeps the hosts; cargo xtask demo --tear-down takes them down");
    understudy_lab::wait_for_signal()
}

fn nix_is_root() -> bool {
    // Only root may read this; asking the kernel needs no more crates.
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn a_story_that_broke_off_ends_with_what_was_reached_and_the_name_of_what_failed() {
        let good = |_: &mut Act| Ok(());
        let mut acts = tell(&[&good], &|_| {});
        let pictures = Path::new("pictures");
        assert!(ending(&acts, pictures).ends_with("screenshots are in pictures\nevery verdict holds"));
        acts.push(Act::not_begun("a host is drained", &anyhow!("the host is empty: not within 240s")));
        let said = ending(&acts, pictures);
        assert!(
            said.contains("DOES NOT HOLD") && said.contains("the host is empty: not within 240s"),
            "{said}"
        );
        assert!(
            said.contains("NOT every verdict holds, in: a host is drained; the last act broke off"),
            "{said}"
        );
    }

    #[test]
    fn tearing_down_where_nothing_stands_says_so() {
        let prefix = format!("ustlab-t{}", std::process::id() % 1_000_000);
        assert_eq!(tear_down(&prefix).unwrap(), "nothing of the demo was left standing");
    }

    #[test]
    fn what_is_kept_is_not_taken_down_by_the_same_command() {
        let error = Line::try_parse_from(["demo", "--keep", "--tear-down"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
        assert!(Line::try_parse_from(["demo", "--keep"]).unwrap().options.keep);
    }

    #[test]
    fn guests_are_emulated_by_choice_alone() {
        let emulate = |words: &[&str]| Line::try_parse_from(words).unwrap().options.guests.emulate;
        assert!(emulate(&["demo", "--emulate"]) && !emulate(&["demo"]));
    }
}
