//! Owns `checkpoint-store`: what is written to the cluster's records while protected nodes are checkpointed.
//!
//! Promises: every write counts, but for reports in which nothing but the load of a host is another: those come at any time, and
//! are stated. Must not do: write.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use understudy_e2e::stage::Stage;

/// Everything but the renewals.
const CLUSTER: &str = "/understudy/v2/cluster/";

/// The records of the cluster at one moment: how often each was written, and what it says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Records(BTreeMap<String, (u64, String)>);

/// What was written from one moment to another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    /// Reports with another load of a host, and nothing else.
    pub(crate) loads: u64,
    /// All others.
    pub(crate) others: u64,
}

impl Records {
    /// Reads them.
    ///
    /// # Errors
    /// When etcd does not answer, or says something else than its records.
    pub(crate) fn read(stage: &Stage) -> Result<Self> {
        Self::parse(&stage.cluster().etcdctl(&["get", "--prefix", "--write-out=fields", CLUSTER])?)
    }

    /// Takes the lines apart that etcdctl prints of each record: `"Key" : "…"`, `"Version" : …`, `"Value" : "…"`.
    fn parse(printed: &str) -> Result<Self> {
        let (mut all, mut key, mut version) = (BTreeMap::new(), None, None);
        for line in printed.lines() {
            let Some((name, value)) = line.split_once(" : ") else { continue };
            let text = || serde_json::from_str::<String>(value).with_context(|| format!("not read: {line}"));
            match name {
                "\"Key\"" => key = Some(text()?),
                "\"Version\"" => {
                    version = Some(value.trim().parse().with_context(|| format!("not read: {line}"))?);
                }
                "\"Value\"" => {
                    let key = key.take().context("a value without a key")?;
                    all.insert(key, (version.take().context("a value without a version")?, text()?));
                }
                _ => {}
            }
        }
        Ok(Self(all))
    }

    /// What was written between an earlier moment and this one.
    pub(crate) fn since(&self, earlier: &Self) -> Writes {
        let mut writes = Writes::default();
        for (key, (version, now)) in &self.0 {
            let (before, then) =
                earlier.0.get(key).map_or((0, ""), |(version, then)| (*version, then.as_str()));
            let times = version.saturating_sub(before);
            if key.ends_with("/facts") && but_for_load(then) == but_for_load(now) {
                writes.loads += times;
            } else {
                writes.others += times;
            }
        }
        let gone = earlier.0.keys().filter(|key| !self.0.contains_key(*key)).count();
        writes.others += u64::try_from(gone).unwrap_or(u64::MAX);
        writes
    }
}

/// A host's report without its load; none where it is none.
fn but_for_load(report: &str) -> Option<Value> {
    let mut report: Value = serde_json::from_str(report).ok()?;
    report.as_object_mut()?.remove("load_milli");
    Some(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(records: &[(&str, u64, &str)]) -> Records {
        let one = |(key, version, value): &(&str, u64, &str)| {
            format!(
                "\"Key\" : {key:?}\n\"CreateRevision\" : 3\n\"Version\" : {version}\n\"Value\" : {value:?}\n\"Lease\" : 0\n"
            )
        };
        let text: String = records.iter().map(one).collect();
        Records::parse(&format!("\"ClusterID\" : 7\n{text}\"More\" : false\n\"Count\" : 2\n")).unwrap()
    }

    #[test]
    fn every_write_counts_but_that_of_a_load() {
        let (facts, node) =
            ("/understudy/v2/cluster/hosts/host1/facts", "/understudy/v2/cluster/nodes/a/exec-1");
        let before = printed(&[(facts, 4, r#"{"lease":1,"load_milli":5}"#), (node, 2, "{}")]);
        assert_eq!(before.since(&before), Writes::default());
        let load = printed(&[(facts, 6, r#"{"lease":1,"load_milli":900}"#), (node, 2, "{}")]);
        assert_eq!(load.since(&before), Writes { loads: 2, others: 0 });
        let more =
            printed(&[(facts, 5, r#"{"lease":2,"load_milli":5}"#), (node, 3, "{}"), ("/new", 1, "{}")]);
        assert_eq!(more.since(&before), Writes { loads: 0, others: 3 });
        assert_eq!(printed(&[(facts, 4, "{}")]).since(&before).others, 1, "one is gone");
        assert!(Records::parse("\"Key\" : \"a\"\n\"Value\" : \"b\"\n").is_err());
    }
}
