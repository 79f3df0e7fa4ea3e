//! Components that were damaged in every way that chance knows: none panics, hangs, or is loaded and then does worse
//! than failing its question. `PROPTEST_CASES=100000` makes it run for as long as a fuzzer would.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::{NOT_TRIAL, component, component_v02, module, module_of, placement_guest, question};
use proptest::prelude::*;
use understudy_core::units::MiB;
use understudy_policy::{Library, Limits, PolicySet, Settings, check};

/// Short: some mutants loop. What is asked here takes microseconds.
const DEADLINE: Duration = Duration::from_millis(50);
/// A trial is put three times to a mutant that loops, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
const LIMIT: MiB = MiB(1);

/// Components to start from: of both versions, with every section that a linker makes.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    vec![
        placement_guest("(call $log (i32.const 2) (i32.const 512) (i32.const 12))"),
        placement_guest("(drop (memory.grow (i32.const 1))) (call $deep)"),
        component(&module("", NOT_TRIAL), "placement-policy"),
        component_v02(&module_of("0.2.0", "unreachable", NOT_TRIAL), "placement-policy"),
    ]
});

#[derive(Debug, Clone)]
enum Damage {
    /// A bit of a byte.
    Flip(prop::sample::Index, u8),
    /// A byte becomes another.
    Set(prop::sample::Index, u8),
    /// What follows is gone.
    Cut(prop::sample::Index),
    /// A piece is left out.
    Drop(prop::sample::Index, usize),
    /// A piece of another seed is put in, or in the place of what was there.
    Splice(prop::sample::Index, prop::sample::Index, prop::sample::Index, usize, bool),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        6 => (at(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), 1_usize..64).prop_map(|(at, length)| Damage::Drop(at, length)),
        2 => (at(), at(), at(), 1_usize..256, any::<bool>())
            .prop_map(|(seed, from, at, length, over)| Damage::Splice(seed, from, at, length, over)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let length_now = bytes.len();
    if length_now == 0 {
        return;
    }
    match damage {
        Damage::Flip(at, bit) => bytes[at.index(length_now)] ^= 1 << bit,
        Damage::Set(at, byte) => bytes[at.index(length_now)] = *byte,
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Drop(at, length) => {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        Damage::Splice(seed, from, at, length, over) => {
            let other = &SEEDS[seed.index(SEEDS.len())];
            let from = from.index(other.len());
            let piece = other[from..(from + length).min(other.len())].to_vec();
            let at = at.index(bytes.len());
            let end = if *over { (at + piece.len()).min(bytes.len()) } else { at };
            bytes.splice(at..end, piece);
        }
    }
}

proptest! {
    #[test]
    fn a_mutant_is_refused_with_a_reason_or_asked_within_its_limits(
        seed in any::<prop::sample::Index>(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let mut mutant = SEEDS[seed.index(SEEDS.len())].clone();
        damages.iter().for_each(|damage| apply(&mut mutant, damage));
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(&folder.path().join("library")).unwrap();
        let limits = Limits { deadline: DEADLINE, memory: MiB(8), file_size: LIMIT, ..Limits::default() };
        let settings = Settings::without_file(limits);
        let start = Instant::now();
        let digest = library.add(&mutant, LIMIT).unwrap();
        let components = BTreeMap::from([("mutant".to_owned(), digest)]);
        let (set, faults) = PolicySet::load(&library, &components, &settings, &BTreeSet::new());
        // Loaded or refused, never both, never neither.
        prop_assert_eq!(set.policies().count() + faults.len(), 1, "{:?}", faults);
        for _ in 0..2 {
            let asked = set.ask_placement(&question("villain"));
            prop_assert!(asked.outcome.is_ok() || !asked.outcome.unwrap_err().to_string().is_empty());
        }
        let file = folder.path().join("mutant.wasm");
        std::fs::write(&file, &mutant).unwrap();
        let report = check(&file, &settings).unwrap();
        let is_late = |text: String| text.contains("did not answer within");
        let said = |fault: &dyn std::error::Error| common::chain(fault);
        let differs = report.fault.is_some() == faults.is_empty();
        let late = report.fault.iter().map(|f| said(f)).chain(faults.iter().map(|f| said(f))).any(is_late);
        prop_assert!(!differs || late, "check and load differ: {:?} {:?}", report.fault, faults);
        prop_assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    }
}

#[test]
fn a_seed_cut_at_any_byte_is_no_policy() {
    for seed in &SEEDS[2..] {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(&folder.path().join("library")).unwrap();
        let load = |bytes: &[u8]| {
            let digest = library.add(bytes, LIMIT).unwrap();
            let components = BTreeMap::from([("cut".to_owned(), digest)]);
            let settings = common::settings(Duration::from_secs(10));
            PolicySet::load(&library, &components, &settings, &BTreeSet::new()).0
        };
        let known = |set: &PolicySet| set.policies().map(|info| info.exports.clone()).collect::<Vec<_>>();
        let whole = known(&load(seed));
        let taken: Vec<usize> =
            (0..seed.len()).filter(|&end| !known(&load(&seed[..end])).is_empty()).collect();
        // At its end a component has sections with names for debuggers and tools: it is whole without them.
        assert!(taken.len() <= 2, "cut at {taken:?} of {} it is taken for whole", seed.len());
        for end in taken {
            assert_eq!(known(&load(&seed[..end])), whole, "cut at {end} of {}", seed.len());
        }
    }
}
