//! Owns the taking of one checkpoint: saved into a tmpfs, sent to every backup's host, then made known.
//!
//! Promises: the record is written only after every host that it names has the image durably (SAFE-3), and only while
//! the node is still in the epoch that the state was taken in (SAFE-4); one that cannot be written any more is not gone
//! on with. Must not do: keep images of its own.

use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use understudy_checkpoint::{Description, Expected};
use understudy_core::host::{HostAction, Job, Outcome};
use understudy_core::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::records::{CheckpointId, CheckpointRecord, HostFacts, NodeRecord};
use understudy_core::units::MiB;
use understudy_store::{Committed, Condition, Txn};

use super::super::{Parts, Snapshot, now};
use crate::exit::chain;
use crate::keys::{self, Key};
use crate::peers::{self, Shipment};

/// Saving the memory of a small guest takes a few hundred ms; emulated on a busy machine, seconds.
const SAVE: Duration = Duration::from_secs(30);

/// Under which key a manifest's description has the guest's address.
pub(super) const ADDRESS: &str = "address";

/// The scratch file, deleted whatever happens.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The epoch that a state is taken in. Once the node has left it, nobody can use the state: what is still to be done for
/// it would only take processors and network from what ended the epoch, a migration or a successor.
#[derive(Clone)]
struct Era {
    node: NodeId,
    epoch: Epoch,
    cluster: watch::Receiver<Arc<Snapshot>>,
}

impl Era {
    /// Why the state is of no use any more, if so.
    fn over(&self) -> Option<String> {
        let view = &self.cluster.borrow().view;
        match view.nodes.get(&self.node) {
            None => Some(format!("{} was deleted", self.node)),
            Some(known) => refuse_older(known.value.epoch, self.epoch).err(),
        }
    }

    /// `work`, unless the epoch ends before it does.
    async fn bounds<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        let mut changes = self.cluster.clone();
        let over = async {
            loop {
                if let Some(why) = self.over() {
                    return why;
                }
                if changes.changed().await.is_err() {
                    return "the agent ends".to_owned();
                }
            }
        };
        tokio::select! {
            biased;
            why = over => Err(why),
            done = work => Ok(done),
        }
    }
}

/// Reads until the epoch is over.
struct While<R> {
    era: Era,
    reader: R,
}

impl<R: Read> Read for While<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.era.over() {
            Some(why) => Err(io::Error::other(why)),
            None => self.reader.read(buffer),
        }
    }
}

pub(super) async fn run(parts: &Arc<Parts>, cluster: watch::Receiver<Arc<Snapshot>>, job: &Job) -> Outcome {
    let HostAction::Checkpoint { node, instance, epoch, hosts } = &job.action else { return Outcome::Done };
    let Some(memory) = job.memory else { return Outcome::Failed("the instance is not known".to_owned()) };
    let id = CheckpointId { epoch: *epoch, sequence: job.sequence.unwrap_or(1) };
    let era = Era { node: node.clone(), epoch: *epoch, cluster };
    match take(parts, &era, (*instance, memory, job.address), id, hosts).await {
        Ok(outcome) => outcome,
        Err(reason) => Outcome::Failed(reason),
    }
}

async fn take(
    parts: &Arc<Parts>,
    era: &Era,
    (instance, memory, address): (InstanceId, MiB, Option<Ipv4Addr>),
    id: CheckpointId,
    hosts: &[HostId],
) -> Result<Outcome, String> {
    let scratch = Scratch(parts.scratch.join(format!("{instance}-{}-{}.image", id.epoch, id.sequence)));
    let taken = now().wall;
    let (task_parts, path, task_era) = (parts.clone(), scratch.0.clone(), era.clone());
    let saved = tokio::task::spawn_blocking(move || {
        let _ = std::fs::remove_file(&path);
        let saved =
            task_parts.hypervisor.save_memory(instance, &path, SAVE).map_err(|error| chain(&error))?;
        let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        let mut file = While { era: task_era, reader: std::fs::File::open(&path).map_err(unreadable)? };
        let (digest, bytes) = understudy_checkpoint::digest_of(&mut file).map_err(unreadable)?;
        Ok::<_, String>((saved, Expected { bytes, digest }))
    });
    let (saved, expected) = saved.await.map_err(|error| error.to_string())??;
    let pause_ms = u64::try_from(saved.pause.as_millis()).unwrap_or(u64::MAX);
    // The address lives in the guest: whoever restores it must know where it will answer.
    let domain = address.map(|address| (ADDRESS.to_owned(), address.to_string())).into_iter().collect();
    let description = Description { instance, taken, pause_ms, memory, domain };
    let shipment =
        Shipment { node: era.node.clone(), id, bytes: expected.bytes, digest: expected.digest, description };
    let sending = hosts.iter().map(|host| {
        let (facts, path, shipment) = (reach(parts, host), scratch.0.clone(), shipment.clone());
        async move { peers::send_checkpoint(&facts.await?.api, &path, &shipment).await }
    });
    let sent = era.bounds(futures_util::future::join_all(sending)).await?;
    for (host, sent) in hosts.iter().zip(sent) {
        sent.map_err(|reason| format!("{host}: {reason}"))?;
    }
    let record = CheckpointRecord {
        id,
        valid: id.epoch,
        taken,
        instance,
        pause_ms,
        bytes: expected.bytes,
        hosts: hosts.to_vec(),
    };
    publish(parts, &era.node, &record).await?;
    Ok(Outcome::Checkpointed { id, taken, pause_ms, bytes: expected.bytes })
}

fn reach(parts: &Arc<Parts>, host: &HostId) -> impl Future<Output = Result<HostFacts, String>> {
    let (parts, key) = (parts.clone(), Key::Facts(host.clone()).to_string());
    async move {
        let entry = parts.store.get(&key).await.map_err(|error| chain(&error))?;
        let entry = entry.ok_or_else(|| "has not reported yet".to_owned())?;
        keys::decode::<HostFacts>(&key, &entry.value).map_err(|error| chain(&error))
    }
}

/// Makes the checkpoint the newest of its node, if the node is still in its epoch and nothing newer is known.
async fn publish(parts: &Parts, node: &NodeId, record: &CheckpointRecord) -> Result<(), String> {
    let (node_key, key) = (Key::Node(node.clone()).to_string(), Key::Checkpoint(node.clone()).to_string());
    for _ in 0..3 {
        let owner = parts.store.get(&node_key).await.map_err(|error| chain(&error))?;
        let owner = owner.ok_or_else(|| format!("{node} was deleted"))?;
        let current: NodeRecord = keys::decode(&node_key, &owner.value).map_err(|error| chain(&error))?;
        refuse_older(current.epoch, record.id.epoch)?;
        let known = parts.store.get(&key).await.map_err(|error| chain(&error))?;
        let condition = match &known {
            Some(entry) => Condition::Unchanged(key.clone(), entry.modified),
            None => Condition::Absent(key.clone()),
        };
        let txn = Txn::new()
            .when(Condition::Unchanged(node_key.clone(), owner.modified))
            .when(condition)
            .put(&key, keys::encode(record));
        match parts.store.commit(&txn).await.map_err(|error| chain(&error))? {
            Committed::Applied { .. } => return Ok(()),
            // The node's record changes for other reasons too: look again.
            Committed::Refused { .. } => {}
        }
    }
    Err("the node's record kept changing".to_owned())
}

fn refuse_older(current: Epoch, taken_in: Epoch) -> Result<(), String> {
    if current == taken_in {
        Ok(())
    } else {
        Err(format!("taken in epoch {taken_in}, the node is in epoch {current}"))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use understudy_checkpoint::digest_of;
    use understudy_core::ids::Role;
    use understudy_core::records::{Labels, NodeSpec, Screen};
    use understudy_core::units::Vcpus;
    use understudy_core::view::Versioned;

    use super::*;

    /// The cluster with the node in this epoch, or without it.
    fn snapshot(node: &NodeId, epoch: Option<Epoch>) -> Arc<Snapshot> {
        let spec = NodeSpec {
            memory: MiB(128),
            vcpus: Vcpus(1),
            protected: node.role() == Role::Execution,
            environment: "desktop".to_owned(),
            applications: Vec::new(),
            labels: Labels::new(),
            environment_labels: Labels::new(),
            screen: Screen { width: 1280, height: 720 },
        };
        let mut snapshot = Snapshot::default();
        if let Some(epoch) = epoch {
            let value = NodeRecord { epoch, ..NodeRecord::new(spec, String::new()) };
            snapshot.view.nodes.insert(node.clone(), Versioned { value, revision: 1 });
        }
        Arc::new(snapshot)
    }

    fn era() -> (watch::Sender<Arc<Snapshot>>, Era) {
        let node: NodeId = "alice/exec-1".parse().unwrap();
        let (sender, cluster) = watch::channel(snapshot(&node, Some(Epoch(2))));
        (sender, Era { node, epoch: Epoch(2), cluster })
    }

    #[test]
    fn an_image_is_read_no_further_once_nobody_can_use_it() {
        for (now, why) in
            [(Some(Epoch(3)), "taken in epoch 2, the node is in epoch 3"), (None, "alice/exec-1 was deleted")]
        {
            let (sender, era) = era();
            let node = era.node.clone();
            let image = [7; 100];
            let mut reader = While { era: era.clone(), reader: image.as_slice() };
            assert_eq!(digest_of(&mut reader).unwrap().1, 100);
            let mut reader = While { era, reader: image.as_slice().chain(io::repeat(0)) };
            reader.read_exact(&mut [0; 100]).unwrap();
            sender.send(snapshot(&node, now)).unwrap();
            assert_eq!(digest_of(&mut reader).unwrap_err().to_string(), why);
        }
    }

    #[tokio::test]
    async fn work_ends_with_the_epoch_and_with_no_other_change() {
        let (sender, era) = era();
        assert_eq!(era.bounds(std::future::ready(1)).await, Ok(1));
        let mut endless = std::pin::pin!(era.bounds(std::future::pending::<()>()));
        for change in ["none", "another node's"] {
            let once = std::future::poll_fn(|context| Poll::Ready(endless.as_mut().poll(context)));
            assert_eq!(once.await, Poll::Pending, "{change}");
            sender.send(snapshot(&era.node, Some(Epoch(2)))).unwrap();
        }
        sender.send(snapshot(&era.node, Some(Epoch(3)))).unwrap();
        assert_eq!(endless.await, Err("taken in epoch 2, the node is in epoch 3".to_owned()));
    }

    #[tokio::test]
    async fn work_that_is_over_before_it_begins_is_not_begun() {
        let (sender, era) = era();
        sender.send(snapshot(&era.node, Some(Epoch(3)))).unwrap();
        let begun = std::cell::Cell::new(false);
        let done = era.bounds(async { begun.set(true) }).await;
        assert!(done.is_err() && !begun.get());
    }
}
