//! Owns what the output of a run says of the tests that failed: which, of which target, and with which words.
//!
//! Promises: a test program that was killed or crashed names no test, and is told with its signal. Must not do: judge; whether
//! a run failed is what the runner's exit says.

use std::collections::BTreeMap;

/// Before a run's list of failed tests, and before what was captured of them.
const LIST: &str = "failures:";
/// How the runner names a target of which something failed.
const TARGET: &str = "error: test failed, to rerun pass ";
/// How it tells of a program that was killed or crashed.
const CRASH: &str = "process didn't exit successfully: ";
/// Lines of one panic that are kept, and of how many panics.
const LINES_MAX: usize = 12;
const PANICS_MAX: usize = 500;

/// What is known of one run by now.
#[derive(Debug, Default)]
pub(super) struct Failed {
    names: Vec<String>,
    lists: bool,
    targets: Vec<String>,
    panics: BTreeMap<String, Vec<String>>,
    panics_of: Option<String>,
}

impl Failed {
    /// A line that the test programs wrote to their output.
    pub(super) fn output(&mut self, line: &str) {
        match line.strip_prefix("    ") {
            _ if line.trim() == LIST => self.lists = true,
            Some(name) if self.lists && !name.starts_with(' ') => self.names.push(name.to_owned()),
            Some(_) => {}
            None if line.is_empty() => {}
            None => self.lists = false,
        }
    }

    /// A line that they, or the runner, wrote to their errors.
    pub(super) fn error(&mut self, line: &str) {
        if let Some(target) = line.strip_prefix(TARGET) {
            self.targets.push(target.trim_matches('`').to_owned());
        } else if let (Some((_, crash)), Some(target)) = (line.split_once(CRASH), self.targets.last_mut()) {
            // The program's path says less than the target.
            let how = crash.rsplit_once("` ").map_or(crash, |(_, how)| how);
            target.push_str(&format!(" {how}"));
        }
        if let Some(thread) = thread_of(line) {
            self.panics_of = (self.panics.len() < PANICS_MAX).then(|| thread.to_owned());
        } else if line.starts_with("stack backtrace:") || line.starts_with("note: ") {
            self.panics_of = None;
        }
        if let Some(thread) = &self.panics_of {
            let lines = self.panics.entry(thread.clone()).or_default();
            if lines.len() < LINES_MAX {
                lines.push(line.to_owned());
            }
        }
    }

    /// The names of the one, with the words of the other.
    pub(super) fn with_errors_of(self, errors: Self) -> Self {
        Self { names: self.names, ..errors }
    }

    /// For people, after the run: each target, each test, and what it said last.
    pub(super) fn summary(&self) -> Vec<String> {
        let targets = self.targets.iter().map(|target| format!("of {target}"));
        let tests = self.names.iter().flat_map(|name| {
            let words = self.panics.get(name).into_iter().flatten().map(|line| format!("    {line}"));
            std::iter::once(name.clone()).chain(words)
        });
        targets.chain(tests).collect()
    }
}

/// The thread that a line says has panicked; a test's thread has the test's name.
fn thread_of(line: &str) -> Option<&str> {
    let (thread, rest) = line.strip_prefix("thread '")?.split_once('\'')?;
    rest.contains(" panicked at ").then_some(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_is_reported_with_its_target_and_its_words_and_others_are_not() {
        let mut failed = Failed::default();
        let output = "running 3 tests\n\
                      test it_panics_on_purpose ... ok\n\
                      test stage::it_holds ... FAILED\n\
                      \n\
                      failures:\n\
                      \n\
                      failures:\n    stage::it_holds\n\
                      \n\
                      test result: FAILED. 2 passed; 1 failed\n    not a name";
        output.lines().for_each(|line| failed.output(line));
        let errors = "thread 'it_panics_on_purpose' (7) panicked at a.rs:1:2:\nas it should\n\
                      thread 'stage::it_holds' (8) panicked at b.rs:3:4:\nhost1 is silent: 5 s\nstack backtrace:\n  0: rust\n\
                      error: test failed, to rerun pass `-p understudy-e2e --test lease`";
        errors.lines().for_each(|line| failed.error(line));
        let summary = [
            "of -p understudy-e2e --test lease",
            "stage::it_holds",
            "    thread 'stage::it_holds' (8) panicked at b.rs:3:4:",
            "    host1 is silent: 5 s",
        ];
        assert_eq!(failed.summary(), summary);
    }

    #[test]
    fn a_program_that_crashed_is_reported_with_its_signal() {
        let mut failed = Failed::default();
        let errors = "error: test failed, to rerun pass `-p understudy-store --lib`\n\nCaused by:\n  \
                      process didn't exit successfully: `/target/debug/deps/store-1 --nocapture` (signal: 11, SIGSEGV)";
        errors.lines().for_each(|line| failed.error(line));
        assert_eq!(failed.summary(), ["of -p understudy-store --lib (signal: 11, SIGSEGV)"]);
    }
}
