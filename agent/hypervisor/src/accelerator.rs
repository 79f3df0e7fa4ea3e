//! Owns the choice between hardware virtualisation and emulation, and the trial of it.
//!
//! Promises: `auto` uses KVM only where the processor can virtualise and a virtual machine with a processor could be made
//! (libvirt's capabilities advertise KVM on machines where it does not work), and goes on with it only when the first
//! guest boots; why it does not is logged once, and told to whoever listens to the hypervisor, however late. Must not do:
//! ask libvirt; change what an operator has fixed.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use understudy_core::model::ids::InstanceId;

use crate::event::{EventKind, Hub};
use crate::ffi;

/// How long a guest may take to boot on the host's own processor. It takes a second or two; one that is destroyed after
/// this without its agent's first answer has not booted, one that is destroyed before tells nothing.
const BOOT: Duration = Duration::from_secs(30);
/// Where the kernel tells what the processors can do.
const CPUINFO: &str = "/proc/cpuinfo";

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
    /// Begins with what this host's instances are to use.
    pub(crate) fn begin(self, hub: Arc<Hub>) -> Trial {
        let state = match self {
            Self::Fixed(accelerator) => State::Settled(accelerator),
            Self::Auto => match kvm_fault() {
                None => State::Trying { begun: BTreeMap::new(), refused: None },
                Some(reason) => {
                    tracing::warn!(reason, "kvm does not work on this host, instances are emulated");
                    State::FellBack(reason)
                }
            },
        };
        Trial { state: Mutex::new(state), hub }
    }
}

/// Whether the accelerator that was chosen runs guests.
///
/// ```text
/// fixed ───────────────────────────────────────────────▶ settled
/// kvm cannot work ─────────────────────────────────────▶ fell back
/// trying ── a guest's agent answers ───────────────────▶ settled: kvm
/// trying ── libvirt refuses kvm and takes emulation,
///           qemu ends or BOOT passes before an answer ─▶ fell back
/// ```
#[derive(Debug)]
pub(crate) struct Trial {
    state: Mutex<State>,
    hub: Arc<Hub>,
}

#[derive(Debug)]
enum State {
    Settled(Accelerator),
    /// To emulation, for this reason.
    FellBack(String),
    /// KVM.
    Trying {
        /// What was begun with it: none of these has answered.
        begun: BTreeMap<InstanceId, Instant>,
        /// Why libvirt refused it, while it is not known whether it takes emulation.
        refused: Option<String>,
    },
}

/// How an instance is to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// With this.
    Settled(Accelerator),
    /// With KVM, which is on trial.
    Kvm,
    /// With emulation, because KVM was refused for this reason and emulation could not be tried then.
    Emulation(String),
}

impl Trial {
    /// What the next instance is to use, as far as is known.
    pub(crate) fn accelerator(&self) -> Accelerator {
        match *self.state() {
            State::Settled(accelerator) => accelerator,
            State::FellBack(_) => Accelerator::Tcg,
            State::Trying { .. } => Accelerator::Kvm,
        }
    }

    /// Why instances are emulated, where that was left open and KVM does not work.
    pub(crate) fn fell_back(&self) -> Option<String> {
        match &*self.state() {
            State::FellBack(reason) => Some(reason.clone()),
            State::Settled(_) | State::Trying { .. } => None,
        }
    }

    /// How this instance is to be begun; from here on it is.
    pub(crate) fn attempt(&self, id: InstanceId) -> Attempt {
        match &mut *self.state() {
            State::Settled(accelerator) => Attempt::Settled(*accelerator),
            State::FellBack(_) => Attempt::Settled(Accelerator::Tcg),
            State::Trying { begun, refused } => match refused.take() {
                Some(reason) => Attempt::Emulation(reason),
                None => {
                    begun.insert(id, Instant::now());
                    Attempt::Kvm
                }
            },
        }
    }

    /// libvirt refused KVM, and emulation cannot be tried now: with the next instance.
    pub(crate) fn refused(&self, reason: String) {
        if let State::Trying { refused, .. } = &mut *self.state() {
            *refused = Some(reason);
        }
    }

    /// libvirt does not begin this instance. With what else that was, its caller says.
    pub(crate) fn not_begun(&self, id: InstanceId) {
        if let State::Trying { begun, .. } = &mut *self.state() {
            begun.remove(&id);
        }
    }

    /// The agent of a guest that KVM runs has answered. One that another agent began counts as well.
    pub(crate) fn answered(&self, id: InstanceId, by_kvm: bool) {
        let mut state = self.state();
        if let State::Trying { begun, .. } = &*state
            && (by_kvm || begun.contains_key(&id))
        {
            tracing::info!(%id, "kvm runs guests on this host");
            *state = State::Settled(Accelerator::Kvm);
        }
    }

    /// An instance is about to be destroyed.
    pub(crate) fn destroyed(&self, id: InstanceId) {
        let begun = match &mut *self.state() {
            State::Settled(_) | State::FellBack(_) => None,
            State::Trying { begun, .. } => begun.remove(&id),
        };
        if begun.is_some_and(|begun| begun.elapsed() >= BOOT) {
            self.emulate("the first guest did not boot");
        }
    }

    /// The process of an instance has ended that nobody destroyed.
    pub(crate) fn died(&self, id: InstanceId) {
        let begun = matches!(&*self.state(), State::Trying { begun, .. } if begun.contains_key(&id));
        if begun {
            self.emulate("the qemu of the first guest ended before it had booted");
        }
    }

    /// KVM does not run guests here, whatever it promised.
    pub(crate) fn emulate(&self, reason: &str) {
        {
            let mut state = self.state();
            if !matches!(*state, State::Trying { .. }) {
                return;
            }
            *state = State::FellBack(reason.to_owned());
        }
        tracing::warn!(
            reason,
            "kvm does not run guests on this host, instances are emulated until the agent starts again"
        );
        self.hub.tell(EventKind::Emulates { reason: reason.to_owned() });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why KVM cannot work on this host, as far as can be told without a guest.
fn kvm_fault() -> Option<String> {
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .and_then(|device| ffi::kvm_make_processor(&device));
    if let Err(error) = made {
        return Some(format!("/dev/kvm makes no virtual machine: {error}"));
    }
    match std::fs::read_to_string(CPUINFO) {
        Ok(text) => processor_fault(std::env::consts::ARCH, &text).map(str::to_owned),
        Err(error) => Some(format!("cannot read {CPUINFO}: {error}")),
    }
}

/// What a processor lacks by its flags. Some kernels make virtual machines where it lacks them, for guests that are made for
/// that; those that this product boots do not run, and libvirt refuses them. Only x86 has such flags: on aarch64 and others
/// the kernel makes no virtual machine where the processor cannot run one (on aarch64, where it was not booted at EL2).
fn processor_fault(architecture: &str, cpuinfo: &str) -> Option<&'static str> {
    let x86 = matches!(architecture, "x86_64" | "x86");
    let mut flags =
        cpuinfo.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "flags"));
    let virtualises = |line: &str| line.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    let able = flags.next().is_some_and(virtualises) && flags.all(virtualises);
    (x86 && !able).then_some(
        "the processor has neither vmx nor svm: they are switched off in its firmware, or the hypervisor below does not \
         hand them on",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABLE: &str =
        "processor\t: 0\nflags\t\t: fpu svm\nvmx flags\t: x\n\nprocessor\t: 1\nflags\t\t: vmx fpu\n";

    fn id(last: u8) -> InstanceId {
        format!("11111111-2222-4333-8444-0000000000{last:02x}").parse().unwrap()
    }

    fn trial() -> Trial {
        let state = State::Trying { begun: BTreeMap::new(), refused: None };
        Trial { state: Mutex::new(state), hub: Arc::default() }
    }

    #[test]
    fn a_setting_is_one_of_three_words() {
        assert_eq!("kvm".parse(), Ok(AcceleratorSetting::Fixed(Accelerator::Kvm)));
        let fixed = "qemu".parse::<AcceleratorSetting>().unwrap().begin(Arc::default());
        assert_eq!(fixed.accelerator(), Accelerator::Tcg);
        assert_eq!("auto".parse(), Ok(AcceleratorSetting::Auto));
        let error = "tcg".parse::<AcceleratorSetting>().unwrap_err();
        assert!(error.to_string().contains("use kvm, qemu or auto"));
    }

    #[test]
    fn every_processor_has_to_have_the_flag_where_there_is_one() {
        assert_eq!(processor_fault("x86_64", ABLE), None);
        let one_lacks = ABLE.replace("vmx fpu", "fpu hypervisor");
        let none_at_all = "processor\t: 0\nmodel name\t: svm\n";
        // `vmx flags` is another key, which names what vmx can do.
        let other_key = "processor\t: 0\nflags\t\t: fpu\nvmx flags\t: vmx\n";
        for lacking in [&one_lacks, none_at_all, other_key, ""] {
            assert!(
                processor_fault("x86_64", lacking).is_some_and(|why| why.contains("neither vmx nor svm"))
            );
        }
        assert_eq!(processor_fault("aarch64", "processor\t: 0\nFeatures\t: fp asimd\n"), None);
    }

    #[test]
    fn auto_takes_kvm_only_where_nothing_is_amiss() {
        let fault = kvm_fault();
        let expected = if fault.is_none() { Accelerator::Kvm } else { Accelerator::Tcg };
        let trial = AcceleratorSetting::Auto.begin(Arc::default());
        assert_eq!((trial.accelerator(), trial.fell_back()), (expected, fault));
        if let Ok(text) = std::fs::read_to_string(CPUINFO)
            && processor_fault(std::env::consts::ARCH, &text).is_some()
        {
            assert_eq!(expected, Accelerator::Tcg);
        }
    }

    #[test]
    fn a_guest_that_answers_settles_kvm_for_good() {
        for by_another_agent in [false, true] {
            let trial = trial();
            if !by_another_agent {
                trial.answered(id(1), false);
                assert_eq!(trial.attempt(id(1)), Attempt::Kvm, "what answered was not begun with kvm");
            }
            trial.answered(id(1), by_another_agent);
            assert_eq!(trial.attempt(id(2)), Attempt::Settled(Accelerator::Kvm));
            trial.died(id(2));
            trial.emulate("too late");
            assert_eq!(trial.accelerator(), Accelerator::Kvm);
        }
    }

    #[test]
    fn a_first_guest_that_does_not_boot_leaves_emulation() {
        let died = trial();
        died.attempt(id(1));
        died.died(id(2));
        assert_eq!(died.accelerator(), Accelerator::Kvm, "another's death");
        died.died(id(1));
        assert_eq!(died.accelerator(), Accelerator::Tcg);

        let late = trial();
        let long_ago = Instant::now().checked_sub(BOOT).unwrap();
        *late.state() = State::Trying { begun: BTreeMap::from([(id(1), long_ago)]), refused: None };
        late.destroyed(id(1));
        assert_eq!(late.accelerator(), Accelerator::Tcg);
    }

    #[test]
    fn a_first_guest_that_is_taken_back_early_tells_nothing() {
        let trial = trial();
        trial.attempt(id(1));
        trial.destroyed(id(1));
        trial.died(id(1));
        trial.attempt(id(2));
        trial.not_begun(id(2));
        trial.died(id(2));
        assert_eq!(trial.accelerator(), Accelerator::Kvm);
    }

    #[test]
    fn what_was_refused_with_kvm_is_tried_with_emulation_once_and_then_with_kvm_again() {
        let trial = trial();
        assert_eq!(trial.attempt(id(1)), Attempt::Kvm);
        trial.not_begun(id(1));
        trial.refused("no such type".to_owned());
        assert_eq!(trial.attempt(id(2)), Attempt::Emulation("no such type".to_owned()));
        assert_eq!(trial.attempt(id(3)), Attempt::Kvm, "emulation did not do either");
        trial.emulate("no such type");
        trial.refused("too late".to_owned());
        assert_eq!(trial.attempt(id(4)), Attempt::Settled(Accelerator::Tcg));
    }

    #[test]
    fn what_an_operator_has_fixed_stays() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let fixed = AcceleratorSetting::Fixed(accelerator).begin(Arc::default());
            let events = fixed.hub.subscribe();
            assert_eq!(fixed.attempt(id(1)), Attempt::Settled(accelerator));
            fixed.died(id(1));
            fixed.emulate("refused");
            assert_eq!((fixed.accelerator(), fixed.fell_back()), (accelerator, None));
            assert!(events.try_recv().is_err(), "{accelerator:?}");
        }
    }

    #[test]
    fn falling_back_is_reported_once_with_the_reason() {
        let trial = trial();
        let events = trial.hub.subscribe();
        assert_eq!(trial.fell_back(), None);
        trial.attempt(id(1));
        trial.died(id(1));
        trial.emulate("told already");
        let reason = trial.fell_back().unwrap();
        assert!(reason.contains("ended before it had booted"), "{reason}");
        assert_eq!(events.try_recv().unwrap().kind, EventKind::Emulates { reason });
        assert!(events.try_recv().is_err());
    }
}
