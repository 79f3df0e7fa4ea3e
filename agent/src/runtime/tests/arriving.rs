//! What a destination does about an instance that comes by live migration, as far as it needs no guard.

use understudy_core::death::Death;
use understudy_core::host::lease::LeaseStatus;
use understudy_core::model::ids::{BootId, Epoch, HostId};
use understudy_core::model::records::{HostFacts, LeaseRecord, Member, Migration, NodeRecord, Origin, Phase};
use understudy_core::model::units::UnixMillis;

use super::{Rig, died, instance, me, node, record};
use crate::keys::{Key, encode};

/// alice's display comes from `host2`.
fn comes(rig: &mut Rig, abandoned: bool) {
    let from: HostId = "host2".parse().unwrap();
    let lease = LeaseRecord::open(BootId("boot".to_owned()), Default::default(), 1);
    rig.write(&Key::Lease(from.clone()), encode(&lease));
    let (host, started) = (from.clone(), UnixMillis(0));
    let primary = Member { host, lease: 1, instance: Some(instance(1)), origin: Origin::Idle, place: 0 };
    let migration = Migration { from, to: me(), to_lease: 1, epoch: Epoch(2), abandoned, started };
    let record =
        NodeRecord { epoch: Epoch(2), primary: Some(primary), migration: Some(migration), ..record(None) };
    rig.write(&Key::Node(node()), encode(&record));
}

/// `host2` says that it has moved.
fn released(rig: &mut Rig) {
    let mut known = Rig::new();
    known.runs(instance(1), Phase::Ready, Some(node()));
    let mut fact = known.runtime.agent.local()[&instance(1)].fact.clone();
    fact.phase = Phase::Dead { death: Death::Moved { to: me() }, at: UnixMillis(0) };
    let instances = [(instance(1), fact)].into();
    let facts = HostFacts { lease: 1, instances, ..rig.runtime.facts() };
    rig.write(&Key::Facts("host2".parse().unwrap()), encode(&facts));
}

fn is_permitted(rig: &Rig) -> bool {
    rig._home.path().join("permits").join(instance(1).to_string()).exists()
}

#[tokio::test]
async fn what_its_source_has_released_and_is_not_here_is_called_lost() {
    let (mut rig, one) = (Rig::new(), instance(1));
    comes(&mut rig, false);
    rig.work();
    rig.steps(1).await;
    assert_eq!(rig.phase(one), None, "its source has it");
    released(&mut rig);
    rig.until("it is lost", |runtime| died(runtime, one, "did not arrive")).await;
}

#[tokio::test]
async fn what_a_migration_brings_goes_when_it_is_abandoned_or_the_lease_is_lost() {
    for loses in [false, true] {
        let (mut rig, one) = (Rig::new(), instance(1));
        comes(&mut rig, false);
        rig.work();
        rig.steps(1).await;
        rig.runs_unknown(one);
        assert!(is_permitted(&rig));
        if loses {
            rig.runtime.lease = LeaseStatus::default();
            rig.runtime.inform(super::Input::LeaseLost);
        } else {
            comes(&mut rig, true);
        }
        rig.steps(1).await;
        assert!(super::running(&rig.hypervisor).is_empty());
        assert!(!is_permitted(&rig), "nothing may come any more");
    }
}
