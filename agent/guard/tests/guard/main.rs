//! The guard as its users meet it: the binary, its socket, real processes and real signals.

// `cfg(test)` always holds here; it lets the lints know that the helpers are part of the tests.
#[cfg(test)]
mod deadline;
#[cfg(test)]
mod protocol;
#[cfg(test)]
mod support;
