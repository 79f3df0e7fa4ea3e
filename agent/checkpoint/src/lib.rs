//! Checkpoints of execution members on a backup's host: bytes in, bytes out.
//!
//! ```text
//! primary's host                                  a backup's host
//! save image ─▶ what changed of it ─▶ segment ─▶ ImageStore ─▶ ReadyImages ─▶ virDomainRestore
//!                (pages)                          on a disk     on a tmpfs
//! ```
//!
//! Owns the folder they are kept in, their manifests and the highest epoch seen of each node ([`ImageStore`]); the restore
//! images that are made of them ([`ReadyImages`]); the two formats that such an image is made of, libvirt's header
//! ([`SaveImage`]) and behind it QEMU's migration stream ([`stream`]); and what of a guest's memory changed, as pages that
//! travel and are kept in segments ([`pages`]). The formats and the pages do not know the folder.
//!
//! Promises:
//! * SAFE-3: a checkpoint is complete only when its segment, its manifest, their names, and all that it adds to are
//!   durable; power lost at any moment leaves it complete or not there; a damaged one is reported, never restored;
//! * SAFE-4: once an epoch of a node was seen, a checkpoint of an older one is refused, also after a restart;
//! * the newest two of a node are kept with all that they add to, and the one that is being restored here, until told to
//!   forget; together they take up to twice the newest alone, and what came since they were made fewer;
//! * what it says that it has ([`ImageStore::kept`]) is durable, and whole as far as anybody has looked.
//!
//! It must not know where bytes come from, run anything, or log: what it finds goes back to the caller.

mod digest;
mod files;
mod incoming;
mod layout;
mod manifest;
pub mod pages;
mod pieces;
mod ready_images;
mod save_image;
mod store;
pub mod stream;

pub use digest::Digest;
pub use manifest::{Damage, Description, Manifest};
pub use ready_images::{ReadyImages, RestoreImage};
pub use save_image::{SaveImage, SaveImageError, SaveImageParser};
pub use store::{BeginError, ImageError, ImageStore, ReceiveError, StoreError};
