//! What a policy in Rust is written with: one function that gets a question and gives an answer.
//!
//! ```
//! use understudy_policy_sdk::placement::{Answer, Question};
//!
//! understudy_policy_sdk::placement!(place);
//!
//! /// The emptiest host that would do.
//! fn place(question: &Question<'_>) -> Answer {
//!     question.no_parameters()?;
//!     Ok(question.best(|host| host.suits().then(|| std::cmp::Reverse(host.free_memory_mib()))))
//! }
//!
//! let asked = understudy_policy_sdk::testing::placement(3).free_memory_mib(1, 60_000).wanted(2);
//! assert_eq!(asked.rows(place), Ok(vec![0, 2]));
//! ```
//!
//! Owns the bindings to `wit/`, the view of rows over its columns, and what every policy would write anew: the choice
//! of the best, the reading of parameters and labels, the panic's way into the daemon's log, the heap. Promises that reading a
//! row costs what reading the column costs, and that the same question gets the same answer: nothing here has a
//! clock, randomness or an order of hashes. Must not do: decide; and depend on anything but the bindings' generator,
//! because each dependency is one more thing that a site has to build for WebAssembly.

pub mod backup_count;
mod best;
mod heap;
pub mod log;
pub mod parameters;
pub mod placement;
pub mod testing;
pub mod wit;

pub use wit::types::{Label, Part, Role};

/// Makes a component that answers `placement` by a function of the form
/// `fn(&placement::Question<'_>) -> placement::Answer`.
#[macro_export]
macro_rules! placement {
    ($answer:path) => {
        const _: () = {
            struct Policy;
            impl $crate::wit::placement::Guest for Policy {
                fn place(
                    request: $crate::wit::placement::Request,
                    hosts: $crate::wit::placement::Hosts,
                    parameters: ::std::vec::Vec<$crate::parameters::Parameter>,
                ) -> $crate::placement::Answer {
                    $crate::log::report_panics();
                    $answer(&$crate::placement::Question::new(&request, &hosts, &parameters))
                }
            }
            #[cfg(target_family = "wasm")]
            $crate::wit::placement_policy::export_placement!(Policy with_types_in $crate::wit::placement_policy);
        };
    };
}

/// Makes a component that answers `backup-count` by a function of the form
/// `fn(&backup_count::Question<'_>) -> backup_count::Answer`. A policy may have both macros.
#[macro_export]
macro_rules! backup_count {
    ($answer:path) => {
        const _: () = {
            struct Policy;
            impl $crate::wit::backup_count::Guest for Policy {
                fn count(
                    request: $crate::wit::backup_count::Request,
                    cluster: $crate::wit::backup_count::Cluster,
                    parameters: ::std::vec::Vec<$crate::parameters::Parameter>,
                ) -> $crate::backup_count::Answer {
                    $crate::log::report_panics();
                    $answer(&$crate::backup_count::Question::new(&request, cluster, &parameters))
                }
            }
            #[cfg(target_family = "wasm")]
            $crate::wit::backup_count_policy::export_backup_count!(
                Policy with_types_in $crate::wit::backup_count_policy
            );
        };
    };
}
