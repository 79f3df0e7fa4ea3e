//! Where things are in the store's folder.
//!
//! ```text
//! incoming/<number>            being received or written aside; emptied when the store is opened
//! nodes/<terminal>.<node>/     one folder per node: alice.exec-1
//!   epoch                      the highest epoch seen
//!   <epoch>.<sequence>.image   what libvirt restores
//!   <epoch>.<sequence>.json    its manifest; the checkpoint is complete when this name is durable
//! ```

use std::path::{Path, PathBuf};

use understudy_core::model::ids::{Epoch, NodeId};
use understudy_core::model::records::CheckpointId;

pub(crate) const IMAGE: &str = "image";
pub(crate) const MANIFEST: &str = "json";
pub(crate) const EPOCH: &str = "epoch";

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

pub(crate) fn file(root: &Path, of: &NodeId, id: CheckpointId, kind: &str) -> PathBuf {
    node(root, of).join(format!("{id}.{kind}"))
}

/// The checkpoint that a file belongs to, if it is of this kind.
pub(crate) fn id_of(path: &Path, kind: &str) -> Option<CheckpointId> {
    let name = path.file_name()?.to_str()?;
    let (epoch, sequence) = name.strip_suffix(kind)?.strip_suffix('.')?.split_once('.')?;
    let id = CheckpointId { epoch: Epoch(epoch.parse().ok()?), sequence: sequence.parse().ok()? };
    // Only the one spelling: "5.017" and "5.17" are not to be two files of one checkpoint.
    (name == format!("{id}.{kind}")).then_some(id)
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
        let id = CheckpointId { epoch: Epoch(5), sequence: 17 };
        let image = file(root, &"a/exec-1".parse().unwrap(), id, IMAGE);
        assert_eq!(image, Path::new("root/nodes/a.exec-1/5.17.image"));
        assert_eq!(id_of(&image, IMAGE), Some(id));
        for bad in ["5.17.json", "5.017.image", "5.image", "5.17.18.image", "+5.17.image", "epoch"] {
            assert_eq!(id_of(Path::new(bad), IMAGE), None, "{bad}");
        }
    }
}
