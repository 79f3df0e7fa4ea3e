//! Owns the acts in which something dies: a display, the host of an execution node.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::{ACT, Act, REPAIR, Story, TERMINAL, UnixMs, member, wait_sample};
use crate::checkpoints;
use crate::counter::{Watch, came_back_with, start_of};
use crate::stage::{address_of, node_of};

impl Story<'_> {
    /// Kills the display primary's qemu.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn display_dies(&self, act: &mut Act) -> Result<()> {
        act.begin("display primary's qemu is killed");
        let before = self.stage.status()?;
        let display_before = node_of(&before, "alice/display")?;
        let (host, instance) = member(&display_before)?;
        let execs = ["alice/exec-1", "alice/exec-2"];
        let addresses = execs.map(|id| node_of(&before, id).and_then(|node| address_of(&node)));
        let [first, second] = addresses;
        let watches =
            [Watch::start(self.stage.cluster(), first?)?, Watch::start(self.stage.cluster(), second?)?];
        self.picture(act, "1-before-display-failover")?;
        let connections = self.connections()?;
        (self.say)(&format!("killing the display primary {instance} on {host}"));
        let killed_at = watches.each_ref().map(Watch::elapsed);
        let (killed, fault) = (Instant::now(), UnixMs::now());
        self.stage.kill_instance(&host, &instance)?;
        let epoch = display_before["incarnation"].as_u64().unwrap_or(0);
        let after = self.stage.wait("a backup is promoted", ACT, |status| {
            let node = node_of(status, "alice/display")?;
            let newer = node["incarnation"].as_u64().unwrap_or(0) > epoch && node["primary"]["ready"] == true;
            if newer { Ok(node) } else { bail!("display is {}", node["primary"]) }
        })?;
        act.phase("promoted (seen in status)", killed.elapsed());
        self.stage.wait("windows are sent", ACT, |status| {
            let back =
                execs.iter().all(|id| node_of(status, id).is_ok_and(|node| node["windows_sent"] == true));
            if back { Ok(()) } else { bail!("not all windows are sent") }
        })?;
        act.phase("all windows accepted by the new display (seen in status)", killed.elapsed());
        self.reconnected(connections, ACT)?;
        act.phase("page shows the new display", killed.elapsed());
        let display = self.stage.wait("the timeline is complete", ACT, |status| {
            let node = node_of(status, "alice/display")?;
            if node["incident"]["windows"].is_null() {
                bail!("windows are not back")
            }
            Ok(node)
        })?;
        act.incident_phases(&display, fault);
        let (new_host, new_instance) = member(&after)?;
        let was_backup = had_backup(&display_before["backups"], &new_host, Some(&new_instance));
        act.judge(
            "a warm backup on another host was promoted",
            was_backup && new_host != host,
            format!("{host} to {new_host}, which had a backup before: {was_backup}"),
        );
        let counted = watches.iter().zip(killed_at).map(|(watch, at)| (watch.seen(), at));
        let untouched = counted
            .clone()
            .all(|(seen, at)| seen.never_back(Duration::ZERO) && seen.first_after(at).is_some());
        let gaps: Vec<String> =
            counted.map(|(seen, at)| format!("{:.2} s", seen.longest_gap(at).as_secs_f64())).collect();
        act.judge(
            "applications were untouched",
            untouched,
            format!("longest silence of each counter {}", gaps.join(", ")),
        );
        self.settle_picture(act, "2-after-display-failover")?;
        Ok(())
    }

    /// Powers off the host of the first execution node's primary.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn execution_host_dies(&self, act: &mut Act) -> Result<()> {
        act.begin("the host of an execution primary is powered off");
        let id = "alice/exec-1";
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let node = self.stage.node(id)?;
        let (host, _) = member(&node)?;
        let address = address_of(&node)?;
        let process = start_of(self.stage.cluster(), address)?;
        let watch = Watch::start(self.stage.cluster(), address)?;
        let gateway = self.open_through(&host)?;
        self.picture(act, "3-before-power-cut")?;
        // Power is cut when the checkpoint is a few seconds old, so that what is lost can be told from what is kept.
        let (age, backups) = self.stage.wait("a checkpoint of some age", ACT, |status| {
            let node = node_of(status, id)?;
            let age = checkpoints::newest(self.stage, id)?.age;
            let watched = watch.elapsed() > age + Duration::from_millis(300);
            let fits = watched && (2500..6000).contains(&age.as_millis());
            if fits { Ok((age, node["backups"].clone())) } else { bail!("age is {age:?}") }
        })?;
        let taken = watch.elapsed().saturating_sub(age);
        (self.say)(&format!(
            "powering off {host}, which runs {id}; its newest checkpoint is {:.1} s old",
            age.as_secs_f64()
        ));
        self.stage.host(&host)?.power_off()?;
        let (cut, cut_at, fault) = (Instant::now(), watch.elapsed(), UnixMs::now());
        let elsewhere = format!(
            "document.body.dataset.state === 'connected' && document.body.dataset.gateway !== '{gateway}'"
        );
        let moved = self.browser.wait("the page goes on through another gateway", &elsewhere, ACT);
        act.judge(
            "the page, which came through that very host, went on through another gateway by itself",
            moved.is_ok(),
            moved
                .as_ref()
                .map_or_else(ToString::to_string, |_| format!("{:.1} s", cut.elapsed().as_secs_f64())),
        );
        act.phase("page shows a display through another gateway", cut.elapsed());
        let begun = node["incarnation"].as_u64().unwrap_or(0);
        let after = self.stage.wait("the node is restored", ACT, |status| {
            let node = node_of(status, id)?;
            let newer = node["incarnation"].as_u64().unwrap_or(0) > begun && node["primary"]["ready"] == true;
            if newer { Ok(node) } else { bail!("{id} is {}", node["primary"]) }
        })?;
        act.phase("restored and ready (seen in status)", cut.elapsed());
        let first = wait_sample(&watch, cut_at, ACT)?;
        act.phase("counter answers again", first.at.saturating_sub(cut_at));
        self.stage.wait("windows are back", ACT, |status| {
            let node = node_of(status, id)?;
            if node["windows_sent"] == true && !node["incident"]["windows"].is_null() {
                Ok(())
            } else {
                bail!("windows are not sent")
            }
        })?;
        act.phase("windows accepted again (seen in status)", cut.elapsed());
        act.incident_phases(&self.stage.node(id)?, fault);
        let seen = watch.seen();
        let last = seen.last_before(cut_at).map_or(0, |sample| sample.value);
        let floor = seen.last_before(taken).map_or(0, |sample| sample.value);
        let restored = came_back_with(self.stage.cluster(), address)?;
        let holds = floor > 0 && restored >= floor && restored <= last;
        act.judge(
            "restored value is at least the checkpoint's, at most the last seen, never from 0",
            holds,
            format!(
                "at the checkpoint {floor}, restored {restored}, last seen {last}, first seen after {}",
                first.value
            ),
        );
        let new_host = member(&after)?.0;
        act.judge(
            "its state was restored on its backup's host",
            had_backup(&backups, &new_host, None),
            format!("{host} to {new_host}, backups before the cut: {backups}"),
        );
        let kept = &after["incident"]["state"]["checkpoint"];
        act.judge("the record names the checkpoint and its age", !kept.is_null(), kept.to_string());
        let same = start_of(self.stage.cluster(), address)? == process;
        act.judge("the very same process counts on", same, process);
        self.settle_picture(act, "4-after-power-cut")?;
        (self.say)(&format!("powering {host} on again"));
        self.stage.host(&host)?.boot()?;
        Ok(())
    }
}

/// Whether one of these backups was on `host`, as this instance where one is named: a reserved place has none.
fn had_backup(backups: &Value, host: &str, instance: Option<&str>) -> bool {
    let mut backups = backups.as_array().into_iter().flatten();
    backups.any(|one| one["host"] == host && instance.is_none_or(|instance| one["instance"] == instance))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_took_over_was_a_backup_only_if_the_record_listed_it() {
        let warm = json!([{ "host": "host2", "instance": "i2" }]);
        assert!(had_backup(&warm, "host2", Some("i2")) && had_backup(&warm, "host2", None));
        assert!(!had_backup(&warm, "host3", None), "any other host is none");
        assert!(!had_backup(&warm, "host2", Some("i7")), "an instance that was idle there is none");
        let held = json!([{ "host": "host1", "instance": null }, { "host": "host3", "instance": null }]);
        assert!(had_backup(&held, "host3", None) && !had_backup(&held, "host2", None));
        assert!(!had_backup(&json!(null), "host1", None));
    }
}
