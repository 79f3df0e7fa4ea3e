//! Owns what a site can set.

use understudy_policy_sdk::parameters::Parameters;

/// How much each kind of strain counts, relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Memory and processors that are taken.
    pub room: u32,
    /// How busy the processors are.
    pub load: u32,
    /// Migrations and restores under way.
    pub traffic: u32,
}

/// Above this, strain times weight could not be told from a host that is merely full.
const WEIGHT_MAX: u32 = 100;

impl Default for Weights {
    fn default() -> Self {
        Self { room: 2, load: 1, traffic: 1 }
    }
}

impl Weights {
    /// The weights that a site asked for; the others keep their default.
    ///
    /// # Errors
    /// A text for the operator where a value is no number from 0 to 100.
    pub fn read(parameters: &mut Parameters<'_>) -> Result<Self, String> {
        let default = Self::default();
        Ok(Self {
            room: parameters.number("room-weight", default.room, 0..=WEIGHT_MAX)?,
            load: parameters.number("load-weight", default.load, 0..=WEIGHT_MAX)?,
            traffic: parameters.number("traffic-weight", default.traffic, 0..=WEIGHT_MAX)?,
        })
    }
}
