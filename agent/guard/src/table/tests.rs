//! The table across the death of a guard: killed between any two stores, damaged, of another boot or release.
use std::cell::RefCell;

use super::*;

const BOOT: [u64; 2] = [0x1111, 0x2222];
const CAPACITY: usize = 4;

/// Words in memory that remember every store, so that each prefix of them can be looked at.
struct Recorder {
    words: RefCell<Vec<u64>>,
    stores: RefCell<Vec<(usize, u64)>>,
}

impl Recorder {
    fn new(words: Vec<u64>) -> Self {
        Self { words: RefCell::new(words), stores: RefCell::new(Vec::new()) }
    }
}

impl Words for Recorder {
    fn load(&self, at: usize) -> u64 {
        self.words.borrow()[at]
    }

    fn store(&self, at: usize, value: u64) {
        self.words.borrow_mut()[at] = value;
        self.stores.borrow_mut().push((at, value));
    }
}

fn table(content: Vec<u64>) -> Table<Recorder> {
    Table { words: Recorder::new(content), capacity: CAPACITY }
}

fn fresh() -> Table<Recorder> {
    let table = table(vec![0; words(CAPACITY)]);
    assert_eq!(table.find(BOOT), Ok(Found::Fresh));
    table.begin(BOOT);
    table
}

fn content(table: &Table<Recorder>) -> Vec<u64> {
    table.words.words.borrow().clone()
}

/// What a successor finds when the guard is killed after each single store of `operation`.
fn every_death(table: &Table<Recorder>, operation: impl Fn(&Table<Recorder>)) -> Vec<Table<Recorder>> {
    let mut now = content(table);
    table.words.stores.borrow_mut().clear();
    operation(table);
    let mut found = vec![self::table(now.clone())];
    for (at, value) in table.words.stores.borrow().iter() {
        now[*at] = *value;
        found.push(self::table(now.clone()));
    }
    assert!(found.len() > 2, "the operation stores something");
    found
}

fn record(number: u8) -> Record {
    let process = Process { pid: 4_000_000 + u32::from(number), start_time: 1 << 40, inode: 1 << 33 };
    let class = if number.is_multiple_of(2) { Class::RamOnly } else { Class::SharedDisk };
    Record { uuid: [number; 16], epoch: u64::MAX - u64::from(number), process, class }
}

const fn at(boottime_ns: u64, lease: u64) -> Deadline {
    Deadline { boottime_ns, lease }
}

#[test]
fn an_entry_reads_back_as_it_was_written() {
    let table = fresh();
    for slot in 0..CAPACITY {
        assert_eq!(table.read(slot), Ok(None));
        table.write(slot, &record(slot as u8));
    }
    table.clear(2);
    assert_eq!(table.find(BOOT), Ok(Found::Predecessor));
    for slot in [0, 1, 3] {
        assert_eq!(table.read(slot), Ok(Some(record(slot as u8))));
    }
    assert_eq!(table.read(2), Ok(None));
}

#[test]
fn a_guard_killed_while_it_writes_an_entry_leaves_it_whole_or_not_there() {
    let table = fresh();
    table.write(0, &record(0));
    table.write(1, &record(1));
    table.clear(1);
    let deaths = every_death(&table, |table| table.write(1, &record(7)));
    let last = deaths.len() - 1;
    for (stores, found) in deaths.iter().enumerate() {
        assert_eq!(found.find(BOOT), Ok(Found::Predecessor), "after {stores} stores");
        assert_eq!(found.read(0), Ok(Some(record(0))), "after {stores} stores");
        let expected = (stores == last).then(|| record(7));
        assert_eq!(found.read(1), Ok(expected), "after {stores} stores");
    }
}

#[test]
fn a_guard_killed_while_it_moves_the_deadline_leaves_the_older_or_the_newer() {
    let table = fresh();
    let mut older = None;
    for newer in [at(1_000, 1), at(2_000, 1), at(1_500, 2), at(9_000, 3), at(9_001, 3)] {
        let deaths = every_death(&table, |table| table.set_deadline(newer));
        let last = deaths.len() - 1;
        for (stores, found) in deaths.iter().enumerate() {
            assert_eq!(found.find(BOOT), Ok(Found::Predecessor), "{newer:?} after {stores} stores");
            let expected = if stores == last { Some(newer) } else { older };
            assert_eq!(found.deadline(), expected, "{newer:?} after {stores} stores");
        }
        older = Some(newer);
    }
}

#[test]
fn a_guard_killed_while_it_begins_a_table_leaves_a_fresh_one() {
    let old = fresh();
    old.write(0, &record(0));
    old.set_deadline(at(5, 5));
    let next_boot = [3, 4];
    assert_eq!(old.find(next_boot), Ok(Found::Fresh));
    let deaths = every_death(&old, |table| table.begin(next_boot));
    let last = deaths.len() - 1;
    for (stores, found) in deaths.iter().enumerate() {
        let expected = if stores == last { Found::Predecessor } else { Found::Fresh };
        assert_eq!(found.find(next_boot), Ok(expected), "after {stores} stores");
    }
    assert_eq!(deaths[last].read(0), Ok(None));
    assert_eq!(deaths[last].deadline(), None);
}

#[test]
fn any_flipped_bit_of_header_deadline_or_entry_is_noticed() {
    let table = fresh();
    table.set_deadline(at(1_000, 1));
    table.write(0, &record(0));
    let whole = content(&table);
    for word in [0, 1, 3, 4, 16, 17, 18, 19, 65, 66, 67, 68, 69, 70, 71] {
        for bit in 0..64 {
            let mut damaged = whole.clone();
            damaged[word] ^= 1 << bit;
            let found = self::table(damaged);
            if word >= ENTRIES {
                assert_eq!(found.read(0), Err(()), "word {word} bit {bit}");
            } else {
                let outcome = found.find(BOOT);
                // A flipped version is another version: this guard does not start.
                assert!(matches!(outcome, Ok(Found::Damaged) | Err(_)), "word {word} bit {bit}: {outcome:?}");
                assert_eq!(outcome.is_err(), word == 0 && bit < 8, "word {word} bit {bit}");
            }
        }
    }
}

#[test]
fn a_file_is_one_guards_alone_and_keeps_what_was_written() {
    let path = std::env::temp_dir().join(format!("understudy-guard-table-{}", std::process::id()));
    let (table, found) = Table::open(&path, BOOT, CAPACITY).unwrap();
    assert_eq!(found, Found::Fresh);
    table.write(3, &record(3));
    table.set_deadline(at(7, 8));
    assert!(matches!(Table::open(&path, BOOT, CAPACITY), Err(TableError::Held(_))));
    drop(table);
    let (table, found) = Table::open(&path, BOOT, CAPACITY).unwrap();
    assert_eq!(found, Found::Predecessor);
    assert_eq!(table.read(3), Ok(Some(record(3))));
    assert_eq!(table.deadline(), Some(at(7, 8)));
    drop(table);
    let (table, found) = Table::open(&path, BOOT, CAPACITY + 1).unwrap();
    assert_eq!(found, Found::Damaged, "a table of another capacity is not taken for one's own");
    drop(table);
    std::fs::remove_file(path).unwrap();
}
