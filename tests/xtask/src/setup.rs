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
    /// Only list the packages that are missing.
    #[arg(long)]
    pub(crate) no_install: bool,
    /// Change an installed QEMU without asking.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Installs what is missing.
pub(crate) fn ensure(options: &Options) -> Result<()> {
    let plan = Plan::read(PACKAGES)?;
    if plan.is_empty() {
        return Ok(());
    }
    println!("{plan}");
    if options.no_install {
        bail!("packages are missing: install them, or run this without --no-install");
    }
    // CI has nobody to ask and a machine of its own.
    let agreed = options.yes || std::env::var_os("CI").is_some();
    plan.apply(&mut |question| agreed || ask_on_terminal(question))?;
    Ok(())
}
