//! Words that were given up: engineers who run clusters read this, so a thing has the name that their documentation gives it.

use crate::repository::{expect_none, read, tracked};

/// What may not come back, in small letters with `_` between its words, and what is said in its place. It is found in every
/// form: `set_aside`, `SetAside`, `SET_ASIDE`, `set aside`, `set-aside`, and within longer names.
const RETIRED: [(&str, &str); 49] = [
    ("adopt", "recover"),
    ("adopted", "recovered"),
    ("adopts", "recovers"),
    ("complain", "raise a condition"),
    ("complaint", "condition"),
    ("complaints", "conditions"),
    ("conduct", "circuit breaker"),
    ("converge", "reconcile"),
    ("converges", "reconciles"),
    ("display_begun", "display_incarnation"),
    ("end_silent", "expire silent"),
    ("fallen", "exited"),
    ("forsaken", "orphaned"),
    ("has_the_word", "is authoritative"),
    ("heed", "apply"),
    ("held_place", "reserved place"),
    ("held_places", "reserved places"),
    ("hides_facts", "has quarantined facts"),
    ("hides_names", "has quarantined names"),
    ("hides_nodes", "has quarantined nodes"),
    ("inventory", "discover"),
    ("keeper", "manager"),
    ("ladder", "fallback order"),
    ("ladders", "fallback orders"),
    ("lease_news", "lease event"),
    ("life_at", "liveness"),
    ("life_sign", "liveness"),
    ("mirror", "store cache"),
    ("news", "event"),
    ("place_held", "place reserved"),
    ("places_held", "places reserved"),
    ("record_begun", "record.incarnation"),
    ("seat_on", "allocate"),
    ("session", "lease"),
    ("sessions", "leases"),
    ("set_aside", "suspended"),
    ("setback", "cooldown"),
    ("setbacks", "cooldowns"),
    ("source_has_let_go", "source has released it"),
    ("source_let_go", "source released"),
    ("stock", "discovered"),
    ("strike", "failure"),
    ("strikes", "failures"),
    ("take_stock", "discover"),
    ("taking_stock", "discovery"),
    ("tell_keeper", "notify the manager"),
    ("tend", "reconcile"),
    ("tends", "reconciles"),
    ("withheld", "quarantined"),
];

/// Where one of them is another thing, and what it is there.
const OTHERS: [(&str, &str, &str); 12] = [
    ("agent/core/src/leader/tests/migration.rs", "sessions", "of X, that a live migration does not end"),
    ("agent/core/src/model/records.rs", "sessions", "of X, that a live migration does not end"),
    ("agent/guard/src/rules.rs", "life_at", "brings something to life at a time"),
    ("agent/hypervisor/src/libvirt/migration.rs", "converge", "libvirt's own name of a flag"),
    ("agent/src/config/tests.rs", "session", "in a URI of libvirt"),
    ("tests/e2e/src/browser.rs", "session", "of WebDriver"),
    ("tests/lab/src/helper.rs", "session", "of processes"),
    ("tests/lab/src/host.rs", "complaint", "what a service of the lab said last"),
    ("tests/lab/src/lab.rs", "complaint", "what a wrong option is refused for"),
    ("tests/lab/src/packages/tests.rs", "mirror", "of Debian's packages"),
    ("tests/sim/src/ailing.rs", "strikes", "what a fault does"),
    ("tests/sim/src/fault.rs", "strike", "what a fault does"),
];

/// The kinds of files that are read: what people read, and what they get to read.
const KINDS: [&str; 9] = ["log", "md", "rs", "service", "sh", "toml", "txt", "wit", "yml"];

/// A line with its words in small letters and `_` between those of one name or phrase.
fn spread(line: &str) -> String {
    let mut out = "_".to_owned();
    let mut before = ' ';
    for letter in line.chars() {
        let word_begins = letter.is_uppercase() && (before.is_lowercase() || before.is_ascii_digit());
        let is_joint = matches!(letter, '_' | ' ' | '-' | '.');
        if !letter.is_alphanumeric() && !is_joint {
            out.push_str("_|");
        }
        if (word_begins || !letter.is_alphanumeric()) && !out.ends_with('_') {
            out.push('_');
        }
        if letter.is_alphanumeric() {
            out.extend(letter.to_lowercase());
        }
        before = letter;
    }
    out.push('_');
    out
}

/// The retired words of a text, each with the number of its line.
fn retired(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let lines: Vec<String> = text.lines().map(spread).collect();
    let all = lines.concat();
    let mut found = Vec::new();
    for (word, instead) in RETIRED {
        let word_in_full = format!("_{word}_");
        // Most files have none: one look at the whole is many times faster than one at each line.
        if all.contains(&word_in_full) {
            let numbered = lines.iter().enumerate().filter(|(_, line)| line.contains(&word_in_full));
            found.extend(numbered.map(|(at, _)| (at + 1, word, instead)));
        }
    }
    found.sort_unstable();
    found
}

fn is_read(name: &str) -> bool {
    let kind = std::path::Path::new(name).extension().and_then(std::ffi::OsStr::to_str);
    kind.is_some_and(|kind| KINDS.contains(&kind)) && name != "tests/tidy/src/words.rs"
}

#[test]
fn no_word_that_was_given_up_comes_back() {
    let mut faults = Vec::new();
    let mut unused: Vec<&(&str, &str, &str)> = OTHERS.iter().collect();
    for name in tracked().into_iter().filter(|name| is_read(name)) {
        for (number, word, instead) in retired(&read(&name)) {
            let is_other = |other: &&(&str, &str, &str)| other.0 == name && other.1 == word;
            if OTHERS.iter().any(|other| is_other(&other)) {
                unused.retain(|other| !is_other(other));
            } else {
                faults.push(format!("{name}:{number}: '{word}' was given up for '{instead}'"));
            }
        }
    }
    faults.extend(unused.iter().map(|(name, word, _)| format!("{name}: '{word}' is no exception any more")));
    expect_none(&faults);
}

#[test]
fn a_retired_word_is_found_in_every_form() {
    for line in [
        "fn set_aside()",
        "SetAside {",
        "const SET_ASIDE",
        "is set aside.",
        "\"set-aside\"",
        "a_policy_set_aside_decides",
    ] {
        assert_eq!(retired(line), [(1, "set_aside", "suspended")], "{line}");
    }
    for line in ["set, aside", "sets aside", "offset asides", "obsession", "SessionlessThing", "unconverged"]
    {
        assert_eq!(retired(line), [], "{line}");
    }
    assert_eq!(
        retired("one\nKey::Session(host)\nOldSession"),
        [(2, "session", "lease"), (3, "session", "lease")]
    );
}

#[test]
fn no_word_is_given_up_for_another_of_the_list_and_each_is_there_once() {
    for (at, (word, instead)) in RETIRED.iter().enumerate() {
        assert!(at == 0 || RETIRED[at - 1].0 < *word, "{word} is out of order");
        assert_eq!(retired(instead), [], "{word}");
    }
}
