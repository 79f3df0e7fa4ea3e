//! Owns the hand-over of windows: who lets whose in, and when they are sent.
//!
//! Promises: windows are sent again after each change of the display and after each restore of their node, and not
//! after a live migration. Must not do: send to a display that has not let the node's epoch in (SAFE-4).

use super::{HostAction, Local, SendWindows, Situation};
use crate::model::ids::{Epoch, InstanceId, NodeId, Role};
use crate::model::records::{NodeRecord, Phase, WindowsSent};

/// Windows of the terminal's execution nodes are let in by backups too, ahead of time: a promoted display then
/// accepts them at once.
pub(super) fn admit(
    situation: &Situation<'_>,
    display: &NodeId,
    instance: InstanceId,
    local: &Local,
) -> Option<HostAction> {
    situation
        .nodes
        .of_terminal(display.terminal())
        .filter(|(node, record)| node.role() == Role::Execution && record.value.incarnation > Epoch(0))
        .find(|(node, record)| {
            local.fact.admitted.get(node).is_none_or(|admitted| *admitted < record.value.incarnation)
        })
        .map(|(node, record)| HostAction::Admit {
            instance,
            node: node.clone(),
            incarnation: record.value.incarnation,
            token: record.value.token.clone(),
        })
}

/// Sends the windows once to each life of the display, as soon as it lets them in.
pub(super) fn send_windows(
    situation: &Situation<'_>,
    node: &NodeId,
    record: &NodeRecord,
    instance: InstanceId,
    local: &Local,
) -> Option<HostAction> {
    let display = situation.nodes.get(&NodeId::display(node.terminal()))?;
    let primary = display.value.primary.as_ref()?;
    let screen = primary.instance?;
    let sent = |sent: &WindowsSent| {
        sent.display == screen
            && sent.display_incarnation == display.value.incarnation
            && sent.incarnation == record.incarnation
    };
    if local.paused || local.fact.windows.as_ref().is_some_and(sent) {
        return None;
    }
    let fact = if &primary.host == situation.me {
        &situation.local.get(&screen)?.fact
    } else {
        situation.hosts.get(&primary.host)?.instance(screen)?
    };
    let lets_in = fact.admitted.get(node).is_some_and(|admitted| *admitted >= record.incarnation);
    if fact.phase != Phase::Ready || !lets_in {
        return None;
    }
    Some(HostAction::SendWindows(SendWindows {
        node: node.clone(),
        instance,
        incarnation: record.incarnation,
        token: record.token.clone(),
        display: screen,
        display_incarnation: display.value.incarnation,
        address: fact.address?,
    }))
}
