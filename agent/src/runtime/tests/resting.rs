//! When the loop has nothing to do, and for how long.

use super::*;
use crate::runtime::REST;

/// As after a power loss: the store has been read, and neither libvirt nor a lease is there.
#[tokio::test]
async fn an_agent_that_cannot_begin_does_not_turn_without_a_pause() {
    let mut rig = Rig::new();
    rig.runtime.capacity = None;
    rig.runtime.lease = LeaseStatus::default();
    rig.runtime.advance();
    assert_eq!(rig.runtime.sleeps(), REST);
}

#[tokio::test]
async fn what_the_loop_has_acted_on_is_not_due_any_more() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig.runtime.advance();
    }
    let rests = rig.runtime.sleeps();
    assert!(!rests.is_zero() && rests <= REST, "{rests:?}");
}
