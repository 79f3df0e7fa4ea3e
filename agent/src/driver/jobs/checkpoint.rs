//! Owns the taking of one checkpoint: saved into a tmpfs, sent to every backup's host, then made known.
//!
//! Promises: the record is written only after every host that it names has the image durably (SAFE-3), and only while
//! the node is still in the epoch that the state was taken in (SAFE-4). Must not do: keep images of its own.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use understudy_checkpoint::{Description, Expected};
use understudy_core::host::HostAction;
use understudy_core::ids::{Epoch, HostId, InstanceId, NodeId};
use understudy_core::records::{CheckpointId, CheckpointRecord, HostFacts, NodeRecord};
use understudy_core::units::MiB;
use understudy_store::{Committed, Condition, Txn};

use super::super::event::Outcome;
use super::super::{Parts, now};
use super::Job;
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

pub(super) async fn run(parts: &Arc<Parts>, job: &Job) -> Outcome {
    let HostAction::Checkpoint { node, instance, epoch, hosts } = &job.action else { return Outcome::Done };
    let Some(memory) = job.memory else { return Outcome::Failed("the instance is not known".to_owned()) };
    let id = CheckpointId { epoch: *epoch, sequence: job.sequence.unwrap_or(1) };
    match take(parts, node, (*instance, memory, job.address), id, hosts).await {
        Ok(outcome) => outcome,
        Err(reason) => Outcome::Failed(reason),
    }
}

async fn take(
    parts: &Arc<Parts>,
    node: &NodeId,
    (instance, memory, address): (InstanceId, MiB, Option<Ipv4Addr>),
    id: CheckpointId,
    hosts: &[HostId],
) -> Result<Outcome, String> {
    let scratch = Scratch(parts.scratch.join(format!("{instance}-{}-{}.image", id.epoch, id.sequence)));
    let taken = now().wall;
    let (task_parts, path) = (parts.clone(), scratch.0.clone());
    let saved = tokio::task::spawn_blocking(move || {
        let _ = std::fs::remove_file(&path);
        let saved =
            task_parts.hypervisor.save_memory(instance, &path, SAVE).map_err(|error| chain(&error))?;
        let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        let mut file = std::fs::File::open(&path).map_err(unreadable)?;
        let (digest, bytes) = understudy_checkpoint::digest_of(&mut file).map_err(unreadable)?;
        Ok::<_, String>((saved, Expected { bytes, digest }))
    });
    let (saved, expected) = saved.await.map_err(|error| error.to_string())??;
    let pause_ms = u64::try_from(saved.pause.as_millis()).unwrap_or(u64::MAX);
    // The address lives in the guest: whoever restores it must know where it will answer.
    let domain = address.map(|address| (ADDRESS.to_owned(), address.to_string())).into_iter().collect();
    let description = Description { instance, taken, pause_ms, memory, domain };
    let shipment =
        Shipment { node: node.clone(), id, bytes: expected.bytes, digest: expected.digest, description };
    let sending = hosts.iter().map(|host| {
        let (facts, path, shipment) = (reach(parts, host), scratch.0.clone(), shipment.clone());
        async move { peers::send_checkpoint(&facts.await?.api, &path, &shipment).await }
    });
    let sent = futures_util::future::join_all(sending).await;
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
    publish(parts, node, &record).await?;
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
