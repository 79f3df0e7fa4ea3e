//! Owns the list of hosts in a question: rows that questions share with each other.
//!
//! Promises: a copy costs nothing, whatever the number of hosts; it reads and is written as a plain list. Must not do:
//! order the rows (the leader keeps them in the order of their names).

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::HostRow;
use crate::ids::HostId;

/// One row for each host.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rows(Arc<Vec<Arc<HostRow>>>);

impl Rows {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&HostRow> {
        self.0.get(at).map(Arc::as_ref)
    }

    /// The place of a host. Rows are in the order of their names, unless whoever made them did not keep to that.
    #[must_use]
    pub fn place_of(&self, host: &HostId) -> Option<usize> {
        let found = self.0.binary_search_by(|row| row.host.cmp(host)).ok();
        found.or_else(|| self.0.iter().position(|row| row.host == *host))
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &HostRow> + Clone {
        self.0.iter().map(Arc::as_ref)
    }

    /// All of them, so many at a time.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = &[Arc<HostRow>]> {
        self.0.chunks(size)
    }

    /// All of them, to be changed: those that other questions share are copied first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut HostRow> {
        Arc::make_mut(&mut self.0).iter_mut().map(Arc::make_mut)
    }

    /// Puts another row in the place of one.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn replace(&mut self, at: usize, row: Arc<HostRow>) {
        Arc::make_mut(&mut self.0)[at] = row;
    }
}

impl Index<usize> for Rows {
    type Output = HostRow;

    fn index(&self, at: usize) -> &HostRow {
        &self.0[at]
    }
}

impl IndexMut<usize> for Rows {
    fn index_mut(&mut self, at: usize) -> &mut HostRow {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0)[at])
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a HostRow;
    type IntoIter = std::iter::Map<std::slice::Iter<'a, Arc<HostRow>>, fn(&Arc<HostRow>) -> &HostRow>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(Arc::as_ref)
    }
}

impl FromIterator<Arc<HostRow>> for Rows {
    fn from_iter<T: IntoIterator<Item = Arc<HostRow>>>(rows: T) -> Self {
        Self(Arc::new(rows.into_iter().collect()))
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
