//! Owns the one foreign part of the terminal page: noVNC, which `agent/build.rs` embeds.
//!
//! Promises: after [`ensure`] the installed release is the one that the lock file pins by its integrity hash;
//! nothing is fetched when it is already there. Must not run any script of a package.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const PAGE: &str = "agent/src/gateway/page";

/// Installs the page's packages with `npm ci` when what is installed is not what is pinned. `root` is the
/// repository.
pub(crate) fn ensure(root: &Path) -> Result<()> {
    let page = root.join(PAGE);
    let lock = page.join("package-lock.json");
    let pinned = packages(&lock).with_context(|| format!("reading {}", lock.display()))?;
    let record = page.join("node_modules/.package-lock.json");
    if packages(&record).is_ok_and(|installed| installed == pinned) {
        return Ok(());
    }
    println!("installing the terminal page's packages ({PAGE})");
    let status = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&page)
        .status()
        .context("starting npm: install the packages nodejs and npm")?;
    ensure!(status.success(), "npm ci failed in {PAGE} ({status}): is the npm registry reachable?");
    let installed = packages(&record).with_context(|| format!("reading {}", record.display()))?;
    ensure!(installed == pinned, "npm installed something else than {} pins", lock.display());
    Ok(())
}

/// Name and integrity hash of every package of a lock file, the project's own entry left out.
fn packages(lock: &Path) -> Result<Vec<(String, String)>> {
    let lock: Value = serde_json::from_str(&fs::read_to_string(lock)?)?;
    let packages = lock["packages"].as_object().context("a lock file without packages")?;
    packages
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, package)| {
            let integrity = package["integrity"].as_str().with_context(|| format!("{name} is not pinned"))?;
            Ok((name.clone(), integrity.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_pins_every_package_and_names_no_registry() {
        let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(PAGE).join("package-lock.json");
        let pinned = packages(&lock).unwrap();
        assert!(pinned.iter().any(|(name, _)| name == "node_modules/@novnc/novnc"));
        assert!(pinned.iter().all(|(_, integrity)| integrity.starts_with("sha512-")));
        let text = fs::read_to_string(lock).unwrap();
        assert!(!text.contains("\"resolved\"") && !text.contains("://"));
    }
}
