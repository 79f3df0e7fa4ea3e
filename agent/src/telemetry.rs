//! Owns the set-up of logs: plain lines on standard error, or journald with fields.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::{Exit, Failure};

/// Starts logging. `journald` is given up for plain lines where there is no journal.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(filter: &str, journald: bool) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::new(Exit::Config, format!("log.filter: '{filter}': {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    if journald && let Ok(journal) = tracing_journald::layer() {
        registry.with(journal).init();
    } else {
        let plain =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
        registry.with(plain).init();
    }
    Ok(())
}
