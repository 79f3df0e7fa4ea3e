//! Owns what a gateway knows about terminals: where each one's display is, in which epoch, and which other
//! gateways serve it.
//!
//! Promises: an older epoch of a terminal never replaces a newer one (SAFE-4). Must not look anything up: the
//! driver writes it, the gateway reads it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::watch;
use understudy_core::ids::{Epoch, TerminalId};

/// Where a terminal's screen is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DisplayEndpoint {
    /// Epoch of the display node. It stands also while there is no primary, so that the one before cannot
    /// come back.
    pub epoch: Epoch,
    /// The display primary's VNC address; `None` while the terminal has no display primary.
    pub addr: Option<SocketAddr>,
}

/// All terminals and all gateways, as the store's newest state has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// Every terminal that exists.
    pub terminals: BTreeMap<TerminalId, DisplayEndpoint>,
    /// Advertised URL of every gateway (`http://host1:8443`), as a browser reaches it.
    pub gateways: Vec<String>,
    /// Those of hosts that are lost. Nobody is sent there, but pages that were loaded from them live on.
    pub lost: Vec<String>,
}

/// What stood against an older epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The terminal whose entry was refused.
    pub terminal: TerminalId,
    /// The epoch that stays.
    pub stands: Epoch,
    /// The older epoch that was offered.
    pub offered: Epoch,
}

impl Directory {
    /// Puts `next` into `sender`, except for terminals whose epoch would go back: those keep their entry and
    /// are returned. Readers are woken only when something changed. A terminal that is missing from one
    /// directory is forgotten, so that one made anew under its name may count from 1 again.
    pub fn publish(sender: &watch::Sender<Self>, mut next: Self) -> Vec<Refused> {
        let mut refused = Vec::new();
        sender.send_if_modified(|standing| {
            for (terminal, offered) in &mut next.terminals {
                let Some(stands) = standing.terminals.get(terminal) else { continue };
                if offered.epoch < stands.epoch {
                    refused.push(Refused {
                        terminal: terminal.clone(),
                        stands: stands.epoch,
                        offered: offered.epoch,
                    });
                    *offered = *stands;
                }
            }
            let changed = *standing != next;
            *standing = next;
            changed
        });
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(epoch: u64, port: u16) -> Directory {
        let addr = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        Directory {
            terminals: BTreeMap::from([(
                "alice".parse().unwrap(),
                DisplayEndpoint { epoch: Epoch(epoch), addr },
            )]),
            gateways: vec!["http://host1:8443".to_owned()],
            lost: Vec::new(),
        }
    }

    #[test]
    fn an_older_epoch_is_refused_and_wakes_nobody() {
        let (sender, mut reader) = watch::channel(directory(5, 5900));
        let refused = Directory::publish(&sender, directory(4, 5901));
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].stands, refused[0].offered), (Epoch(5), Epoch(4)));
        assert!(!reader.has_changed().unwrap());
        assert_eq!(*reader.borrow_and_update(), directory(5, 5900));
    }

    #[test]
    fn a_newer_epoch_and_a_changed_address_are_taken() {
        let (sender, reader) = watch::channel(directory(5, 5900));
        assert!(Directory::publish(&sender, directory(5, 5901)).is_empty());
        assert!(Directory::publish(&sender, directory(6, 5902)).is_empty());
        assert_eq!(*reader.borrow(), directory(6, 5902));
    }

    #[test]
    fn a_terminal_made_anew_counts_from_one() {
        let (sender, reader) = watch::channel(directory(5, 5900));
        Directory::publish(&sender, Directory::default());
        assert!(Directory::publish(&sender, directory(1, 5901)).is_empty());
        assert_eq!(*reader.borrow(), directory(1, 5901));
    }
}
