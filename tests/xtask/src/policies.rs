//! Builds the policies of `policies/` as WebAssembly components, one `<name>.wasm` each.
//!
//! Promises: nothing is installed; a build whose sources have not changed is skipped; what lies in the output
//! folder is a whole file at any time. Must not do: fetch a compiler unless told that it may.
//!
//! Plain cargo is enough where the target's standard library is installed (`rustup target add
//! wasm32-unknown-unknown`). Debian has that library for no compiler but its own, so there the compiler and the
//! source of its library are unpacked (not installed) into a cache folder, from packages that apt verifies; std is
//! built from source, once. The two must be of one version: std of another release does not build.
//!
//! This module uses only `std` and `anyhow`, so that tests of other crates can include it.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "wasm32-unknown-unknown";
/// Ships with every rustup toolchain; makes a component out of what wasm-ld links.
pub const LINKER: &str = "wasm-component-ld";
/// Memory that a policy has from the beginning: what a question about 10 000 hosts takes. To ask for more costs calls to
/// the kernel, one to get it and one to take it back, whose price is that of looking at some hundred hosts.
const MEMORY: &str = "--initial-memory=4194304";
/// Inputs of every policy, besides its own folder.
const SHARED_INPUTS: [&str; 4] = ["wit", "policies/sdk", "Cargo.toml", "Cargo.lock"];

/// What compiles a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Toolchain {
    /// The toolchain in use has the target's standard library.
    Installed,
    /// Debian's compiler, unpacked; the path is that of a script that starts it.
    Unpacked(PathBuf),
}

/// Build every policy below `root` into `out`, and return the components. `install` allows to fetch a compiler
/// (140 MB) where none can build for WebAssembly.
///
/// # Errors
/// When there is no compiler, or a policy does not build.
pub fn build(root: &Path, out: &Path, install: bool) -> Result<Vec<PathBuf>> {
    let toolchain = toolchain(install)?;
    let names = names(root)?;
    let target_dir = root.join("target/policies");
    fs::create_dir_all(&target_dir).with_context(|| format!("create {}", target_dir.display()))?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    // Builds at the same time would read half-written files of each other.
    let _lock = locked(&target_dir.join("lock"))?;

    let built: Vec<PathBuf> = names.iter().map(|n| component(&target_dir, n)).collect();
    let stamp = target_dir.join("inputs");
    let inputs = fingerprint(root, &names, &toolchain)?;
    let is_fresh = fs::read_to_string(&stamp).is_ok_and(|s| s == inputs) && built.iter().all(|b| b.is_file());
    if !is_fresh {
        compile(root, &target_dir, &names, &toolchain)?;
        fs::write(&stamp, inputs).context("note the inputs of the policies' build")?;
    }
    names.iter().zip(&built).map(|(name, from)| place(from, &out.join(format!("{name}.wasm")))).collect()
}

/// What compiles a policy on this machine, fetched where it is missing and `install` allows that.
///
/// # Errors
/// When there is none; the text says what to do.
pub fn toolchain(install: bool) -> Result<Toolchain> {
    let libdir = output(rustc().args(["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(&libdir).is_dir() {
        return Ok(Toolchain::Installed);
    }
    let cache = cache()?;
    let script = cache.join("rustc");
    if script.is_file() {
        return Ok(Toolchain::Unpacked(script));
    }
    let missing = format!("no compiler for {TARGET}: run `rustup target add {TARGET}`");
    ensure!(install, "{missing}, or on Debian `cargo xtask policies`");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    let _lock = locked(&cache.join("lock"))?;
    // Another process may have done it meanwhile.
    if !script.is_file() {
        unpack(&cache).with_context(|| format!("{missing}; unpacking Debian's failed"))?;
    }
    Ok(Toolchain::Unpacked(script))
}

/// Every policy of `policies/`, by name: the folders whose package is `policy-<folder>`.
fn names(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("policies");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let folder = entry?.file_name().into_string();
        let folder = folder.map_err(|n| anyhow::anyhow!("policy folder {} is no text", n.display()))?;
        let manifest = dir.join(&folder).join("Cargo.toml");
        match fs::read_to_string(&manifest) {
            Ok(text) if text.contains(&format!("name = \"policy-{folder}\"")) => names.push(folder),
            // The SDK and the template are no policies.
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(e).with_context(|| format!("read {}", manifest.display())),
        }
    }
    names.sort();
    Ok(names)
}

fn component(target_dir: &Path, name: &str) -> PathBuf {
    target_dir.join(TARGET).join("release").join(format!("policy_{}.wasm", name.replace('-', "_")))
}

/// Copy where the content differs; a reader sees the old file or the new one.
///
/// # Errors
/// When a file cannot be read or written.
pub fn place(from: &Path, to: &Path) -> Result<PathBuf> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).ok().as_ref() != Some(&bytes) {
        let partial = to.with_extension(format!("{}.partial", std::process::id()));
        fs::write(&partial, bytes).with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, to).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(to.to_owned())
}

/// A hash over everything that the components are made of.
fn fingerprint(root: &Path, names: &[String], toolchain: &Toolchain) -> Result<String> {
    let shared = SHARED_INPUTS.iter().map(|input| root.join(input));
    let own = names.iter().map(|name| root.join("policies").join(name));
    // This file says how to build.
    let recipe = (toolchain, output(rustc().arg("-vV"))?, include_str!("policies.rs"));
    fingerprint_of(&recipe, &shared.chain(own).collect::<Vec<_>>())
}

/// A hash over a recipe, and over all files at and below the paths. It need not resist an attacker: who can choose
/// the sources can choose the components.
///
/// # Errors
/// When a file cannot be read.
pub fn fingerprint_of(recipe: &impl Hash, paths: &[PathBuf]) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    recipe.hash(&mut hasher);
    for path in paths {
        hash_tree(path, &mut hasher)?;
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn hash_tree(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    let context = || format!("read {}", path.display());
    path.hash(hasher);
    if path.is_dir() {
        let entries: std::io::Result<Vec<_>> =
            fs::read_dir(path).with_context(context)?.map(|e| e.map(|e| e.path())).collect();
        let mut entries = entries.with_context(context)?;
        entries.sort();
        entries.iter().try_for_each(|entry| hash_tree(entry, hasher))
    } else {
        fs::read(path).with_context(context)?.hash(hasher);
        Ok(())
    }
}

fn compile(root: &Path, target_dir: &Path, names: &[String], toolchain: &Toolchain) -> Result<()> {
    let packages: Vec<String> = names.iter().map(|name| format!("policy-{name}")).collect();
    cargo_build(root, root, target_dir, &packages, toolchain)
}

/// Build the policy of a folder outside of the repository at `root`, and return the component. Std is that of the
/// policies of the repository, built once.
///
/// # Errors
/// When it does not build.
pub fn build_crate(root: &Path, folder: &Path, package: &str, toolchain: &Toolchain) -> Result<PathBuf> {
    let target_dir = root.join("target/policies");
    fs::create_dir_all(&target_dir).with_context(|| format!("create {}", target_dir.display()))?;
    let _lock = locked(&target_dir.join("lock"))?;
    cargo_build(root, folder, &target_dir, &[package.to_owned()], toolchain)?;
    let file = format!("{}.wasm", package.replace('-', "_"));
    Ok(target_dir.join(TARGET).join("release").join(file))
}

fn cargo_build(
    root: &Path,
    folder: &Path,
    target_dir: &Path,
    packages: &[String],
    toolchain: &Toolchain,
) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(folder)
        .args(["build", "--release", "--lib", "--target", TARGET, "--target-dir"])
        .arg(target_dir);
    for package in packages {
        cargo.args(["--package", package]);
    }
    cargo
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", LINKER)
        .env("CARGO_ENCODED_RUSTFLAGS", remapped(root)?)
        .env_remove("RUSTFLAGS")
        // A policy is compiled again by each host that loads it: small is fast.
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none");
    if let Toolchain::Unpacked(script) = toolchain {
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .env("PATH", linkers_path()?)
            .env("RUSTC", script)
            .env("RUSTC_BOOTSTRAP", "1");
    }
    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "the policies do not build: cargo ended with {status}");
    Ok(())
}

/// Flags that keep this machine's paths out of the components, so that the same sources give the same file in any
/// folder.
fn remapped(root: &Path) -> Result<OsString> {
    let home = home()?;
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut flags = OsString::new();
    for (from, to) in [(root.to_owned(), "/understudy"), (cargo_home, "/cargo"), (cache()?, "/rust")] {
        if !flags.is_empty() {
            flags.push("\u{1f}");
        }
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags.push("\u{1f}-Clink-arg=");
    flags.push(MEMORY);
    Ok(flags)
}

fn home() -> Result<PathBuf> {
    std::env::home_dir().context("the home folder is not known: set HOME")
}

/// Where Debian's compiler is unpacked.
fn cache() -> Result<PathBuf> {
    Ok(cache_base()?.join("wasm-rust"))
}

/// Where all tools are unpacked.
///
/// # Errors
/// When the home folder is not known.
pub fn cache_base() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(base) => PathBuf::from(base),
        None => home()?.join(".cache"),
    };
    Ok(base.join("understudy"))
}

/// Where rustup's toolchain has its linkers.
///
/// # Errors
/// When rustc does not say.
pub fn rustup_bin() -> Result<PathBuf> {
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let version = output(rustc().arg("-vV"))?;
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
    Ok(Path::new(&sysroot).join("lib/rustlib").join(host).join("bin"))
}

/// The search path with the linkers of rustup's own toolchain first.
///
/// # Errors
/// When they are missing.
pub fn linkers_path() -> Result<OsString> {
    let bin = rustup_bin()?;
    let linker = bin.join(LINKER);
    ensure!(linker.is_file(), "{} is missing: install Rust with rustup", linker.display());
    let mut path = OsString::from(&bin);
    path.push(":");
    path.push(bin.join("gcc-ld"));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

fn rustc() -> Command {
    Command::new("rustc")
}

fn output(command: &mut Command) -> Result<String> {
    let said = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    if !said.status.success() {
        bail!("{command:?} ended with {}: {}", said.status, String::from_utf8_lossy(&said.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// Held until the file is closed, also when this process is killed.
///
/// # Errors
/// When the file cannot be created.
pub fn locked(path: &Path) -> Result<fs::File> {
    let lock = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    lock.lock().with_context(|| format!("wait for {}", path.display()))?;
    Ok(lock)
}

/// Fetch Debian's compiler for the web, its LLVM and the source of its standard library, and unpack them into
/// `cache`. The script `rustc`, which comes last, says that all of it is in place.
fn unpack(cache: &Path) -> Result<()> {
    let std_dev = "libstd-rust-web-dev";
    let std = dependency(std_dev, "libstd-rust-web-")?;
    let llvm = dependency(&std, "libllvm")?;
    let files = cache.join("root");
    // What an attempt left that was interrupted.
    match fs::remove_dir_all(&files) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context("remove an unfinished attempt"),
        Ok(()) | Err(_) => {}
    }
    unpack_packages(&["rustc-web", "rust-web-src", std_dev, &std, &llvm], &files)?;
    write_script(cache)
}

/// Fetch Debian packages, which apt verifies, and unpack them below `folder`; nothing is installed.
///
/// # Errors
/// When apt knows no such package, or cannot fetch it.
pub fn unpack_packages(packages: &[&str], folder: &Path) -> Result<()> {
    let debs = folder.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("create {}", debs.display()))?;
    output(Command::new("apt-get").current_dir(&debs).args(["-qq", "download"]).args(packages))
        .context("run `apt-get update` where a package is not found")?;
    for deb in fs::read_dir(&debs).context("list the packages")? {
        output(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(folder))?;
    }
    fs::remove_dir_all(&debs).context("remove the packages")
}

/// The first package with `prefix` that `package` depends on.
fn dependency(package: &str, prefix: &str) -> Result<String> {
    let said = output(Command::new("apt-cache").args(["depends", package]))?;
    said.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| {
            name.starts_with(prefix) && name[prefix.len()..].starts_with(|c: char| c.is_ascii_digit())
        })
        .map(str::to_owned)
        .with_context(|| {
            format!("package {package} has no dependency {prefix}<version>: run `apt-get update`")
        })
}

/// The compiler finds its LLVM only where it would have been installed, so a script tells it.
fn write_script(cache: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let libraries = cache.join(format!("root/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let compiler = cache.join("root/usr/bin/rustc");
    let text = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libraries.display(),
        compiler.display()
    );
    let partial = cache.join("rustc.partial");
    fs::write(&partial, text).with_context(|| format!("write {}", partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).context("make a script of it")?;
    fs::rename(&partial, cache.join("rustc")).context("put the script in its place")
}
