//! Where things are in the store's folder.
//!
//! ```text
//! incoming/<number>                 being received or written aside; emptied when the store is opened
//! nodes/<terminal>.<node>/          one folder per node: alice.exec-1
//!   epoch                           the highest epoch seen
//!   <epoch>.<sequence>.json         a manifest; the checkpoint is complete when this name is durable
//!   <epoch>.<sequence>.pages        the segment of a checkpoint that is whole by itself
//!   <epoch>.<sequence>+<epoch>.<sequence>.pages    of one that adds to the second
//! ```

use std::path::{Path, PathBuf};

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

pub(crate) const EPOCH: &str = "epoch";
const PAGES: &str = "pages";
const MANIFEST: &str = "json";

pub(crate) fn incoming(root: &Path) -> PathBuf {
    root.join("incoming")
}

pub(crate) fn nodes(root: &Path) -> PathBuf {
    root.join("nodes")
}

/// Names of terminals hold no dot, so that this reads back.
pub(crate) fn node(root: &Path, node: &NodeId) -> PathBuf {
    nodes(root).join(node.to_string().replace('/', "."))
}

pub(crate) fn node_of(folder: &Path) -> Option<NodeId> {
    folder.file_name()?.to_str()?.replacen('.', "/", 1).parse().ok()
}

pub(crate) fn manifest(root: &Path, of: &NodeId, id: CheckpointId) -> PathBuf {
    node(root, of).join(manifest_name(id))
}

pub(crate) fn manifest_name(id: CheckpointId) -> String {
    format!("{id}.{MANIFEST}")
}

pub(crate) fn segment(root: &Path, of: &NodeId, id: CheckpointId, base: Option<CheckpointId>) -> PathBuf {
    node(root, of).join(segment_name(id, base))
}

pub(crate) fn segment_name(id: CheckpointId, base: Option<CheckpointId>) -> String {
    base.map_or_else(|| format!("{id}.{PAGES}"), |base| format!("{id}+{base}.{PAGES}"))
}

/// The checkpoint whose manifest a file is.
pub(crate) fn manifest_of(path: &Path) -> Option<CheckpointId> {
    let name = path.file_name()?.to_str()?;
    id_of(name.strip_suffix(MANIFEST)?.strip_suffix('.')?)
}

/// The checkpoint whose segment a file is, and what it adds to.
pub(crate) fn segment_of(path: &Path) -> Option<(CheckpointId, Option<CheckpointId>)> {
    let name = path.file_name()?.to_str()?.strip_suffix(PAGES)?.strip_suffix('.')?;
    match name.split_once('+') {
        None => Some((id_of(name)?, None)),
        Some((id, base)) => Some((id_of(id)?, Some(id_of(base)?))),
    }
}

/// Only the one spelling: "5.017" and "5.17" are not to be two files of one checkpoint.
fn id_of(text: &str) -> Option<CheckpointId> {
    let (epoch, sequence) = text.split_once('.')?;
    let id = CheckpointId { epoch: Epoch(epoch.parse().ok()?), sequence: sequence.parse().ok()? };
    (text == id.to_string()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_they_were_written() {
        let root = Path::new("root");
        for text in ["alice/display", "b-2/exec-17"] {
            let id: NodeId = text.parse().unwrap();
            assert_eq!(node_of(&node(root, &id)), Some(id));
        }
        let (id, base) = (of(5, 17), of(4, 3));
        let node: NodeId = "a/exec-1".parse().unwrap();
        let (whole, adds) = (segment(root, &node, id, None), segment(root, &node, id, Some(base)));
        assert_eq!(whole, Path::new("root/nodes/a.exec-1/5.17.pages"));
        assert_eq!(adds, Path::new("root/nodes/a.exec-1/5.17+4.3.pages"));
        assert_eq!((segment_of(&whole), segment_of(&adds)), (Some((id, None)), Some((id, Some(base)))));
        assert_eq!(manifest_of(&manifest(root, &node, id)), Some(id));
        for bad in
            ["5.17.json", "5.017.pages", "5.pages", "5.17.18.pages", "+5.17.pages", "5.17+.pages", "epoch"]
        {
            assert_eq!(segment_of(Path::new(bad)), None, "{bad}");
        }
        assert_eq!(manifest_of(Path::new("5.017.json")), None);
    }

    fn of(epoch: u64, sequence: u64) -> CheckpointId {
        CheckpointId { epoch: Epoch(epoch), sequence }
    }
}
