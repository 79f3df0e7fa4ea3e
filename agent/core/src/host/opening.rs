//! Owns the choice between taking up a lease that goes on and opening the next one.
//!
//! Promises: only a lease of this very boot goes on, and only while the deadline that the guard holds for it stands: one
//! that has passed is over, whether or not anybody wrote so. A lease that another machine holds under this host's name is
//! not taken over before the leader has expired it. Must not do: read the store, ask the guard.

use crate::model::ids::{BootId, MachineId};
use crate::model::records::LeaseRecord;
use crate::model::units::Boottime;

/// Whose lease is to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// This boot.
    pub boot: BootId,
    /// This machine.
    pub machine: MachineId,
}

/// What the guard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardHolds {
    /// The number of the lease that it acknowledged last.
    pub number: u64,
    /// And its deadline, passed or not.
    pub deadline: Boottime,
}

/// What is to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// Nothing: another machine holds the lease of this host's name, and may be alive. Once the leader has expired it, as
    /// after a reinstallation, the name is free.
    Taken {
        /// That machine.
        by: MachineId,
        /// Its boot.
        boot: BootId,
    },
    /// The lease goes on, and so does what runs under it: it is renewed.
    Resume {
        /// Its number.
        number: u64,
        /// What the guard has acknowledged for it.
        acknowledged: Boottime,
    },
    /// The next lease, once nothing of an earlier one runs.
    Next {
        /// Its record, to be written over the one that was read.
        record: LeaseRecord,
        /// The lease of this boot that was open before: what this host reported under it is true of idle instances.
        previous: Option<u64>,
    },
}

/// Decides. `known` is the record that the store holds, at a linearizable read.
#[must_use]
pub fn opening(
    known: Option<&LeaseRecord>,
    own: &Identity,
    guard: Option<GuardHolds>,
    now: Boottime,
) -> Opening {
    let open = known.filter(|known| known.expired.is_none());
    if let Some(other) = open.filter(|known| known.machine.differs_from(&own.machine)) {
        return Opening::Taken { by: other.machine.clone(), boot: other.boot.clone() };
    }
    let mine = known.filter(|known| known.boot == own.boot);
    if let (Some(record), Some(holds)) = (mine.filter(|record| record.expired.is_none()), guard)
        && holds.number == record.number
        && now < holds.deadline
    {
        return Opening::Resume { number: record.number, acknowledged: holds.deadline };
    }
    // A store that was set back knows less than the guard, which refuses what lies behind it.
    let last = known.map_or(0, |known| known.number).max(guard.map_or(0, |holds| holds.number));
    let (boot, machine) = (own.boot.clone(), own.machine.clone());
    let record = LeaseRecord::open(boot, machine, last + 1);
    Opening::Next { record, previous: mine.map(|record| record.number) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::records::LeaseExpiry;
    use crate::model::units::UnixMillis;

    fn own() -> Identity {
        Identity { boot: BootId("this".to_owned()), machine: machine("mine") }
    }

    fn machine(name: &str) -> MachineId {
        MachineId(name.to_owned())
    }

    fn record(boot: &str, number: u64) -> LeaseRecord {
        let (boot, machine) = (BootId(boot.to_owned()), machine("mine"));
        LeaseRecord::open(boot, machine, number)
    }

    fn expired(record: LeaseRecord) -> LeaseRecord {
        let (silent_since, at) = (UnixMillis(1), UnixMillis(2));
        LeaseRecord { expired: Some(LeaseExpiry { reason: "silent".to_owned(), silent_since, at }), ..record }
    }

    #[test]
    fn a_lease_goes_on_only_in_its_own_boot_while_the_guard_holds_it_and_nobody_expired_it() {
        let now = Boottime(100);
        let holds = |number, deadline| Some(GuardHolds { number, deadline: Boottime(deadline) });
        let cases = [
            ("goes on", Some(record("this", 4)), holds(4, 101), Ok(4)),
            ("first ever", None, None, Err(1)),
            ("deadline reached", Some(record("this", 4)), holds(4, 100), Err(5)),
            ("guard knows nothing", Some(record("this", 4)), None, Err(5)),
            ("guard holds an earlier one", Some(record("this", 4)), holds(3, 200), Err(5)),
            ("expired by the leader", Some(expired(record("this", 4))), holds(4, 200), Err(5)),
            ("another boot", Some(record("other", 4)), holds(4, 200), Err(5)),
            ("the store was set back", Some(record("this", 4)), holds(9, 200), Err(10)),
        ];
        for (name, known, guard, expected) in cases {
            let found = match opening(known.as_ref(), &own(), guard, now) {
                Opening::Resume { number, acknowledged } => {
                    assert_eq!(acknowledged, guard.unwrap().deadline, "{name}");
                    Ok(number)
                }
                Opening::Next { record, .. } => Err(record.number),
                Opening::Taken { .. } => panic!("{name}"),
            };
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn what_another_boot_reported_says_nothing_of_this_one() {
        let next = |known: LeaseRecord| match opening(Some(&known), &own(), None, Boottime(0)) {
            Opening::Next { previous, .. } => previous,
            Opening::Resume { .. } | Opening::Taken { .. } => panic!("{known:?}"),
        };
        assert_eq!(next(record("this", 4)), Some(4));
        assert_eq!(next(expired(record("this", 4))), Some(4));
        assert_eq!(next(record("other", 4)), None);
    }

    /// S10: a clone with the same name.
    #[test]
    fn a_lease_of_another_machine_is_not_taken_over_before_it_is_expired() {
        let holds = Some(GuardHolds { number: 4, deadline: Boottime(200) });
        let of = |boot: &str, name: &str| LeaseRecord { machine: machine(name), ..record(boot, 4) };
        let decided = |known: LeaseRecord| opening(Some(&known), &own(), holds, Boottime(100));
        for boot in ["other", "this"] {
            let taken = Opening::Taken { by: machine("another"), boot: BootId(boot.to_owned()) };
            assert_eq!(decided(of(boot, "another")), taken, "{boot}");
        }
        let next = decided(expired(of("other", "another")));
        assert!(
            matches!(&next, Opening::Next { record, previous: None } if record.number == 5 && record.machine == machine("mine")),
            "reinstalled: {next:?}"
        );
        // Where one of the two is not known, the boot decides as ever.
        assert!(matches!(decided(of("this", "")), Opening::Resume { .. }));
        assert!(matches!(decided(of("other", "")), Opening::Next { .. }));
    }
}
