//! The policy `spread`: every member goes where a failure costs least and where there is most room.
//!
//! Owns the order of hosts, see [`rank`]. Promises never to pick a host that takes no work or has no room, and
//! to pick a host that has a member of the node already only when no other is left. Must not do: guess; a
//! parameter that it does not know is refused.

mod parameters;
mod rank;
#[cfg(test)]
mod tests;

/// What `wit/` says, as Rust.
#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all, reason = "generated from wit/")]
pub mod wit {
    wit_bindgen::generate!({ path: "../../wit", world: "placement-policy" });
}

pub use parameters::Weights;
pub use rank::rank;

use wit::exports::understudy::policy::placement::{Guest, Hosts, Parameter, Pick, Request};

/// The component.
struct Spread;

impl Guest for Spread {
    fn place(request: Request, hosts: Hosts, parameters: Vec<Parameter>) -> Result<Vec<Pick>, String> {
        #[cfg(target_family = "wasm")]
        component::report_panics();
        let weights = Weights::read(&parameters)?;
        Ok(rank(&request, &hosts, weights))
    }
}

#[cfg(target_family = "wasm")]
#[allow(unsafe_code, reason = "generated from wit/")]
mod component {
    use super::Spread;
    use super::wit::understudy::policy::log::{Level, write};

    super::wit::export!(Spread with_types_in super::wit);

    /// A trap says only `unreachable`; the daemon adds the last error of the log to it.
    pub(super) fn report_panics() {
        std::panic::set_hook(Box::new(|panic| write(Level::Error, &panic.to_string())));
    }
}
