//! Owns the description of a terminal whose execution nodes run one counter each: what most tests over a whole cluster
//! ask for.
//!
//! Promises: a field that a test does not name has the product's default. Must not do: create the terminal.

use std::fmt::{self, Display, Formatter};
use std::io::Write;

use anyhow::Result;
use tempfile::NamedTempFile;

/// Such a terminal. Its text is what `understudy terminal create --from` reads.
#[derive(Debug, Clone)]
pub struct Counters {
    /// The size of its screen.
    pub screen: &'static str,
    /// How many execution nodes it has.
    pub executions: usize,
    /// Whether their execution state is protected.
    pub protected: bool,
    /// Backups of each node, where not the policies' number.
    pub backups: Option<u32>,
    /// Memory of a display member in MiB, where not the pool's.
    pub display_mib: Option<u64>,
    /// Memory of an execution member in MiB, likewise.
    pub execution_mib: Option<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            screen: "1280x800",
            executions: 1,
            protected: true,
            backups: None,
            display_mib: None,
            execution_mib: None,
        }
    }
}

impl Display for Counters {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let memory = |mib: Option<u64>| mib.map(|mib| format!("memory_mib = {mib}\n")).unwrap_or_default();
        writeln!(f, "screen = \"{}\"", self.screen)?;
        if let Some(backups) = self.backups {
            writeln!(f, "[labels]\nbackups = \"{backups}\"")?;
        }
        writeln!(f, "[display]\n{}", memory(self.display_mib))?;
        for _ in 0..self.executions {
            writeln!(f, "[[execution]]\nprotected = {}\n{}", self.protected, memory(self.execution_mib))?;
            f.write_str(APPLICATION)?;
        }
        Ok(())
    }
}

const APPLICATION: &str = r#"[[execution.application]]
name = "counter"
geometry = "460x200+40+40"
title = "counter"
command = "counter"
"#;

impl Counters {
    /// The description as a file, which hosts of the lab see: they share the machine's folder for temporary files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self) -> Result<NamedTempFile> {
        let mut file = NamedTempFile::with_suffix(".toml")?;
        write!(file, "{self}")?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use understudy::api::types::TerminalRequest;

    use super::*;

    #[test]
    fn the_text_is_the_form_of_a_terminal_with_what_was_asked_for_and_no_more() {
        let counters = Counters {
            executions: 2,
            protected: false,
            backups: Some(0),
            execution_mib: Some(176),
            ..Counters::default()
        };
        // The command line adds the name.
        let text = format!("name = \"solo\"\n{counters}");
        let form: TerminalRequest = toml::from_str(&text).unwrap();
        assert_eq!(form.labels.get("backups").map(String::as_str), Some("0"));
        assert_eq!((form.display.memory_mib, form.execution.len()), (None, 2));
        for node in form.execution {
            assert_eq!((node.memory_mib, node.protected), (Some(176), Some(false)));
            assert_eq!(node.application.len(), 1);
        }
        let form: TerminalRequest =
            toml::from_str(&format!("name = \"solo\"\n{}", Counters::default())).unwrap();
        assert!(form.labels.is_empty() && form.execution[0].protected == Some(true));
    }
}
