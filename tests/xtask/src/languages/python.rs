//! Owns the recipe of Python policies: componentize-py puts the interpreter and the module into one component.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Job, WORLD, installed};
use crate::run::run;

/// The version is pinned: another one brings another interpreter, and other imports to stub.
const COMPONENTIZE: &str = "componentize-py==0.25.1";

pub(super) fn build(job: &Job) -> Result<()> {
    let tools = job.tools.join(COMPONENTIZE);
    installed(&tools, install)?;
    // A copy, because the interpreter writes what it compiled beside the source.
    let sources = job.scratch.join("sources");
    fs::create_dir_all(&sources).with_context(|| format!("create {}", sources.display()))?;
    fs::copy(job.folder.join("policy.py"), sources.join("policy.py")).context("copy policy.py")?;
    // Without the stub the component would import 25 interfaces of WASI, none of which a policy may call.
    run(Command::new(tools.join("bin/componentize-py"))
        .env("PYTHONPATH", &tools)
        .arg("--wit-path")
        .arg(&job.wit)
        .args(["--world", WORLD, "componentize", "--stub-wasi", "--python-path"])
        .arg(&sources)
        .arg("--output")
        .arg(&job.component)
        .arg("policy"))
}

/// A folder of its own instead of a virtual environment: Debian has `venv` in a package that few have installed.
fn install(folder: &Path) -> Result<()> {
    run(Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"])
        .args(["--root-user-action", "ignore"])
        .arg("--target")
        .arg(folder)
        .arg(COMPONENTIZE))
    .context("install the packages python3 and python3-pip, and see that PyPI can be reached")
}
