//! Owns the act in which a site changes its policies on a running cluster: a file is copied into the folder of one host.
//!
//! Promises: each host is asked itself, by the command that an operator would use. The folders are left as they were.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use understudy_lab::Host;
use understudy_lab::cluster::POLICIES;

use super::{ACT, Act, Story};

/// Within this a change decides on every host. On hosts of their own it is to be 2 s; here it was 1.5 s with an agent built
/// without optimisation, on two processors that three hosts and their emulated guests share: twice and a half of the aim
/// is a defect on any machine.
const TAKES_OVER: Duration = Duration::from_secs(5);
/// Its name on the host. It needs a choice, since another policy answers placements too.
const POLICY: &str = "pack.wasm";
const CHOICE: &str = "[choice]\nplacement = 'pack'\n";

impl Story<'_> {
    /// The policy `pack`, which the cluster does not have, is dropped in and decides; spoilt it changes nothing; removed it
    /// is gone.
    ///
    /// # Errors
    /// When the story cannot go on.
    pub fn policies_change(&self, act: &mut Act, pack: &Path) -> Result<()> {
        act.begin("a policy is dropped into one host's folder, spoilt, and removed");
        let host = self.stage.cluster().hosts().iter().find(|host| host.is_on()).context("no host is on")?;
        let folder = host.live_path(POLICIES)?;
        let (policy, settings) = (folder.join(POLICY), folder.join("policies.toml"));
        let whole = std::fs::read(pack).with_context(|| format!("cannot read {}", pack.display()))?;
        (self.say)(&format!("dropping {POLICY} into the policies folder of {}", host.name()));

        // Alone it could be meant or not: that is said, and nothing changes.
        std::fs::write(&policy, &whole)?;
        let reported = self.policies_on(host, "two that answer are told", |status| {
            let fault = fault(status, &["pack", "spread"]).context("no fault names both")?;
            decided_by(status, "spread").map(|()| fault)
        })?;
        act.judge("two policies for one question are named, and the old one decides", true, reported);

        let begun = Instant::now();
        std::fs::write(&settings, CHOICE)?;
        self.everywhere("pack decides on every host", |status| decided_by(status, "pack"))?;
        let took = begun.elapsed();
        act.phase("pack decides on every host", took);
        act.judge(
            format!("a policy that is dropped in decides within {} s on every host", TAKES_OVER.as_secs()),
            took <= TAKES_OVER,
            format!("after {:.2} s, of 2 s that it is to take on hosts of their own", took.as_secs_f64()),
        );
        self.explained(act, host)?;

        std::fs::write(&policy, &whole[..whole.len() / 2])?;
        let reported = self.policies_on(host, "the spoilt file is told", |status| {
            let fault = fault(status, &[POLICY]).context("no fault names the file")?;
            decided_by(status, "pack").map(|()| fault)
        })?;
        let said = self.stage.cli_on(host, &["status"])?;
        act.judge(
            "a spoilt file is named in status, and what was there decides",
            said.contains(&reported),
            reported,
        );
        self.everywhere("pack still decides", |status| decided_by(status, "pack"))?;

        let begun = Instant::now();
        std::fs::remove_file(&settings)?;
        std::fs::remove_file(&policy)?;
        self.everywhere("spread decides on every host", |status| {
            let policies = status["policies"].as_array().context("no policies")?;
            if policies.iter().any(|policy| policy["name"] == "pack") {
                bail!("pack is still in the set");
            }
            decided_by(status, "spread")
        })?;
        act.phase("removed: the old policy decides on every host", begun.elapsed());
        let faults = self.policies_on(host, "nothing is wrong any more", |status| {
            let faults = status["faults"].as_array().context("no faults")?;
            if faults.is_empty() { Ok("no fault") } else { bail!("{faults:?}") }
        })?;
        act.judge("removed files leave the set, and no fault stays", true, faults);
        Ok(())
    }

    /// What would be decided for a node is shown with each host.
    fn explained(&self, act: &mut Act, host: &Host) -> Result<()> {
        let text = self.stage.cli_on(host, &["policy", "explain", "alice/exec-1"])?;
        let hosts = self.stage.cluster().hosts();
        let shown = hosts.iter().filter(|host| text.contains(&host.name())).count();
        act.judge(
            "policy explain names who decides and shows every host with its verdict",
            text.contains("policy pack (") && shown == hosts.len(),
            text.trim().replace('\n', "; "),
        );
        Ok(())
    }

    /// Waits until what `understudy policy list` says on every host satisfies `probe`.
    fn everywhere(&self, what: &str, probe: impl Fn(&Value) -> Result<()>) -> Result<()> {
        for host in self.stage.cluster().hosts().iter().filter(|host| host.is_on()) {
            self.policies_on(host, what, &probe)?;
        }
        Ok(())
    }

    fn policies_on<T>(&self, host: &Host, what: &str, probe: impl Fn(&Value) -> Result<T>) -> Result<T> {
        let until = Instant::now() + ACT;
        loop {
            let said = self.stage.cli_on(host, &["--json", "policy", "list"]);
            let seen = said.and_then(|text| probe(&serde_json::from_str(&text)?));
            match seen {
                Ok(seen) => return Ok(seen),
                Err(error) if Instant::now() > until => {
                    return Err(error.context(format!("{what} on {}: not within {ACT:?}", host.name())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn decided_by(status: &Value, policy: &str) -> Result<()> {
    let decides = &status["deciding"]["placement"];
    if *decides == policy && status["ready"] == true { Ok(()) } else { bail!("{decides} decides placements") }
}

/// The first fault that has all these words.
fn fault(status: &Value, words: &[&str]) -> Option<String> {
    let faults = status["faults"].as_array()?.iter().filter_map(Value::as_str);
    faults.filter(|fault| words.iter().all(|word| fault.contains(word))).map(str::to_owned).next()
}
