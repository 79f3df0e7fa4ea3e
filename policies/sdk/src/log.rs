//! Lines in the daemon's log, under the policy's name.
//!
//! In native tests they go to standard error. The daemon cuts long lines and drops those beyond a rate.

use crate::wit::log::Level;

/// Something that was asked for cannot be had.
pub fn error(message: &str) {
    write(Level::Error, message);
}

/// Worth an operator's look.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// A fact of some interest.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// For the author of the policy.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// For the author of the policy, line by line.
pub fn trace(message: &str) {
    write(Level::Trace, message);
}

#[cfg(target_family = "wasm")]
fn write(level: Level, message: &str) {
    crate::wit::log::write(level, message);
}

#[cfg(not(target_family = "wasm"))]
fn write(level: Level, message: &str) {
    eprintln!("{level:?}: {message}");
}

/// From here on a panic's text is an error in the log: the trap that ends it says only `unreachable`, and the daemon
/// adds the last error of the log to that. The macros of this crate call it.
#[doc(hidden)]
pub fn report_panics() {
    #[cfg(target_family = "wasm")]
    std::panic::set_hook(Box::new(|panic| error(&panic.to_string())));
}
