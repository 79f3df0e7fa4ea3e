//! What must hold of any bytes that somebody puts into the policies folder. The property test and the fuzzer look for
//! bytes of which it does not.
#![allow(dead_code, reason = "each that includes it uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use understudy_core::model::units::MiB;
use understudy_policy::{Library, Limits, PolicySet, Settings, check};

use super::guests::{NOT_TRIAL, component, component_v02, module, module_of, placement_guest};
use super::samples::question;

/// Short: some mutants loop. What is asked here takes microseconds.
const DEADLINE: Duration = Duration::from_millis(50);
/// A trial is put three times to a mutant that loops, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest file.
pub(crate) const LIMIT: MiB = MiB(1);

/// Components to start from: of both versions, with every section that a linker makes.
pub(crate) static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    vec![
        placement_guest("(call $log (i32.const 2) (i32.const 512) (i32.const 12))"),
        placement_guest("(drop (memory.grow (i32.const 1))) (call $deep)"),
        component(&module("", NOT_TRIAL), "placement-policy"),
        component_v02(&module_of("0.2.0", "unreachable", NOT_TRIAL), "placement-policy"),
    ]
});

/// Loads them, asks what was loaded, and looks at them as `understudy policy check` does.
///
/// # Errors
/// With what does not hold.
pub(crate) fn examine(bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let library = Library::open(&folder.path().join("library")).unwrap();
    let limits = Limits { deadline: DEADLINE, memory: MiB(8), file_size: LIMIT, ..Limits::default() };
    let settings = Settings::without_file(limits);
    let start = Instant::now();
    let digest = library.add(bytes, LIMIT).unwrap();
    let components = BTreeMap::from([("mutant".to_owned(), digest)]);
    let (set, faults) = PolicySet::load(&library, &components, &settings, &BTreeSet::new());
    if set.policies().count() + faults.len() != 1 {
        return Err(format!("loaded and refused, or neither: {faults:?}"));
    }
    for _ in 0..2 {
        if let Err(fault) = set.ask_placement(&question("villain")).outcome
            && fault.to_string().is_empty()
        {
            return Err("a question fails without a reason".to_owned());
        }
    }
    let file = folder.path().join("mutant.wasm");
    std::fs::write(&file, bytes).unwrap();
    let report = check(&file, &settings).unwrap();
    // On a busy machine a deadline may be met the one time and missed the other.
    let said = report.fault.iter().map(|f| super::chain(f)).chain(faults.iter().map(|f| super::chain(f)));
    let late = said.into_iter().any(|text| text.contains("did not answer within"));
    if report.fault.is_some() == faults.is_empty() && !late {
        return Err(format!("check and load differ: {:?} {faults:?}", report.fault));
    }
    if start.elapsed() > PATIENCE {
        return Err(format!("it took {:?}", start.elapsed()));
    }
    Ok(())
}
