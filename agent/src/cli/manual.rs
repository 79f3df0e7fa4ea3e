//! Owns what is made of the command line's own description: completion for shells, manual pages.
//!
//! Promises: both are of the very commands of this program. Must not do: say anything that the commands do not.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::exit::{Exit, Failure};

const PROGRAM: &str = "understudy";

/// The script that completes this program's commands in a shell.
pub(super) fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    script
}

/// Writes the manual pages of all commands into a folder, which is made where there is none.
///
/// # Errors
/// When they cannot be written.
pub(super) fn pages(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write to {}: {error}", folder.display())))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_verbs() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completion(*shell)).unwrap();
            for word in ["understudy", "check-config", "undrain", "completion"] {
                assert!(script.contains(word), "{shell} does not know {word}");
            }
        }
    }

    #[test]
    fn each_command_has_a_page_and_the_first_names_the_exit_codes() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("man1");
        pages(&made).unwrap();
        let read = |page: &str| std::fs::read_to_string(made.join(page)).unwrap();
        let first = read("understudy.1");
        for part in [".TH understudy 1", "Exit codes:", "4 the agent does not answer", "understudy/api.sock"]
        {
            assert!(first.contains(part), "{part}: {first}");
        }
        assert!(read("understudy-host-drain.1").contains("by live migration"));
        assert!(read("understudy-policy-replay.1").contains("recorded questions"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = pages(&file.path().join("man1")).unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        assert!(error.message.contains("man1"), "{}", error.message);
    }
}
