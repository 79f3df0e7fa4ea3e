//! Owns what a site can set.

use crate::wit::exports::understudy::policy::placement::Parameter;

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
    /// A text for the operator where a key is unknown or a value is no number from 0 to 100.
    pub fn read(parameters: &[Parameter]) -> Result<Self, String> {
        let mut weights = Self::default();
        for Parameter { key, value } in parameters {
            let weight = match key.as_str() {
                "room-weight" => &mut weights.room,
                "load-weight" => &mut weights.load,
                "traffic-weight" => &mut weights.traffic,
                _ => {
                    return Err(format!(
                        "parameter '{key}' is unknown: use room-weight, load-weight or traffic-weight"
                    ));
                }
            };
            *weight =
                value.parse().ok().filter(|w| *w <= WEIGHT_MAX).ok_or_else(|| {
                    format!("parameter {key}='{value}' is no number from 0 to {WEIGHT_MAX}")
                })?;
        }
        Ok(weights)
    }
}
