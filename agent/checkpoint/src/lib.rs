//! Checkpoints of execution members on a backup's host: bytes in, bytes out.
//!
//! Owns the folder they are kept in, their manifests and the highest epoch seen of each node. This is the first form:
//! whole memory images. The seam for a page store is [`ImageStore::receive`] and [`ImageStore::image`]: a caller hands
//! in a reader and gets the path of something that `virDomainRestore` takes; what lies between is this crate's own.
//!
//! Owns also the two formats that such an image is made of: libvirt's header ([`SaveImage`]) and behind it QEMU's
//! migration stream ([`stream`]). And the next form, which nobody uses yet: what of a guest's memory changed, as pages that
//! travel and are kept in segments ([`pages`]). Neither knows the folder, nor it them.
//!
//! Promises:
//! * SAFE-3: a checkpoint is complete only when its bytes, its manifest and their names are durable; power lost at any
//!   moment leaves it complete or not there; a damaged one is skipped and reported, never offered;
//! * SAFE-4: once an epoch of a node was seen, a checkpoint of an older one is refused, also after a restart;
//! * the newest two of a node are kept, and the one that the cluster's record names, until told to forget.
//!
//! It must not know where bytes come from, run anything, or log: what it finds goes back to the caller.

mod digest;
mod files;
mod incoming;
mod layout;
mod manifest;
pub mod pages;
mod pieces;
mod save_image;
mod store;
pub mod stream;

pub use digest::{Digest, digest_of};
pub use incoming::{Expected, FinishError, Incoming};
pub use manifest::{Damage, Description, Manifest};
pub use save_image::{SaveImage, SaveImageError, SaveImageParser};
pub use store::{BeginError, Image, ImageError, ImageStore, ReceiveError, Scratch, StoreError};
