//! A policy that speaks 0.2 and answers by what only 0.2 has: the column of idle instances, and refusals of two kinds.

wit_bindgen::generate!({ path: "wit", world: "policy" });

use exports::understudy::policy::backup_count::{self, Cluster, Counts};
use exports::understudy::policy::placement::{self, Hosts, Pick};
use understudy::policy::types::{Parameter, Refusal};

struct Trial;

export!(Trial);

impl placement::Guest for Trial {
    /// Every host that has an idle instance, the one with most of them first.
    fn place(
        request: placement::Request,
        hosts: Hosts,
        parameters: Vec<Parameter>,
    ) -> Result<Vec<Pick>, Refusal> {
        check(&parameters)?;
        if request.terminal == "nobody" {
            return Err(Refusal::Question("nobody is no terminal".to_owned()));
        }
        let mut rows: Vec<(u32, u32)> = (0..).zip(hosts.idle).filter(|(_, idle)| *idle > 0).collect();
        rows.sort_by_key(|(row, idle)| (std::cmp::Reverse(*idle), *row));
        let pick = |(host, idle)| Pick { host, reason: Some(format!("{idle} idle")) };
        Ok(rows.into_iter().map(pick).collect())
    }
}

impl backup_count::Guest for Trial {
    /// As many backups as there are other hosts that take work.
    fn count(
        _: backup_count::Request,
        cluster: Cluster,
        parameters: Vec<Parameter>,
    ) -> Result<Counts, Refusal> {
        check(&parameters)?;
        Ok(Counts { primaries: 1, backups: cluster.hosts_ready.saturating_sub(1), reason: None })
    }
}

fn check(parameters: &[Parameter]) -> Result<(), Refusal> {
    match parameters.first() {
        Some(parameter) => Err(Refusal::Parameters(format!("'{}' is unknown", parameter.key))),
        None => Ok(()),
    }
}
