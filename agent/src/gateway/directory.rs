//! Owns what a gateway knows about terminals: it looks one up when somebody asks for it, and tells the sockets that are
//! open when their terminal's display is another one.
//!
//! Promises: an older epoch of a terminal never replaces a newer one that was served here (SAFE-4); a socket is woken only
//! when its own display changed, a page also when the gateways did. Must not decide where a screen is: `View::display` in
//! core does. The runtime publishes the view, the gateway reads it.
//!
//! Cost, with T terminals, N nodes and H hosts in the cluster and S terminals whose screen is open here: a view that is
//! published is an O(1) copy, then O(S · (log N + log H)) look-ups and O(hosts and terminals that changed); a terminal that
//! is asked for O(log T + log N + log H). Kept beside the view: some 200 bytes for each terminal that was asked for here
//! since the view last went dark, however many there are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use understudy_core::model::ids::{Epoch, TerminalId};
use understudy_core::model::view::{Display, Gateways, View, diff};

/// A directory and the one who publishes into it. It knows no terminals yet.
#[must_use]
pub fn directory() -> (Publisher, Directory) {
    let (sender, gateways) = watch::channel(Gateways::default());
    let known = Arc::new(Mutex::new(Known::default()));
    (Publisher { known: known.clone(), gateways: sender }, Directory { known, gateways })
}

/// Where terminals are looked up.
#[derive(Debug, Clone)]
pub struct Directory {
    known: Arc<Mutex<Known>>,
    gateways: watch::Receiver<Gateways>,
}

/// The way into a directory. Dropped, it ends whatever follows a terminal there.
#[derive(Debug)]
pub struct Publisher {
    known: Arc<Mutex<Known>>,
    gateways: watch::Sender<Gateways>,
}

/// What stood against an older epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The terminal whose display was refused.
    pub terminal: TerminalId,
    /// The epoch that stays.
    pub stands: Epoch,
    /// The older epoch that was offered.
    pub offered: Epoch,
}

#[derive(Debug, Default)]
struct Known {
    view: View,
    /// The newest display of each terminal that was asked for.
    newest: BTreeMap<TerminalId, Display>,
    /// Those whose screen is open, each with what its sockets were told. One that is left goes with the next view.
    open: BTreeMap<TerminalId, watch::Sender<Option<Display>>>,
    /// The publisher is gone.
    closed: bool,
}

impl Directory {
    /// Where a terminal's screen is; nothing for one that does not exist.
    #[must_use]
    pub fn display(&self, terminal: &TerminalId) -> Option<Display> {
        lock(&self.known).look_up(terminal).0
    }

    /// The same, with every change of it. It ends with the publisher.
    #[must_use]
    pub fn follow(&self, terminal: &TerminalId) -> watch::Receiver<Option<Display>> {
        let mut known = lock(&self.known);
        if let Some(sender) = known.open.get(terminal) {
            return sender.subscribe();
        }
        let display = known.look_up(terminal).0;
        let (sender, receiver) = watch::channel(display);
        // Names that nobody has are not kept.
        if display.is_some() && !known.closed {
            known.open.insert(terminal.clone(), sender);
        }
        receiver
    }

    /// The gateways, with every change of them.
    #[must_use]
    pub fn gateways(&self) -> watch::Receiver<Gateways> {
        self.gateways.clone()
    }
}

impl Publisher {
    /// Looks terminals up in `view` from here on. Those that are open and whose epoch would go back keep their display, and
    /// are returned. A terminal that is missing from one view, or was made anew, is forgotten: it counts from 1 again.
    pub fn publish(&self, view: View) -> Vec<Refused> {
        let mut known = lock(&self.known);
        if view.moved_gateways(&known.view) {
            self.gateways.send_replace(view.gateways());
        }
        known.forget_deleted(&view);
        known.view = view;
        known.tell_open()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut known = lock(&self.known);
        known.closed = true;
        known.open.clear();
    }
}

impl Known {
    /// The display of a terminal, and what had to be refused for it.
    fn look_up(&mut self, terminal: &TerminalId) -> (Option<Display>, Option<Refused>) {
        let Some(offered) = self.view.display(terminal) else {
            self.newest.remove(terminal);
            return (None, None);
        };
        let standing = self.newest.get(terminal).copied();
        let display = offered.after(standing);
        if standing != Some(display) {
            self.newest.insert(terminal.clone(), display);
        }
        let refused = (display.epoch > offered.epoch).then(|| Refused {
            terminal: terminal.clone(),
            stands: display.epoch,
            offered: offered.epoch,
        });
        (Some(display), refused)
    }

    fn forget_deleted(&mut self, next: &View) {
        for (terminal, was, is) in diff(&self.view.terminals, &next.terminals) {
            if was.map(|was| was.created) != is.map(|is| is.created) {
                self.newest.remove(terminal);
            }
        }
    }

    /// Tells the open screens whose display is another one.
    fn tell_open(&mut self) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut open = std::mem::take(&mut self.open);
        open.retain(|terminal, sender| {
            if sender.receiver_count() == 0 {
                return false;
            }
            let (display, older) = self.look_up(terminal);
            refused.extend(older);
            sender.send_if_modified(|sender| std::mem::replace(sender, display) != display);
            true
        });
        self.open = open;
        refused
    }
}

/// Held for look-ups and the copying of a view, never while anything is waited for.
fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::gateway::tests::view::view;

    const NONE: [&str; 0] = [];

    /// alice and bob at these epochs, each at the address of its epoch.
    fn cluster(alice: u64, bob: u64) -> View {
        let at = |epoch: u64| display(epoch).address;
        view(&[("alice", alice, at(alice)), ("bob", bob, at(bob))], &NONE, &NONE)
    }

    fn display(epoch: u64) -> Display {
        let address = Some(Ipv4Addr::new(10, 0, 0, u8::try_from(epoch).unwrap()));
        Display { epoch: Epoch(epoch), address }
    }

    fn alice() -> TerminalId {
        "alice".parse().unwrap()
    }

    fn bob() -> TerminalId {
        "bob".parse().unwrap()
    }

    #[test]
    fn a_terminal_is_looked_up_in_what_was_published_last() {
        let (publisher, directory) = directory();
        assert_eq!(directory.display(&alice()), None);
        for epoch in [1, 2, 7] {
            publisher.publish(cluster(epoch, 1));
            assert_eq!(directory.display(&alice()), Some(display(epoch)));
            assert_eq!(*directory.follow(&alice()).borrow(), Some(display(epoch)));
        }
        assert_eq!(directory.display(&"carol".parse().unwrap()), None);
    }

    #[test]
    fn an_older_epoch_is_refused_and_wakes_nobody() {
        let (publisher, directory) = directory();
        publisher.publish(cluster(5, 5));
        let alices = directory.follow(&alice());
        assert_eq!(directory.display(&bob()), Some(display(5)), "asked for once, and not open");
        let refused = publisher.publish(cluster(4, 4));
        let expected = Refused { terminal: alice(), stands: Epoch(5), offered: Epoch(4) };
        assert_eq!(refused, [expected]);
        assert!(!alices.has_changed().unwrap());
        assert_eq!(*alices.borrow(), Some(display(5)));
        assert_eq!(directory.display(&bob()), Some(display(5)));
    }

    #[test]
    fn a_change_wakes_the_screens_that_it_concerns_and_no_others() {
        let (publisher, directory) = directory();
        publisher.publish(cluster(1, 1));
        let (mut alices, bobs) = (directory.follow(&alice()), directory.follow(&bob()));
        let alices_too = directory.follow(&alice());
        publisher.publish(cluster(1, 1));
        assert!(!alices.has_changed().unwrap() && !bobs.has_changed().unwrap());
        publisher.publish(cluster(2, 1));
        assert!(alices.has_changed().unwrap() && alices_too.has_changed().unwrap());
        assert!(!bobs.has_changed().unwrap());
        assert_eq!(*alices.borrow_and_update(), Some(display(2)));
        let gateways = directory.gateways();
        publisher.publish(view(&[("alice", 2, display(2).address)], &["http://host1:8443"], &NONE));
        assert!(gateways.has_changed().unwrap() && !alices.has_changed().unwrap());
        assert_eq!(*bobs.borrow(), None, "it was deleted");
    }

    #[test]
    fn a_terminal_made_anew_counts_from_one() {
        let (publisher, directory) = directory();
        publisher.publish(cluster(5, 5));
        let alices = directory.follow(&alice());
        publisher.publish(View::default());
        assert_eq!(*alices.borrow(), None);
        publisher.publish(cluster(1, 1));
        assert_eq!(directory.display(&alice()), Some(display(1)));

        // Deleted and made anew between two views.
        let mut anew = cluster(1, 1);
        publisher.publish(cluster(5, 5));
        assert_eq!(directory.display(&alice()), Some(display(5)));
        Arc::make_mut(anew.terminals.get_mut(&alice()).unwrap()).created.0 += 1;
        assert_eq!(publisher.publish(anew), []);
        assert_eq!(directory.display(&alice()), Some(display(1)));
    }

    #[test]
    fn what_nobody_follows_any_more_is_not_kept_open_and_the_publishers_end_ends_the_rest() {
        let (publisher, directory) = directory();
        publisher.publish(cluster(1, 1));
        drop(directory.follow(&alice()));
        let bobs = directory.follow(&bob());
        drop(directory.follow(&"carol".parse().unwrap()));
        publisher.publish(cluster(1, 1));
        assert_eq!(lock(&directory.known).open.keys().cloned().collect::<Vec<_>>(), [bob()]);
        drop(publisher);
        assert!(bobs.has_changed().is_err(), "its sender is gone");
        assert!(directory.follow(&alice()).has_changed().is_err());
        assert_eq!(directory.display(&alice()), Some(display(1)));
    }
}
