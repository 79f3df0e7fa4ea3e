//! Owns the building of what a cluster is raised from: binaries, policies, images.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use understudy_bench::policies::Subjects;
use understudy_bench::{leader, pages, scale};
use understudy_e2e::stage::Artifacts;

use crate::languages::{self, Language};
use crate::run::{cargo, output, run};
use crate::{assets, policies as guests};

/// Which binaries are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As the tests build them, so that nothing is compiled twice.
    Test,
    /// As they are installed.
    Release,
}

/// How guests are run.
#[derive(Debug, Clone, Copy, Default, Args)]
#[group(skip)]
pub(crate) struct Guests {
    /// Emulate guests, also where KVM works.
    #[arg(long)]
    pub(crate) emulate: bool,
}

/// Builds everything that a cluster is raised from.
pub(crate) fn all(root: &Path, profile: Profile, guests: Guests) -> Result<Artifacts> {
    println!("building agent and guard");
    let binaries = match profile {
        Profile::Test => tested(root)?,
        Profile::Release => released(root, &[AGENT, "understudy-guard"])?,
    };
    println!("building the policies");
    let policies = deciding(root)?;
    println!("building the guest images");
    let images = images(root)?;
    Ok(Artifacts {
        binaries,
        images,
        policies,
        root: root.to_path_buf(),
        helper: None,
        emulate: guests.emulate,
    })
}

/// Builds what the benchmarks of policies need: agent and guard, the program that measures, the policies.
pub(crate) fn measured_policies(root: &Path, python: bool) -> Result<Subjects> {
    let binaries = measured_daemon(root)?;
    println!("building the policies");
    policies(root)?;
    let python = python.then(|| languages::build(root, Language::Python)).transpose()?;
    Ok(Subjects {
        binaries,
        policies: root.join(POLICIES),
        python,
        template: root.join("config/guest/template.xml"),
        scratch: target(root).join("bench"),
    })
}

/// Builds agent, guard and the programs that measure; the folder that they are in.
fn measured_daemon(root: &Path) -> Result<PathBuf> {
    println!("building agent, guard and what measures");
    released(root, &[AGENT, "understudy-guard", "measure-policies", "measure-leader"])
}

/// Builds agent and guard, and what the other hosts are made by.
pub(crate) fn measured_scale(root: &Path) -> Result<scale::Subjects> {
    Ok(scale::Subjects {
        binaries: measured_daemon(root)?,
        template: root.join("config/guest/template.xml"),
        scratch: target(root).join("bench"),
    })
}

/// Builds what measures the page store.
pub(crate) fn measured_pages(root: &Path) -> Result<pages::Subjects> {
    println!("building what measures the page store");
    Ok(pages::Subjects { binaries: released(root, &["measure-pages"])?, scratch: target(root).join("bench") })
}

/// Builds what measures the leader, and what the named benchmark needs beside it.
pub(crate) fn measured_leader(root: &Path, name: Option<&str>) -> Result<leader::Subjects> {
    println!("building what measures the leader");
    let mut wanted = vec!["measure-leader"];
    if leader::needs_simulator(name) {
        wanted.push(SIMULATOR);
    }
    let binaries = released(root, &wanted)?;
    let mut spread = None;
    if leader::needs_spread(name) {
        println!("building the policies");
        policies(root)?;
        spread = Some(root.join(POLICIES).join("spread.wasm"));
    }
    Ok(leader::Subjects { binaries, spread, scratch: target(root).join("bench") })
}

/// The packages of which optimised programs are built, always named together: the features of what they depend on follow
/// from the whole list, so that a verb that named fewer would compile wasmtime anew.
const RELEASED: [&str; 4] = ["understudy", "understudy-guard", "understudy-measure", "understudy-sim"];

/// The simulator's program.
pub(crate) const SIMULATOR: &str = "understudy-sim";
/// The agent's, into which the terminal page is built.
const AGENT: &str = "understudy";

/// Builds these programs of [`RELEASED`], optimised; the folder that they are in.
pub(crate) fn released(root: &Path, programs: &[&str]) -> Result<PathBuf> {
    if programs.contains(&AGENT) {
        assets::ensure(root)?;
    }
    let mut build = cargo();
    build.args(["build", "--quiet", "--release"]).current_dir(root);
    for package in RELEASED {
        build.args(["--package", package]);
    }
    for program in programs {
        build.args(["--bin", program]);
    }
    run(&mut build)?;
    Ok(target(root).join("release"))
}

/// Builds all tests, and with them the programs that they start; the folder that those are in. The whole workspace at once,
/// for the same reason as [`RELEASED`]: agent, guard and lab by themselves would have other features.
fn tested(root: &Path) -> Result<PathBuf> {
    assets::ensure(root)?;
    run(cargo().args(["test", "--quiet", "--workspace", "--no-run"]).current_dir(root))?;
    Ok(target(root).join("debug"))
}

/// Where cargo builds.
pub(crate) fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// The folder of the built policies.
const POLICIES: &str = "target/policies/out";

/// Builds the policies' components.
pub(crate) fn policies(root: &Path) -> Result<Vec<PathBuf>> {
    guests::build(root, &root.join(POLICIES), true)
}

/// What a cluster of the tests runs: one policy for each question, so that none has to be chosen.
const DECIDING: [&str; 2] = ["count.wasm", "spread.wasm"];

/// Builds the policies, and gives a folder with those that decide.
fn deciding(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/policies/deciding");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for built in policies(root)? {
        let name = built.file_name().unwrap_or_default();
        if DECIDING.iter().any(|deciding| name == *deciding) {
            let to = folder.join(name);
            std::fs::copy(&built, &to).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(folder)
}

/// Builds the guest images, or finds them in the cache; gives the folder.
pub(crate) fn images(root: &Path) -> Result<PathBuf> {
    let folder = PathBuf::from(output(&mut Command::new(root.join("config/guest/build")))?);
    // The template is no image: a site edits it. A lab takes it as it is.
    Ok(folder)
}
