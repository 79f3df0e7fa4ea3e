//! What `wit/` says, as Rust. A policy needs of it only what the other modules export again.
#![allow(missing_docs, unsafe_code, unreachable_pub, clippy::all, reason = "generated from wit/")]

/// The world of policies that say where members go.
pub mod placement_policy {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "placement-policy",
        pub_export_macro: true,
        export_macro_name: "export_placement",
        additional_derives: [PartialEq],
    });
}

/// The world of policies that say how many backups a node has. Its types are those of the other world.
pub mod backup_count_policy {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "backup-count-policy",
        pub_export_macro: true,
        export_macro_name: "export_backup_count",
        additional_derives: [PartialEq],
        with: {
            "understudy:policy/types@0.1.0": crate::wit::types,
            "understudy:policy/log@0.1.0": crate::wit::log,
        },
    });
}

pub use backup_count_policy::exports::understudy::policy::backup_count;
pub use placement_policy::exports::understudy::policy::placement;
pub use placement_policy::understudy::policy::{log, types};
