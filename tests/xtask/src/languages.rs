//! Builds the example policy in the other languages of `policies/languages`, one `<language>.wasm` each.
//!
//! Promises: nothing is installed, each language's tools are pinned and lie in the cache folder; a build whose inputs
//! have not changed is skipped; what lies in the output folder is a whole file at any time. Must not do: decide
//! whether a test may do without a language.

mod c;
mod javascript;
mod python;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::policies;

/// A language that a policy can be written in, besides Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Language {
    /// By componentize-py.
    Python,
    /// By componentize-js.
    #[value(name = "javascript")]
    JavaScript,
    /// By Debian's clang.
    C,
}

impl Language {
    /// As the folder and the component are called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::C => "c",
        }
    }
}

/// Where a language's policy is built.
struct Job {
    /// The sources.
    folder: PathBuf,
    /// The interface.
    wit: PathBuf,
    /// A folder for what comes in between.
    scratch: PathBuf,
    /// The component that is to be made.
    component: PathBuf,
    /// Where tools lie, one folder for each version of each.
    tools: PathBuf,
}

/// The world that the example is of.
const WORLD: &str = "placement-policy";

/// The folder of the built components.
pub(crate) fn folder(root: &Path) -> PathBuf {
    root.join("target/policies/languages")
}

/// Builds the policy of one language, and gives the component.
pub(crate) fn build(root: &Path, language: Language) -> Result<PathBuf> {
    let name = language.name();
    let scratch = folder(root).join(name);
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    // Builds at the same time would read half-written files of each other.
    let _lock = policies::locked(&scratch.join("lock"))?;
    let job = Job {
        folder: root.join("policies/languages").join(name),
        wit: root.join("wit"),
        component: scratch.join("component.wasm"),
        scratch,
        tools: policies::cache_base()?.join("languages"),
    };
    let stamp = job.scratch.join("inputs");
    let inputs = inputs(&job, language)?;
    if !job.component.is_file() || fs::read_to_string(&stamp).ok().as_ref() != Some(&inputs) {
        match language {
            Language::Python => python::build(&job),
            Language::JavaScript => javascript::build(&job),
            Language::C => c::build(&job),
        }
        .with_context(|| format!("build {}", job.folder.display()))?;
        fs::write(&stamp, inputs).with_context(|| format!("write {}", stamp.display()))?;
    }
    policies::place(&job.component, &folder(root).join(format!("{name}.wasm")))
}

/// A hash over what the component is made of: sources, interface, and what this program says of how to build.
fn inputs(job: &Job, language: Language) -> Result<String> {
    let recipe = match language {
        Language::Python => include_str!("languages/python.rs"),
        Language::JavaScript => include_str!("languages/javascript.rs"),
        Language::C => include_str!("languages/c.rs"),
    };
    let mut paths = vec![job.folder.clone()];
    for entry in fs::read_dir(&job.wit).with_context(|| format!("list {}", job.wit.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wit") {
            paths.push(path);
        }
    }
    paths.sort();
    policies::fingerprint_of(&(recipe, include_str!("languages.rs")), &paths)
}

/// Puts a tool into `folder` by `install`, which gets an empty folder beside it; what is there is there whole.
fn installed(folder: &Path, install: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().context("a tool's folder has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let _lock = policies::locked(&folder.with_extension("lock"))?;
    if folder.is_dir() {
        return Ok(());
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).context("remove an unfinished attempt")?;
    }
    fs::create_dir(&partial).with_context(|| format!("create {}", partial.display()))?;
    println!("fetching tools into {}", folder.display());
    install(&partial)?;
    fs::rename(&partial, folder).with_context(|| format!("put {} in its place", folder.display()))
}
