//! Owns the choice between hardware virtualisation and emulation.
//!
//! Promises: `auto` says KVM only after a virtual machine with a processor could be made: libvirt's capabilities
//! advertise KVM on machines where it does not work. Must not do: ask libvirt.

use std::fs::OpenOptions;
use std::str::FromStr;

use crate::ffi;

/// What runs a guest's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

impl Accelerator {
    /// libvirt's word for it.
    pub(crate) fn domain_type(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "qemu",
        }
    }
}

/// What the configuration says: `kvm`, `qemu` or `auto`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AcceleratorSetting {
    /// This one, whatever the host can do.
    Fixed(Accelerator),
    /// KVM where it works, else emulation.
    #[default]
    Auto,
}

/// A text that names no accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no accelerator: use kvm, qemu or auto")]
pub struct AcceleratorError(String);

impl FromStr for AcceleratorSetting {
    type Err = AcceleratorError;
    fn from_str(text: &str) -> Result<Self, AcceleratorError> {
        match text {
            "kvm" => Ok(Self::Fixed(Accelerator::Kvm)),
            "qemu" => Ok(Self::Fixed(Accelerator::Tcg)),
            "auto" => Ok(Self::Auto),
            other => Err(AcceleratorError(other.to_owned())),
        }
    }
}

impl AcceleratorSetting {
    /// What this host's instances are to use.
    #[must_use]
    pub fn choose(self) -> Accelerator {
        match self {
            Self::Fixed(accelerator) => accelerator,
            Self::Auto if kvm_works() => Accelerator::Kvm,
            Self::Auto => Accelerator::Tcg,
        }
    }
}

fn kvm_works() -> bool {
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .and_then(|device| ffi::kvm_make_processor(&device));
    match made {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(%error, "kvm does not work on this host; instances are emulated");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_one_of_three_words() {
        assert_eq!("kvm".parse(), Ok(AcceleratorSetting::Fixed(Accelerator::Kvm)));
        assert_eq!("qemu".parse::<AcceleratorSetting>().unwrap().choose(), Accelerator::Tcg);
        assert_eq!("auto".parse(), Ok(AcceleratorSetting::Auto));
        let error = "tcg".parse::<AcceleratorSetting>().unwrap_err();
        assert!(error.to_string().contains("use kvm, qemu or auto"));
    }
}
