//! Owns the components of a host, by digest, and what was compiled from them.
//!
//! ```text
//! <digest>.wasm             a component
//! <digest>.<engine>.cwasm   native code made from it by an engine of this version, settings and machine
//! *.partial                 a file being written; those of an earlier life are removed at the start
//! ```
//!
//! Promises: the folder is this user's alone (0700) or is not used; a file has its whole content or is not there;
//! code that this engine did not write is never run. Must not do: decide which components are wanted.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use understudy_core::model::units::MiB;
use wasmtime::component::Component;

use crate::compiled;
use crate::engine::Sandbox;
use crate::fault::{EngineFault, FileFault};
use crate::inspect::inspect;
use crate::names::Digest;

/// Digits of the engine's hash in a file's name: enough for the few engines that a host ever had.
const ENGINE_CHARS: usize = 16;

/// Why the library cannot be used, or something cannot be put into it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LibraryFault {
    /// No engine.
    #[error(transparent)]
    Engine(#[from] EngineFault),
    /// Others could put code there.
    #[error("policies library {} is not safe to use: it {problem}", dir.display())]
    Unsafe {
        /// The folder.
        dir: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A file or the folder could not be worked with.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// More than a policy may be.
    #[error("a component of {bytes} bytes is larger than {limit}")]
    Size {
        /// What it has.
        bytes: u64,
        /// The size that is allowed.
        limit: MiB,
    },
}

/// The components of a host. One per process: it holds the engine that they run in.
pub struct Library {
    dir: PathBuf,
    pub(crate) sandbox: Arc<Sandbox>,
    engine: String,
    writes: AtomicU64,
}

/// A component that can be linked.
pub(crate) struct Prepared {
    pub(crate) component: Component,
    pub(crate) bytes: u64,
    /// How long compiling took; none where it was done before.
    pub(crate) compiled: Option<Duration>,
}

impl Library {
    /// Open the library in `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// When the folder is not this user's alone, or cannot be used; when there is no engine for this machine.
    pub fn open(dir: &Path) -> Result<Self, LibraryFault> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(io("make", dir))?;
        private(dir)?;
        let sandbox = Sandbox::clocked()?;
        let mut engine = EngineHasher(blake3::Hasher::new());
        sandbox.engine.precompile_compatibility_hash().hash(&mut engine);
        let engine = engine.0.finalize().to_hex()[..ENGINE_CHARS].to_owned();
        let library =
            Self { dir: dir.to_owned(), sandbox: Arc::new(sandbox), engine, writes: AtomicU64::new(0) };
        library.remove(|name| name.ends_with(".partial"))?;
        Ok(library)
    }

    /// Keep a component. What it is, is looked at when it is loaded.
    ///
    /// # Errors
    /// When it is larger than `limit` or cannot be written.
    pub fn add(&self, component: &[u8], limit: MiB) -> Result<Digest, LibraryFault> {
        let bytes = component.len() as u64;
        if bytes > limit.bytes() {
            return Err(LibraryFault::Size { bytes, limit });
        }
        let digest = Digest::of(component);
        let path = self.path(&digest);
        // A file of another size is what a disk lost: written again.
        if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == bytes) {
            self.write(&path, component)?;
        }
        Ok(digest)
    }

    /// Whether the component is here.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Where the component is, or would be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }

    /// The component, checked against its digest.
    ///
    /// # Errors
    /// When it is not here, is larger than `limit`, or is not what its digest says.
    pub fn read(&self, digest: &Digest, limit: MiB) -> Result<Vec<u8>, FileFault> {
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(FileFault::Absent),
            Err(error) => return Err(FileFault::Read(Arc::new(error))),
        };
        let mut bytes = Vec::new();
        let read = file.take(limit.bytes().saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| FileFault::Read(Arc::new(error)))?;
        if bytes.len() as u64 > limit.bytes() {
            Err(FileFault::Size { limit })
        } else if Digest::of(&bytes) != *digest {
            Err(FileFault::Altered)
        } else {
            Ok(bytes)
        }
    }

    /// Forget all components but those in `keep`, and what other engines compiled. Returns how many files went.
    ///
    /// # Errors
    /// When the folder cannot be listed or a file cannot be removed.
    pub fn prune(&self, keep: &BTreeSet<Digest>) -> Result<usize, LibraryFault> {
        let ours = format!(".{}.cwasm", self.engine);
        self.remove(|name| {
            let kept = |digest: &str| digest.parse().is_ok_and(|digest: Digest| keep.contains(&digest));
            match (name.strip_suffix(".wasm"), name.strip_suffix(&*ours)) {
                (Some(digest), _) | (None, Some(digest)) => !kept(digest),
                (None, None) => name.ends_with(".cwasm"),
            }
        })
    }

    /// The component, ready to be linked: from the cache where it is, else inspected, compiled and cached.
    pub(crate) fn prepare(&self, digest: &Digest, limit: MiB) -> Result<Prepared, FileFault> {
        let bytes = match fs::metadata(self.path(digest)) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(FileFault::Absent),
            Err(error) => return Err(FileFault::Read(Arc::new(error))),
        };
        if bytes > limit.bytes() {
            return Err(FileFault::Size { limit });
        }
        let cache = self.dir.join(format!("{digest}.{}.cwasm", self.engine));
        if let Some(component) = self.cached(&cache) {
            return Ok(Prepared { component, bytes, compiled: None });
        }
        let wasm = self.read(digest, limit)?;
        inspect(&wasm)?;
        let start = Instant::now();
        let component = Component::from_binary(&self.sandbox.engine, &wasm)
            .map_err(|e| FileFault::Compile { message: format!("{e:#}") })?;
        let took = start.elapsed();
        drop(wasm);
        let component = self.keep(&cache, component, digest);
        compiled::give_back_memory();
        Ok(Prepared { component, bytes, compiled: Some(took) })
    }

    /// Cache what was compiled. What comes back is the cached file where that can be: its pages are the file's, and
    /// memory for a copy is not needed.
    fn keep(&self, cache: &Path, component: Component, digest: &Digest) -> Component {
        let kept = component
            .serialize()
            .map_err(|error| format!("{error:#}"))
            .and_then(|native| self.write(cache, &native).map_err(|fault| fault.to_string()));
        match kept {
            Ok(()) => self.cached(cache).unwrap_or(component),
            Err(problem) => {
                // It runs all the same; the next start compiles again.
                tracing::warn!(%digest, problem, "compiled code of a policy cannot be kept");
                component
            }
        }
    }

    fn cached(&self, cache: &Path) -> Option<Component> {
        let found = private(&self.dir).map_err(|fault| fault.to_string());
        let problem = match found.and_then(|()| compiled::read(&self.sandbox.engine, cache)) {
            Ok(found) => return found,
            Err(problem) => problem,
        };
        tracing::warn!(file = %cache.display(), problem, "compiled code of a policy is not used, it is made again");
        None
    }

    /// Write a file that is never seen half-written, also after a loss of power.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), LibraryFault> {
        private(&self.dir)?;
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let partial = self.dir.join(format!("{}.{number}.partial", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&partial, path))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        written.map_err(|error| {
            // Gone already where the rename was what came through.
            let _ = fs::remove_file(&partial);
            io("write", path)(error)
        })
    }

    fn remove(&self, which: impl Fn(&str) -> bool) -> Result<usize, LibraryFault> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir).map_err(io("list", &self.dir))? {
            let entry = entry.map_err(io("list", &self.dir))?;
            if entry.file_name().to_str().is_some_and(&which) {
                fs::remove_file(entry.path()).map_err(io("remove", &entry.path()))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library")
            .field("dir", &self.dir)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LibraryFault {
    let path = path.to_owned();
    move |source| LibraryFault::Io { what, path, source: Arc::new(source) }
}

/// Whoever can write here can run code in the daemon.
fn private(dir: &Path) -> Result<(), LibraryFault> {
    let meta = fs::symlink_metadata(dir).map_err(io("look at", dir))?;
    let user = nix::unistd::geteuid().as_raw();
    let problem = if !meta.is_dir() {
        "is no folder".to_owned()
    } else if meta.uid() != user {
        format!("belongs to user {}, not to {user}", meta.uid())
    } else if meta.mode() & 0o077 != 0 {
        format!("has mode {:o}: others may use it; set 700", meta.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(LibraryFault::Unsafe { dir: dir.to_owned(), problem })
}

/// Tells engines apart by everything that their code depends on. `std`'s own hasher may differ between releases,
/// which would compile everything again.
struct EngineHasher(blake3::Hasher);

impl Hasher for EngineHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

#[cfg(test)]
mod tests;
