//! The few file operations that durability is made of, behind a trait: the tests put a disk in its place that loses
//! power between any two of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file being written.
pub(crate) trait WriteFile: Write + Send {
    /// The bytes are on the disk when this returns.
    fn sync(&mut self) -> io::Result<()>;
}

pub(crate) trait Files: Send + Sync {
    /// A new file; one that exists is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// Atomic, replaces; durable only after [`Files::sync_dir`] of the folder it ends in.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// The names in a folder are on the disk when this returns.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// A file that is not there is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// An empty folder.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// A folder in an existing one; one that exists is no error.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a folder.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// The size of a file; `None` when it is not there.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;

    /// At most `limit` bytes from a file's beginning; `None` when it is not there.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match self.open(path) {
            Ok(file) => file.take(limit).read_to_end(&mut bytes).map(|_| Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The disk of this machine.
pub(crate) struct Disk;

impl WriteFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// An error that is no error when it says that the wanted state holds already.
fn unless(kind: io::ErrorKind, outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}

impl Files for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut options = OpenOptions::new();
        // A guest's memory is nobody else's to read.
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Box::new(options.write(true).create_new(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        unless(io::ErrorKind::NotFound, fs::remove_file(path))
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        unless(io::ErrorKind::NotFound, fs::remove_dir(dir))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        unless(io::ErrorKind::AlreadyExists, fs::create_dir(dir))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }
}

/// Replaces a small file: written aside, synced, renamed, its name synced.
pub(crate) fn replace(files: &dyn Files, aside: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = files.create(aside)?;
    file.write_all(bytes)?;
    file.sync()?;
    files.rename(aside, path)?;
    files.sync_dir(path.parent().expect("every path here is inside the store's folder"))
}

#[cfg(test)]
#[path = "files/weak_disk.rs"]
pub(crate) mod weak_disk;
