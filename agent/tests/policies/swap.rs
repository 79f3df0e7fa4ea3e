//! A file that is replaced again and again while questions are asked without pause: none is dropped, none is answered by
//! anything but the set that its asker saw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use understudy::runtime::{admission, trial};
use understudy_core::model::ids::NodeId;
use understudy_core::model::records::NodeRecord;
use understudy_core::model::units::UnixMillis;
use understudy_policy::Digest;
use understudy_store::MemoryStore;

use crate::generation;
use crate::rig::samples::{question, spec};
use crate::rig::{Agent, active, guest, wait};

/// How often the file is replaced by one that can be used; before each, once by one that cannot.
const SWAPS: u64 = 6;

/// What each component's answer ends with.
type Answers = Arc<Mutex<BTreeMap<String, u32>>>;

/// A policy that picks the first host, then `row`, by which it is known. Core asks for as many picks as there are hosts.
fn picks(row: u32, answers: &Answers) -> Vec<u8> {
    let component = guest(
        &format!(
            "(i32.store (i32.const 2048) (i32.const 0)) (i32.store (i32.const 2064) (i32.const {row}))
            (i32.store (i32.const 1028) (i32.const 2048)) (i32.store (i32.const 1032) (i32.const 2))"
        ),
        "1",
    );
    answers.lock().unwrap().insert(Digest::of(&component).to_string(), row);
    component
}

/// Asks what each snapshot says decides, from a thread. Gives how many questions there were.
fn ask(agent: &Agent, answers: &Answers, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (snapshots, answers, stop) = (agent.snapshots.clone(), answers.clone(), stop.clone());
    std::thread::spawn(move || {
        let (question, mut asked, mut newest) = (question("villain"), 0, 0);
        while !stop.load(Ordering::Relaxed) {
            let snapshot = snapshots.borrow().clone();
            let set = &snapshot.sets.active.as_ref().unwrap().value;
            assert!(set.generation >= newest, "{} decides after {newest}", set.generation);
            newest = set.generation;
            let answered = snapshot.deciding.set.ask_placement(&question);
            let by = answered.by.expect("a policy decides").digest.to_string();
            assert_eq!(by, set.components["p"], "another than the snapshot's set was asked");
            let picks: Vec<u32> = answered.outcome.unwrap().picks.iter().map(|pick| pick.index).collect();
            assert_eq!(picks, [0, answers.lock().unwrap()[&by]], "{by} answered what another would");
            asked += 1;
        }
        asked
    })
}

/// Asks whether a terminal has room, as the interface does: through rounds with their circuit breaker and their records.
fn admit(agent: &Agent, stop: &Arc<AtomicBool>, admitted: &Arc<AtomicU64>) -> tokio::task::JoinHandle<()> {
    let (parts, snapshots) = (agent.parts.clone(), agent.snapshots.clone());
    let (stop, admitted) = (stop.clone(), admitted.clone());
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    let id: NodeId = "villain/display".parse().unwrap();
    let new = BTreeMap::from([(id, record)]);
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            let snapshot = snapshots.borrow().clone();
            let trial = trial(&parts, &snapshot.deciding, &snapshot.view, &new);
            admission(&parts, &snapshot.deciding, trial).await.expect("there is room");
            admitted.fetch_add(1, Ordering::Relaxed);
        }
    })
}

/// Questions of a kind that the built-in rule decided, or that a policy did not answer, by the metrics.
fn failures(agent: &Agent) -> Vec<String> {
    let text = agent.parts.metrics.text(UnixMillis(0));
    let failed = |line: &&str| {
        line.starts_with("understudy_policy_failures_total")
            || (line.starts_with("understudy_policy_built_in_total") && line.contains("\"placement\""))
    };
    text.lines().filter(failed).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_under_questions_drops_none_and_mixes_none() {
    let (home, store) = (tempfile::tempdir().unwrap(), MemoryStore::new());
    let agent = Agent::start(home.path(), "host1", &store, "deadline_ms = 10000").await;
    let answers = Answers::default();
    agent.put("p.wasm", &picks(100, &answers));
    generation(&store, 1).await;
    let first = wait("the snapshot has it", || async {
        Some(agent.snapshots.borrow().clone()).filter(|seen| seen.deciding.generation == 1)
    })
    .await;
    let (stop, admitted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let threads = [(); 2].map(|()| ask(&agent, &answers, &stop));
    let admitting = admit(&agent, &stop, &admitted);

    for swap in 1..=SWAPS {
        let good = picks(100 + u32::try_from(swap).unwrap(), &answers);
        agent.put("p.wasm", &good[..good.len() / 2]);
        wait("the bad file is told", || async {
            agent.status().await.faults.iter().any(|fault| fault.contains("p.wasm")).then_some(())
        })
        .await;
        assert_eq!(active(&store).await.unwrap().generation, swap, "the old one decides");
        let before = admitted.load(Ordering::Relaxed);
        agent.put("p.wasm", &good);
        generation(&store, swap + 1).await;
        // Each set is asked: questions that began after the swap end before the next.
        wait("it is asked", || async {
            let seen = agent.snapshots.borrow().deciding.generation > swap;
            (seen && admitted.load(Ordering::Relaxed) > before + 1).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let asked: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    admitting.await.unwrap();
    let admitted = admitted.load(Ordering::Relaxed);
    eprintln!("{SWAPS} swaps under {asked:?} questions and {admitted} admissions");
    assert!(asked.iter().all(|asked| *asked > SWAPS) && admitted > SWAPS);
    assert_eq!(failures(&agent), Vec::<String>::new());

    // Whoever began before the first swap and asks only now is still answered by what it saw.
    let late = first.deciding.set.ask_placement(&question("villain"));
    assert_eq!(
        late.by.unwrap().digest.to_string(),
        first.sets.active.as_ref().unwrap().value.components["p"]
    );
    assert_eq!(late.outcome.unwrap().picks[1].index, 100);
    let id: NodeId = "late/display".parse().unwrap();
    let mut record = NodeRecord::new(spec(), "token".to_owned());
    record.spec.labels.insert("backups".to_owned(), "0".to_owned());
    // The trial begins with the cluster of now: a host that was last heard of before the swaps takes nothing.
    let view = agent.snapshots.borrow().view.clone();
    let trial = trial(&agent.parts, &first.deciding, &view, &BTreeMap::from([(id, record)]));
    admission(&agent.parts, &first.deciding, trial).await.unwrap();
    assert_eq!(failures(&agent), Vec::<String>::new(), "no built-in rule for who looked before the swap");
}
