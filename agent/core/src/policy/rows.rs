//! Owns the list of hosts in a question: rows that questions share with each other.
//!
//! Promises: a copy costs nothing, whatever the number of hosts; it reads and is written as a plain list. Must not do:
//! order the rows (the leader keeps them in the order of their names).
//!
//! Cost, with N rows: a row that is replaced while another question shares the list copies N / 64 + 64 pointers.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::HostRow;
use crate::model::ids::HostId;

/// Rows that are shared together: of 10,000 a replaced row copies 221 pointers instead of all, and counts as many
/// references, which lie all over memory.
const CHUNK: usize = 64;

type Chunk = Arc<Vec<Arc<HostRow>>>;

/// One row for each host. All chunks but the last are full.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rows(Arc<Vec<Chunk>>);

/// All rows, one after the other.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    chunks: std::slice::Iter<'a, Chunk>,
    rows: std::slice::Iter<'a, Arc<HostRow>>,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a HostRow;

    fn next(&mut self) -> Option<&'a HostRow> {
        loop {
            if let Some(row) = self.rows.next() {
                self.left -= 1;
                return Some(row);
            }
            self.rows = self.chunks.next()?.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl Rows {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * CHUNK + last.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&HostRow> {
        self.0.get(at / CHUNK)?.get(at % CHUNK).map(Arc::as_ref)
    }

    /// The place of a host. Rows are in the order of their names, unless whoever made them did not keep to that.
    #[must_use]
    pub fn place_of(&self, host: &HostId) -> Option<usize> {
        let later = self.0.partition_point(|chunk| chunk.first().is_some_and(|row| row.host <= *host));
        let found = later.checked_sub(1).and_then(|chunk| {
            let place = self.0[chunk].binary_search_by(|row| row.host.cmp(host)).ok()?;
            Some(chunk * CHUNK + place)
        });
        found.or_else(|| self.iter().position(|row| row.host == *host))
    }

    /// All of them.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { chunks: self.0.iter(), rows: [].iter(), left: self.len() }
    }

    /// All of them, at most so many at a time.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = &[Arc<HostRow>]> {
        self.0.iter().flat_map(move |chunk| chunk.chunks(size))
    }

    /// All of them, to be changed: those that other questions share are copied first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut HostRow> {
        let chunks = Arc::make_mut(&mut self.0).iter_mut();
        chunks.flat_map(|chunk| Arc::make_mut(chunk).iter_mut().map(Arc::make_mut))
    }

    /// Puts another row in the place of one.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn replace(&mut self, at: usize, row: Arc<HostRow>) {
        *self.shared_mut(at) = row;
    }

    fn shared_mut(&mut self, at: usize) -> &mut Arc<HostRow> {
        let chunk = &mut Arc::make_mut(&mut self.0)[at / CHUNK];
        &mut Arc::make_mut(chunk)[at % CHUNK]
    }
}

impl Index<usize> for Rows {
    type Output = HostRow;

    fn index(&self, at: usize) -> &HostRow {
        &self.0[at / CHUNK][at % CHUNK]
    }
}

impl IndexMut<usize> for Rows {
    fn index_mut(&mut self, at: usize) -> &mut HostRow {
        Arc::make_mut(self.shared_mut(at))
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a HostRow;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl FromIterator<Arc<HostRow>> for Rows {
    fn from_iter<T: IntoIterator<Item = Arc<HostRow>>>(rows: T) -> Self {
        let mut rows = rows.into_iter().peekable();
        let mut chunks = Vec::new();
        while rows.peek().is_some() {
            chunks.push(Arc::new(rows.by_ref().take(CHUNK).collect()));
        }
        Self(Arc::new(chunks))
    }
}

impl FromIterator<HostRow> for Rows {
    fn from_iter<T: IntoIterator<Item = HostRow>>(rows: T) -> Self {
        rows.into_iter().map(Arc::new).collect()
    }
}

impl From<Vec<HostRow>> for Rows {
    fn from(rows: Vec<HostRow>) -> Self {
        rows.into_iter().collect()
    }
}

impl<const N: usize> From<[HostRow; N]> for Rows {
    fn from(rows: [HostRow; N]) -> Self {
        rows.into_iter().collect()
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<HostRow>::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Cluster, host, node};
    use crate::leader::explain;

    #[test]
    fn rows_in_chunks_are_a_plain_list() {
        let cluster = Cluster::of(1).with(&["alice/display"]);
        let explained = explain(&cluster.view, &node("alice/display"), &cluster.bounds, cluster.now).unwrap();
        let row = &explained.question.hosts[0];
        for count in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let plain: Vec<HostRow> = (0..count)
                .map(|number| HostRow { host: host(&format!("host-{number:03}")), ..row.clone() })
                .collect();
            let rows = Rows::from(plain.clone());
            assert_eq!((rows.len(), rows.is_empty()), (count, count == 0));
            assert_eq!(rows.iter().len(), count);
            assert!(rows.iter().eq(&plain));
            let in_parts: Vec<HostRow> = rows.chunks(50).flatten().map(|row| row.as_ref().clone()).collect();
            assert_eq!(in_parts, plain);
            for (at, row) in plain.iter().enumerate() {
                assert_eq!((&rows[at], rows.get(at)), (row, Some(row)));
                assert_eq!(rows.place_of(&row.host), Some(at));
            }
            assert_eq!(rows.get(count), None);
            assert_eq!(rows.place_of(&host("nobody")), None);
            for at in 0..count {
                let (mut changed, mut expected) = (rows.clone(), plain.clone());
                changed[at].load_permille += 1;
                expected[at].load_permille += 1;
                assert!(changed.iter().eq(&expected));
                assert_eq!(changed.cmp(&rows), expected.cmp(&plain));
            }
            assert!(rows.iter().eq(&plain), "what was copied has changed");
        }
    }
}
