//! Owns the model of the daemon's questions to other hosts about the checkpoints that they have: asked over the network, said
//! from what lies on the disk at that moment, and heard a moment later, or never.
//!
//! Promises: a host that cannot be reached says nothing; what is said may be out of date when it is heard. Must not do: decide
//! for how long somebody is waited for.

use understudy_core::leader::AskCopies;
use understudy_core::leader::leadership::Input;
use understudy_core::model::ids::{HostId, Term};
use understudy_core::model::records::Kept;

use super::Agent;
use crate::world::World;

/// How long the network tries to reach somebody.
const CONNECT_MS: u64 = 3_000;

/// One question on its way there, or its answer on its way back.
#[derive(Debug)]
struct Asked {
    term: Term,
    ask: AskCopies,
    /// When it is there, or the answer is here.
    due: u64,
    /// When it is given up.
    until: u64,
    said: Option<Kept>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Asks(Vec<Asked>);

impl Agent {
    pub(super) fn ask_copies(&mut self, world: &mut World, term: Term, asks: Vec<AskCopies>) {
        let due = world.now + world.asking_takes();
        let until = world.now + CONNECT_MS;
        self.asks.0.extend(asks.into_iter().map(|ask| Asked { term, ask, due, until, said: None }));
    }

    pub(super) fn step_asks(&mut self, world: &mut World, me: &HostId) {
        for mut asked in std::mem::take(&mut self.asks.0) {
            if asked.due > world.now {
                self.asks.0.push(asked);
                continue;
            }
            let (own, other) = (world.machine(me), world.machine(&asked.ask.host));
            let is_there = *me == asked.ask.host
                || world.reach(me, &asked.ask.host)
                    && world.now >= own.mute_until.max(other.deaf_until)
                    && world.now >= own.deaf_until.max(other.mute_until)
                    && other.runs()
                    && other.agent_frozen.is_none()
                    && other.agent.is_some();
            match asked.said.take() {
                _ if !is_there && world.now < asked.until => self.asks.0.push(asked),
                _ if !is_there => {}
                Some(said) => {
                    self.dirty = true;
                    world.verbose(|| format!("{} says of {}: {said:?}", asked.ask.host, asked.ask.node));
                    self.tell_leadership(world, me, Input::Copies(asked.term, asked.ask, said));
                }
                None => {
                    let AskCopies { node, host, .. } = &asked.ask;
                    let mut said = world.kept_by(&asked.ask);
                    // This machine's agent is not on it while it takes its turn.
                    said.arriving |= world.reach(me, host) && self.sends_to(node, host);
                    asked.said = Some(said);
                    asked.due = world.now + world.asking_takes();
                    self.asks.0.push(asked);
                }
            }
        }
    }
}
