//! Owns the recipe of JavaScript policies: componentize-js puts an engine and the module into one component.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Job, WORLD, installed};
use crate::run::run;

/// Part of the folder's name, so that another version gets another folder. `package.json` pins it.
const COMPONENTIZE: &str = "componentize-js-0.23.0";

pub(super) fn build(job: &Job) -> Result<()> {
    let tools = job.tools.join(COMPONENTIZE);
    installed(&tools, |folder| install(&job.folder, folder))?;
    // The script finds its packages beside itself.
    let script = tools.join("build.mjs");
    fs::copy(job.folder.join("build.mjs"), &script).with_context(|| format!("write {}", script.display()))?;
    run(Command::new("node")
        .arg(script)
        .arg(job.folder.join("policy.js"))
        .arg(&job.wit)
        .arg(WORLD)
        .arg(&job.component))
}

fn install(sources: &Path, folder: &Path) -> Result<()> {
    for file in ["package.json", "package-lock.json"] {
        fs::copy(sources.join(file), folder.join(file)).with_context(|| format!("copy {file}"))?;
    }
    run(Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(folder))
    .context("install the packages nodejs (20 or later) and npm, and see that npm's registry can be reached")
}
