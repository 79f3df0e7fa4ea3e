//! Owns the act in which an operator wishes for what cannot be had, and deletes a terminal in the middle of a failover.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{ACT, Act, REPAIR, Story, TERMINAL, member};
use crate::counters::Counters;
use crate::stage::node_of;

/// MiB that no host of the lab has.
const HUGE: u64 = 1_000_000;

impl Story<'_> {
    /// Wishes that are refused, and a deletion that finds a failover under way. The terminal is gone afterwards.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn wishes_are_refused_and_a_terminal_is_deleted(
        &self,
        act: &mut Act,
        description: &Path,
    ) -> Result<()> {
        act.begin("wishes that cannot be had, and a deletion during a failover");
        self.stage.wait_whole(TERMINAL, 1, REPAIR)?;
        let file = description.display().to_string();
        self.refused(act, "a terminal that exists", TERMINAL, &file, &["exists already", "delete it first"])?;
        let huge = Counters { execution_mib: Some(HUGE), ..Counters::default() }.file()?;
        let file = huge.path().display().to_string();
        self.refused(act, "a terminal without room", "huge", &file, &["does not fit", "MiB"])?;
        let status = self.stage.status()?;
        let terminals: Vec<&str> = terminals(&status).collect();
        act.judge("nothing of it was made", terminals == [TERMINAL], terminals.join(", "));
        self.deleted(act)?;
        Ok(())
    }

    fn refused(&self, act: &mut Act, what: &str, name: &str, file: &str, words: &[&str]) -> Result<()> {
        let host = self.stage.cluster().hosts().iter().find(|host| host.is_on()).context("no host is on")?;
        let output = self.stage.understudy(host, &["terminal", "create", name, "--from", file])?;
        let said = output.errors();
        let holds = output.status.code() == Some(REFUSED) && words.iter().all(|word| said.contains(word));
        act.judge(format!("{what} is refused, with what to do"), holds, said.trim().replace('\n', "; "));
        Ok(())
    }

    fn deleted(&self, act: &mut Act) -> Result<()> {
        let display = self.stage.node("alice/display")?;
        let (host, instance) = member(&display)?;
        (self.say)("killing the display primary and deleting the terminal before it is replaced");
        self.stage.kill_instance(&host, &instance)?;
        let begun = Instant::now();
        self.stage.cli(&["terminal", "delete", TERMINAL])?;
        self.stage.wait("nothing of the terminal is left", ACT, |status| {
            if node_of(status, "alice/display").is_ok() || terminals(status).next().is_some() {
                bail!("the terminal is there");
            }
            let busy = |host: &Value| {
                let instances = host["instances"].as_object();
                host["members"] != 0
                    || instances.is_some_and(|all| {
                        all.iter().any(|(phase, count)| phase != "idle" && phase != "booting" && count != 0)
                    })
            };
            match status["hosts"].as_array().context("no hosts")?.iter().find(|host| busy(host)) {
                Some(host) => bail!("{} has {}", host["id"], host["instances"]),
                None => Ok(()),
            }
        })?;
        act.phase("every instance of the terminal has ended", begun.elapsed());
        let left = self.stage.cluster().etcdctl(&["get", "--prefix", "--keys-only", "/understudy/v2/"])?;
        let left: Vec<&str> = left.lines().filter(|key| key.contains(TERMINAL)).collect();
        act.judge("no record of it is left", left.is_empty(), format!("{left:?}"));
        Ok(())
    }
}

/// The exit code of what was refused, as `understudy --help` documents it.
const REFUSED: i32 = 5;

fn terminals(status: &Value) -> impl Iterator<Item = &str> {
    status["terminals"].as_array().into_iter().flatten().filter_map(|terminal| terminal["id"].as_str())
}
