//! Owns the way from a fresh Debian to a machine that can build and run everything.
//!
//! Promises: what is installed is said first; an installed QEMU is changed only with consent.

use anyhow::{Result, bail};
use clap::Args;
use understudy_lab::packages::{PACKAGES, Plan, ask_on_terminal};

/// How packages are installed.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// Install nothing: where packages are missing, list them and end.
    #[arg(long)]
    pub(crate) no_install: bool,
    /// Change an installed QEMU without asking.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Installs what is missing.
pub(crate) fn ensure(options: &Options) -> Result<()> {
    let plan = Plan::read(PACKAGES)?;
    follow(&plan, options, |plan, agreed| {
        plan.apply(&mut |question| agreed || ask_on_terminal(question))?;
        Ok(())
    })
}

/// Lists what is missing and installs it by `apply`, unless there is nothing to do or only the list was asked for.
fn follow(plan: &Plan, options: &Options, apply: impl FnOnce(&Plan, bool) -> Result<()>) -> Result<()> {
    if plan.is_empty() {
        return Ok(());
    }
    println!("{plan}");
    if options.no_install {
        bail!("packages are missing: install them, or run this without --no-install");
    }
    // CI has nobody to ask and a machine of its own.
    let agreed = options.yes || std::env::var_os("CI").is_some();
    apply(plan, agreed)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn followed(plan: &Plan, no_install: bool) -> (Result<()>, bool) {
        let applied = Cell::new(false);
        let options = Options { no_install, yes: true };
        let outcome = follow(plan, &options, |_, agreed| {
            applied.set(agreed);
            Ok(())
        });
        (outcome, applied.get())
    }

    #[test]
    fn no_install_lists_what_is_missing_and_ends_there() {
        let lacking = Plan { missing: PACKAGES[..1].to_vec(), qemu: None };
        let (outcome, applied) = followed(&lacking, true);
        assert!(outcome.unwrap_err().to_string().contains("packages are missing") && !applied);
        assert!(matches!(followed(&lacking, false), (Ok(()), true)));
        let complete = Plan { missing: Vec::new(), qemu: None };
        assert!(matches!(followed(&complete, true), (Ok(()), false)), "nothing is missing: it goes on");
    }
}
