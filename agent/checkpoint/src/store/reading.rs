//! Owns the reading of what is kept: a look, a whole pass, and the image that libvirt restores.
//!
//! Promises: what is damaged is told and never given out; an operation of the disk that failed is no damage. Must not do:
//! change anything that is kept.
//!
//! Cost: a look reads the manifests of a checkpoint and of all that it adds to, two dozen small files at the most; a pass
//! and an image as `pages::chain` says.

use std::fs::OpenOptions;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use understudy_core::model::ids::NodeId;
use understudy_core::model::records::CheckpointId;

use super::{ImageError, ImageStore, Link, StoreError};
use crate::layout;
use crate::manifest::{self, BYTES_MAX, Damage, Manifest};
use crate::pages::{ChainError, RebuildError, Receiver, rebuild, replay};
use crate::pieces::AT_ONCE;

impl ImageStore {
    /// A complete checkpoint, after a look at the manifests and the sizes of all that it consists of.
    ///
    /// # Errors
    /// When it is not there, damaged as far as that shows, or cannot be read.
    pub fn checkpoint(&self, node: &NodeId, id: CheckpointId) -> Result<Manifest, ImageError> {
        let own = self.shared.node(node);
        let _read = own.read();
        self.chain_of(node, id).map(|(newest, _)| newest).inspect_err(|error| self.remember(error))
    }

    /// The newest checkpoint of a node that can be used as far as a look tells, and what was found wrong with newer ones.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn newest_complete(&self, node: &NodeId) -> Result<(Option<Manifest>, Vec<ImageError>), StoreError> {
        let mut damaged = Vec::new();
        for id in self.complete(node).into_iter().rev() {
            match self.checkpoint(node, id) {
                Ok(manifest) => return Ok((Some(manifest), damaged)),
                Err(ImageError::Store(error)) => return Err(error),
                Err(error) => damaged.push(error),
            }
        }
        Ok((None, damaged))
    }

    /// Reads all of a checkpoint again and compares it with its digests.
    ///
    /// # Errors
    /// When it is not there, damaged, or cannot be read.
    pub fn verify(&self, node: &NodeId, id: CheckpointId) -> Result<(), ImageError> {
        self.replayed(node, id).map(drop)
    }

    /// Makes the image that `virDomainRestore` takes, as a new file.
    ///
    /// # Errors
    /// When the checkpoint is not there, damaged, or cannot be read, or when the image cannot be written.
    pub fn write_image(&self, node: &NodeId, id: CheckpointId, to: &Path) -> Result<(), ImageError> {
        let own = self.shared.node(node);
        let _read = own.read();
        let (receiver, chain) = self.replay_chain(node, id)?;
        let written = |source| StoreError::Write(to.to_owned(), source);
        // A guest's memory is nobody else's to read.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let mut out = BufWriter::with_capacity(
            AT_ONCE,
            file.map_err(|source| StoreError::Create(to.to_owned(), source))?,
        );
        let segment = |number: u32| self.segment(node, &chain[number as usize]);
        let made = rebuild(&receiver, segment, &mut out);
        made.map_err(|error| match error {
            RebuildError::Write(crate::stream::WriteError::Write(source)) => written(source).into(),
            RebuildError::Chain(ChainError::Read(source)) => {
                StoreError::Read(layout::node(&self.shared.root, node), source).into()
            }
            error => ImageError::Damaged(node.clone(), id, Damage::Image(error.to_string())),
        })?;
        out.flush().map_err(|source| written(source).into())
    }

    /// What is known of the pages of a checkpoint, after a pass over all of it, and what it consists of, oldest first.
    pub(crate) fn replayed(
        &self,
        node: &NodeId,
        id: CheckpointId,
    ) -> Result<(Receiver, Vec<Manifest>), ImageError> {
        let own = self.shared.node(node);
        let _read = own.read();
        self.replay_chain(node, id)
    }

    /// The same, for whoever reads already. What is damaged is remembered: nothing is added to it any more.
    pub(crate) fn replay_chain(
        &self,
        node: &NodeId,
        id: CheckpointId,
    ) -> Result<(Receiver, Vec<Manifest>), ImageError> {
        self.read_chain(node, id).inspect_err(|error| self.remember(error))
    }

    /// Remembers what is damaged.
    pub(crate) fn remember(&self, error: &ImageError) {
        if let ImageError::Damaged(node, id, damage) = error {
            self.shared.lock().found_damaged(node, *id, damage.clone());
        }
    }

    fn read_chain(&self, node: &NodeId, id: CheckpointId) -> Result<(Receiver, Vec<Manifest>), ImageError> {
        let (newest, mut chain) = self.chain_of(node, id)?;
        chain.insert(0, newest);
        chain.reverse();
        let mut receiver = Receiver::default();
        for manifest in &chain {
            let path = layout::segment(&self.shared.root, node, manifest.id, manifest.base);
            let read = |source| StoreError::Read(path.clone(), source);
            let mut file = self.segment(node, manifest).map_err(read)?;
            let replayed = match replay(&mut receiver, &mut file) {
                Err(ChainError::Read(source)) => return Err(read(source).into()),
                Err(error) => Err(error.to_string()),
                Ok(received) => {
                    let head = (&received.head.node, received.head.id, received.head.base);
                    let is_it = head == (node, manifest.id, manifest.base)
                        && (received.root, received.state) == (manifest.root, manifest.state);
                    if is_it { Ok(()) } else { Err("it is another".to_owned()) }
                }
            };
            replayed.map_err(|what| {
                let segment = layout::segment_name(manifest.id, manifest.base);
                ImageError::Damaged(node.clone(), id, Damage::Content { segment, what })
            })?;
        }
        Ok((receiver, chain))
    }

    pub(crate) fn segment(&self, node: &NodeId, of: &Manifest) -> std::io::Result<Box<dyn Read + Send>> {
        self.shared.files.open(&layout::segment(&self.shared.root, node, of.id, of.base))
    }

    /// A checkpoint and what it adds to, newest first.
    pub(crate) fn chain_of(
        &self,
        node: &NodeId,
        id: CheckpointId,
    ) -> Result<(Manifest, Vec<Manifest>), ImageError> {
        if !self.shared.lock().has(node, id) {
            return Err(ImageError::Unknown(node.clone(), id));
        }
        let damaged = |damage| ImageError::Damaged(node.clone(), id, damage);
        let newest = self.look_at(node, id)?.map_err(damaged)?;
        let (mut chain, mut next) = (Vec::new(), newest.base);
        while let Some(base) = next {
            let manifest = match self.look_at(node, base)? {
                Ok(manifest) => manifest,
                Err(_) if !self.shared.lock().has(node, base) => return Err(damaged(Damage::Base(base))),
                Err(damage) => return Err(damaged(Damage::Earlier(base, Box::new(damage)))),
            };
            next = manifest.base;
            chain.push(manifest);
        }
        Ok((newest, chain))
    }

    fn look_at(&self, node: &NodeId, id: CheckpointId) -> Result<Result<Manifest, Damage>, StoreError> {
        let files = &*self.shared.files;
        let path = layout::manifest(&self.shared.root, node, id);
        let bytes = files.read(&path, BYTES_MAX).map_err(|source| StoreError::Read(path, source))?;
        let manifest = match manifest::decode(&bytes.unwrap_or_default()) {
            Ok(manifest) if manifest.node != *node || manifest.id != id => return Ok(Err(Damage::Misplaced)),
            // Nothing adds to what is newer: a chain has an end.
            Ok(manifest) if manifest.base.is_some_and(|base| base >= id) => {
                return Ok(Err(Damage::Manifest("it adds to what is newer".to_owned())));
            }
            Ok(manifest) => manifest,
            Err(damage) => return Ok(Err(damage)),
        };
        let path = layout::segment(&self.shared.root, node, id, manifest.base);
        let segment = layout::segment_name(id, manifest.base);
        Ok(match files.size(&path).map_err(|source| StoreError::Read(path, source))? {
            None => Err(Damage::Missing(segment)),
            Some(found) if found != manifest.bytes => {
                Err(Damage::Size { segment, expected: manifest.bytes, found })
            }
            Some(_) => {
                let link = Link::of(&manifest);
                self.shared.lock().learn(node, id, link);
                Ok(manifest)
            }
        })
    }
}
