//! Components that were damaged in every way that chance knows: none panics, hangs, or is loaded and then does worse
//! than failing its question. `PROPTEST_CASES=100000` makes it run for longer; `cargo xtask soak` looks further with a
//! fuzzer that sees which code a mutant reaches (`agent/policy/fuzz`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::mutant::{LIMIT, SEEDS, examine};
use proptest::prelude::*;
use understudy_policy::{Library, PolicySet};

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
        if let Err(why) = examine(&mutant) {
            prop_assert!(false, "{}", why);
        }
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
