//! Embeds the terminal page: writes the list of its files, and of noVNC's, as Rust source into `OUT_DIR`.
//!
//! noVNC is no part of this repository: `cargo xtask assets` puts the release that `package-lock.json` pins
//! beside the page, and this script refuses to embed any other.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const PAGE: &str = "src/gateway/page";
const NOVNC: &str = "node_modules/@novnc/novnc";
/// What of noVNC a browser loads, and what its licences ask to go along.
const NOVNC_PARTS: [&str; 5] = ["core", "vendor/pako", "LICENSE.txt", "AUTHORS", "docs/LICENSE.MPL-2.0"];
/// Served as assets; the templates are not.
const OWN_FILES: [&str; 4] = ["gateways.js", "link.js", "terminal.css", "terminal.js"];
const TEMPLATES: [(&str, &str); 2] = [("TERMINAL_HTML", "terminal.html"), ("MISSING_HTML", "missing.html")];

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<()> {
    let page = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join(PAGE);
    println!("cargo::rerun-if-changed={PAGE}");
    check_installed(&page)?;

    let mut assets = Vec::new();
    for part in NOVNC_PARTS {
        collect(&page.join(NOVNC), part, "novnc", &mut assets)?;
    }
    for file in OWN_FILES {
        collect(&page, file, "page", &mut assets)?;
    }
    assets.sort();

    let mut digest = blake3::Hasher::new();
    let mut source = format!("static ASSETS: [Asset; {}] = [\n", assets.len());
    for (path, file) in &assets {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        digest.update(path.as_bytes()).update(&[0]).update(blake3::hash(&bytes).as_bytes());
        let mime = mime(path)?;
        writeln!(source, "Asset {{ path: {path:?}, mime: {mime:?}, bytes: include_bytes!({file:?}) }},")?;
    }
    writeln!(source, "];")?;
    for (name, file) in TEMPLATES {
        let file = page.join(file);
        digest.update(&fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
        writeln!(source, "static {name}: &str = include_str!({file:?});")?;
    }
    writeln!(source, "static VERSION: &str = {:?};", &digest.finalize().to_hex()[..16])?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("assets.rs");
    fs::write(&out, source).with_context(|| format!("writing {}", out.display()))
}

/// npm records what it installed; that must be what the lock file pins.
fn check_installed(page: &Path) -> Result<()> {
    let remedy = "run `cargo xtask assets` (needs npm)";
    let pinned = integrity(&page.join("package-lock.json"))?;
    match integrity(&page.join("node_modules/.package-lock.json")) {
        Ok(installed) if installed == pinned => Ok(()),
        Ok(_) => bail!("the page's noVNC is not the pinned release: {remedy}"),
        Err(_) => bail!("the page's noVNC is not installed: {remedy}"),
    }
}

fn integrity(lock: &Path) -> Result<String> {
    let text = fs::read_to_string(lock).with_context(|| format!("reading {}", lock.display()))?;
    let lock_file: serde_json::Value = serde_json::from_str(&text)?;
    let found = lock_file["packages"][NOVNC]["integrity"].as_str();
    Ok(found.with_context(|| format!("{} pins no noVNC", lock.display()))?.to_owned())
}

/// Adds `part` of `root`, a file or a whole folder, under `prefix`.
fn collect(root: &Path, part: &str, prefix: &str, into: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let path = root.join(part);
    let kind = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
    if kind.is_file() {
        into.push((format!("{prefix}/{part}"), path));
        return Ok(());
    }
    for entry in fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
        let name = entry?.file_name();
        let name = name.to_str().with_context(|| format!("{} holds an odd file name", path.display()))?;
        collect(root, &format!("{part}/{name}"), prefix, into)?;
    }
    Ok(())
}

fn mime(path: &str) -> Result<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    Ok(match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("txt" | "md" | "0") | None => "text/plain; charset=utf-8",
        Some(other) => bail!("{path}: no MIME type is known for .{other}"),
    })
}
