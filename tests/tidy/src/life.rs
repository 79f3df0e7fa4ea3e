//! "The life of a failover" in core's DESIGN.md is what it says: each function is in its file, and the path is short.

use crate::repository::{expect_none, read};

const DESIGN: &str = "agent/core/DESIGN.md";
const HEADING: &str = "## The life of a failover";
/// Half of what one failover passed when the list was first made.
const STEPS_MAX: usize = 20;

/// The numbers, functions and files of the table under the heading.
fn steps(text: &str) -> Vec<(String, String, String)> {
    let Some((_, after)) = text.split_once(HEADING) else { return Vec::new() };
    let section = after.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.filter_map(|row| {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, number, function, file, ..] = cells.as_slice() else { return None };
        Some(((*number).to_owned(), (*function).to_owned(), (*file).to_owned()))
    })
    .collect()
}

fn faults(text: &str, file: impl Fn(&str) -> String) -> Vec<String> {
    let steps = steps(text);
    let mut faults = Vec::new();
    if !(5..=STEPS_MAX).contains(&steps.len()) {
        faults.push(format!("{DESIGN}: {} steps under '{HEADING}', 5 to {STEPS_MAX} are right", steps.len()));
    }
    for (at, (number, function, path)) in steps.iter().enumerate() {
        if *number != (at + 1).to_string() {
            faults.push(format!("{DESIGN}: step {} has the number {number}", at + 1));
        }
        let source = file(path);
        if !["(", "<"].iter().any(|after| source.contains(&format!("fn {function}{after}"))) {
            faults.push(format!("{DESIGN}: step {number}: no function {function} in {path}"));
        }
    }
    faults
}

#[test]
fn every_step_of_a_failover_is_where_the_design_says() {
    expect_none(&faults(&read(DESIGN), read));
}

#[test]
fn a_step_that_is_not_there_is_found() {
    let row = |number: usize, name: &str| format!("| {number} | `{name}` | `a.rs` | does it |\n");
    let table =
        |rows: &[String]| format!("{HEADING}\n| | f | file | w |\n|---|---|---|---|\n{}", rows.concat());
    let file = |_: &str| "fn one() {} fn two<T>() {}".to_owned();
    let good: Vec<String> = (1..=6).map(|number| row(number, "one")).collect();
    assert_eq!(faults(&table(&good), file), Vec::<String>::new());
    let gone = [&good[..5], &[row(6, "three")]].concat();
    assert!(faults(&table(&gone), file)[0].contains("no function three in a.rs"));
    let skipped = [&good[..5], &[row(7, "two")]].concat();
    assert!(faults(&table(&skipped), file)[0].contains("number 7"));
    let long: Vec<String> = (1..=21).map(|number| row(number, "one")).collect();
    assert!(faults(&table(&long), file)[0].contains("21 steps"));
    assert!(faults("nothing", file)[0].contains("0 steps"));
}
