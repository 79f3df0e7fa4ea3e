//! What agents show each other, with certificates of every kind.

mod certificates;
mod files;

use std::path::PathBuf;

use understudy_core::model::ids::HostId;

use crate::config::PeerFiles;

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn files([authority, certificate, key]: [PathBuf; 3]) -> PeerFiles {
    PeerFiles { authority, certificate, key }
}
