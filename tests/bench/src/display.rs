//! Owns `failover-display`: from the death of a display primary's qemu to the resend commands, and to all windows.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use understudy_e2e::stage::{Stage, address_of, node_of};
use understudy_e2e::story::{guest_run, guest_us, member};

use crate::row::Row;

const EXECUTIONS: [&str; 2] = ["alice/exec-1", "alice/exec-2"];
const DISPLAY: &str = "alice/display";
/// Windows of the demo's terminal.
const WINDOWS: usize = 4;
/// Longest wait for a failover.
const LIMIT: Duration = Duration::from_secs(180);

/// Seconds since midnight, as the logs' times are compared.
pub(crate) fn time_of_day(since_epoch: Duration) -> f64 {
    since_epoch.as_secs_f64() % 86_400.0
}

fn now_of_day() -> f64 {
    time_of_day(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Seconds since midnight of a log line that begins with `2026-11-23T23:02:17.608616Z`.
pub(crate) fn logged_at(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split(':');
    let (hours, minutes): (f64, f64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

/// When each execution node's agent first sent windows to `display`, by the agents' logs.
fn sent_at(stage: &Stage, display: &str) -> Vec<f64> {
    let logs = stage.cluster().hosts().iter().filter_map(|host| host.on_disk("/var/log/agent.log"));
    let text: String = logs.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let mut firsts = Vec::new();
    for id in EXECUTIONS {
        let first = text
            .lines()
            .filter(|line| line.contains("sending windows") && line.contains(&format!("node={id} ")))
            .filter(|line| line.contains(&format!("display={display}")))
            .filter_map(logged_at)
            .min_by(f64::total_cmp);
        firsts.extend(first);
    }
    firsts
}

/// Ends when the window manager lists all windows. One small program every quarter of a second: whatever watches takes
/// part of the processor that an emulated guest draws its windows with.
const UNTIL_LISTED: &str = "export PATH=/usr/bin:/bin DISPLAY=:0; \
    until set -- $(xprop -root _NET_CLIENT_LIST) && [ $# -ge $((WINDOWS + 4)) ]; do sleep 0.25; done";

fn wait_visible(stage: &Stage, host: &str, instance: &str) -> Result<()> {
    let script = UNTIL_LISTED.replace("WINDOWS", &WINDOWS.to_string());
    let words = ["chroot", "/env", "/bin/sh", "-c", &script];
    guest_run(stage, host, instance, "/bin/busybox", &words, LIMIT).map(drop)
}

/// The resend by hand: what the agents do, typed by an operator who knows everything.
fn by_hand(stage: &Stage) -> Result<Duration> {
    let status = stage.status()?;
    let display = node_of(&status, DISPLAY)?;
    let (host, instance) = member(&display)?;
    let intake = format!("{}:5500", address_of(&display)?);
    let sends = EXECUTIONS
        .iter()
        .map(|id| {
            let node = node_of(&status, id)?;
            let token = stage.token(id)?;
            Ok((member(&node)?, id.replace('/', "."), node["incarnation"].to_string(), token))
        })
        .collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = sends
            .iter()
            .map(|((host, instance), name, begun, token)| {
                let intake = &intake;
                scope.spawn(move || {
                    guest_us(stage, host, instance, &["exec", "send", name, begun, token, intake])
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?.map(drop))
    })?;
    wait_visible(stage, &host, &instance)?;
    Ok(begun.elapsed())
}

/// Kills the display primary again and again.
pub(crate) fn measure(stage: &Stage, runs: usize, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    let (mut issued, mut shown, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        stage.wait_whole("alice", 1, LIMIT * 2)?;
        floor.push(by_hand(stage)?);
        let display = stage.node(DISPLAY)?;
        let (host, instance) = member(&display)?;
        let (killed, killed_at) = (Instant::now(), now_of_day());
        stage.kill_instance(&host, &instance)?;
        let successor = stage.wait("a backup is promoted", LIMIT, |status| {
            let node = node_of(status, DISPLAY)?;
            if node["incarnation"] == display["incarnation"] {
                bail!("not yet")
            }
            member(&node)
        })?;
        wait_visible(stage, &successor.0, &successor.1)?;
        shown.push(killed.elapsed());
        let sent = sent_at(stage, &successor.1);
        let last = sent.iter().copied().max_by(f64::total_cmp).context("no agent logged a resend")?;
        issued.push(Duration::from_secs_f64((last - killed_at).max(0.0)));
        say(&format!(
            "  run {run}: resend after {:.3} s, windows after {:.2} s",
            last - killed_at,
            killed.elapsed().as_secs_f64()
        ));
    }
    Ok(vec![
        Row::times("failover-display: resend", &issued).at_most(0.3),
        Row::times("failover-display: windows", &shown).against(&floor, 1.3, 0.3),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_log_line_is_read() {
        let at = logged_at("2026-11-23T01:02:03.500000Z  INFO sending windows").unwrap();
        assert!((at - 3723.5).abs() < 1e-6);
        assert_eq!(logged_at("no time here"), None);
    }
}
