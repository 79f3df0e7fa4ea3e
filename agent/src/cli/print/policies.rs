//! Owns how policies, explanations and replays look on a terminal.

use std::fmt::Write;

use understudy_core::policy::Purpose;
use understudy_policy::{BenchRow, CheckReport};

use super::table::Column::{Left, Right};
use super::table::text as table;
use crate::exit::chain;
use crate::policy_manager::explain::{Explained, ExplainedShadow};
use crate::policy_manager::replay::Replayed;
use crate::policy_manager::status::{PoliciesStatus, PolicyStatus, ShadowStatus};

/// Who decides, and what an operator should look at.
pub(crate) fn deciding(status: &PoliciesStatus) -> String {
    let mut text = String::new();
    for (interface, name) in &status.deciding {
        let name =
            name.as_ref().map_or_else(|| "the built-in rule".to_owned(), |name| format!("policy {name}"));
        let _ = writeln!(text, "{interface} is decided by {name}");
    }
    for policy in &status.policies {
        if let Some(reason) = &policy.suspended {
            let _ = writeln!(text, "policy {} is suspended: it {reason}", policy.name);
            let _ = writeln!(
                text,
                "    it comes back with a new file, or by `understudy policy restore {}`",
                policy.name
            );
        }
    }
    if let Some(candidate) = &status.candidate {
        let waits =
            if candidate.waits.is_empty() { "the leader".to_owned() } else { candidate.waits.join(", ") };
        let _ = writeln!(
            text,
            "set {} of {} takes over as soon as {waits} has it",
            candidate.generation, candidate.by
        );
    }
    if let Some(refused) = &status.refused {
        let _ =
            writeln!(text, "set {} of {} was refused: {}", refused.generation, refused.by, refused.reason);
    }
    if !status.ready {
        let _ = writeln!(text, "this host cannot lead: set {} is not ready on it", status.generation);
    }
    for fault in &status.faults {
        let _ = writeln!(text, "    {fault}");
    }
    text
}

/// All of it.
pub(crate) fn list(status: &PoliciesStatus) -> String {
    let mut text = match (&status.by, status.generation) {
        (Some(by), generation) => format!("set {generation}, from the folder of {by}\n"),
        (None, _) => "no set of policies decides\n".to_owned(),
    };
    if !status.policies.is_empty() {
        text.push_str(&policies(&status.policies));
    }
    text.push_str(&deciding(status));
    if !status.differs.is_empty() {
        let _ = writeln!(text, "this host's folder differs from what decides: {}", status.differs.join(", "));
    }
    if !status.unproposed.is_empty() {
        let _ = writeln!(
            text,
            "    to have {} of this host decide: `understudy policy propose`",
            status.unproposed.join(", ")
        );
    }
    text
}

fn policies(policies: &[PolicyStatus]) -> String {
    let columns = [
        Left("POLICY"),
        Left("DIGEST"),
        Left("MODE"),
        Left("DECIDES"),
        Left("SHADOWS"),
        Right("DEADLINE"),
        Right("MEMORY"),
    ];
    let or_none = |words: Vec<String>| if words.is_empty() { "-".to_owned() } else { words.join(",") };
    let shadow = |shadow: &ShadowStatus| {
        format!("{} ({} of {} differ)", shadow.interface, shadow.differences, shadow.answers)
    };
    let rows = policies.iter().map(|policy| {
        let mode = if policy.suspended.is_some() { "suspended" } else { &policy.mode };
        vec![
            policy.name.clone(),
            format!("{:.12}", policy.digest),
            mode.to_owned(),
            or_none(policy.decides.clone()),
            or_none(policy.shadows.iter().map(shadow).collect()),
            format!("{} ms", policy.deadline_ms),
            format!("{} MiB", policy.memory_mib),
        ]
    });
    table(&columns, rows)
}

/// Each host with its verdict.
pub(crate) fn explained(shown: &Explained) -> String {
    let what = match shown.purpose {
        Purpose::Primary => "a primary",
        Purpose::WarmBackup => "another backup",
        Purpose::HeldBackup => "another backup (a reserved place)",
        Purpose::Migration => "a migration",
    };
    let mut text = format!("{} needs {} for {what}\n", shown.node, shown.memory);
    let asked = shown.said.policy.as_ref();
    let _ = match (asked, &shown.said.fault, shown.built_in) {
        (Some(policy), None, None) => {
            writeln!(
                text,
                "policy {} ({:.12}) answered in {} us",
                policy.name, policy.digest, shown.said.took_us
            )
        }
        (Some(policy), None, Some(why)) => {
            writeln!(text, "policy {} answered and the built-in rule decides: {}", policy.name, why.as_str())
        }
        (_, Some(fault), _) => writeln!(text, "the built-in rule decides: {}", fault.message),
        (None, None, _) => writeln!(text, "the built-in rule decides"),
    };
    let mut hosts: Vec<_> = shown.hosts.iter().collect();
    hosts.sort_by_key(|host| (host.rank.unwrap_or(usize::MAX), host.host.clone()));
    let columns = [Right("RANK"), Left("HOST"), Left("STATE"), Right("FREE"), Right("IDLE"), Left("WHY")];
    let rows = hosts.into_iter().map(|host| {
        let rank = host.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
        let why = match (&host.excluded, &host.reason, host.rank) {
            (Some(excluded), Some(reason), _) => format!("not eligible: it {excluded} (policy: {reason})"),
            (Some(excluded), None, _) => format!("not eligible: it {excluded}"),
            (None, Some(reason), _) => reason.clone(),
            (None, None, Some(_)) => String::new(),
            (None, None, None) => "eligible, not picked".to_owned(),
        };
        let state = format!("{:?}", host.state).to_lowercase();
        vec![rank, host.host.to_string(), state, host.free_memory.to_string(), host.idle.to_string(), why]
    });
    text.push_str(&table(&columns, rows));
    for pick in &shown.refused {
        let _ = writeln!(text, "refused: {pick}");
    }
    for shadow in &shown.shadows {
        let _ = writeln!(text, "{}", shadow_line(shadow));
    }
    text
}

/// What a policy that decides nothing would have done.
fn shadow_line(shadow: &ExplainedShadow) -> String {
    let name = shadow.said.policy.as_ref().map_or("", |policy| policy.name.as_str());
    let hosts: Vec<&str> = shadow.ranked.iter().map(understudy_core::model::ids::HostId::as_str).collect();
    let order = if hosts.is_empty() { "no host".to_owned() } else { hosts.join(", ") };
    let differs = if shadow.differs { "another first" } else { "the same first" };
    match (&shadow.said.fault, shadow.built_in) {
        (Some(fault), _) => format!("shadow {name} did not answer: {}", fault.message),
        (None, Some(why)) => format!("shadow {name} answered and would not be used: {}", why.as_str()),
        (None, None) => format!("shadow {name} would try {order} ({differs})"),
    }
}

/// What would have been otherwise.
pub(crate) fn replayed(replayed: &Replayed) -> String {
    let mut text = String::new();
    for difference in &replayed.differences {
        let why = difference.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
        let _ = writeln!(
            text,
            "{} {} of {}: {} by {}, would be {}{why}",
            utc(difference.at.0),
            difference.interface,
            difference.node,
            difference.was,
            difference.by,
            difference.would
        );
    }
    let _ = writeln!(
        text,
        "{} questions: {} alike, {} otherwise, {} not answered; {} passed over, {} lines unreadable",
        replayed.questions,
        replayed.same,
        replayed.differences.len(),
        replayed.failures,
        replayed.passed_over,
        replayed.unreadable
    );
    text
}

/// A time as `2026-01-31T23:59:59Z`.
fn utc(millis: u64) -> String {
    let (days, second) = (millis / 86_400_000, millis / 1_000 % 86_400);
    // Days since 0000-03-01 in eras of 400 years, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

/// What there is to know of a file.
pub(crate) fn checked(report: &CheckReport) -> String {
    let mut text = String::new();
    let or_none = |words: &[String]| if words.is_empty() { "nothing".to_owned() } else { words.join(", ") };
    let _ = writeln!(text, "{}: {} bytes", report.file.display(), report.bytes);
    if let Some(digest) = &report.digest {
        let _ = writeln!(text, "  digest   {digest}");
    }
    let _ = writeln!(text, "  imports  {}", or_none(&report.imports));
    let _ = writeln!(text, "  exports  {}", or_none(&report.exports));
    if let Some(compiled) = report.compiled {
        let _ = writeln!(text, "  compiled in {} ms", compiled.as_millis());
    }
    for trial in &report.trials {
        let outcome =
            trial.outcome.as_ref().err().map_or_else(|| "answered".to_owned(), |fault| chain(fault));
        let (took, memory) = (trial.took.as_micros(), trial.memory / 1024);
        let _ = writeln!(text, "  trial of {}: {outcome}, {took} us, {memory} KiB", trial.interface);
    }
    let _ = writeln!(
        text,
        "  limits   {} ms, {} for a question, {} for the file",
        report.limits.deadline.as_millis(),
        report.limits.memory,
        report.limits.file_size
    );
    match &report.fault {
        None => text.push_str("  usable\n"),
        Some(fault) => {
            let _ = writeln!(text, "  not usable: {}", chain(fault));
        }
    }
    text
}

/// Questions per second.
pub(crate) fn benched(rows: &[BenchRow]) -> String {
    let columns = ["HOSTS", "PER SECOND", "POLICY", "BUILT-IN", "RATIO"].map(Right);
    let micros = |took: std::time::Duration| format!("{:.1} us", took.as_secs_f64() * 1e6);
    let rows = rows.iter().map(|row| {
        let (second, ratio) = (format!("{:.0}", row.per_second()), format!("{:.2}", row.ratio()));
        vec![row.hosts.to_string(), second, micros(row.policy), micros(row.native), ratio]
    });
    table(&columns, rows)
}

#[cfg(test)]
mod tests;
