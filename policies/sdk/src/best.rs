//! Owns the choice of the best few among many.

/// Keeps the lowest of what is offered, at most as many as are wanted.
///
/// Sorting ten thousand candidates to use ten is most of an answer's time, and keeping them all is most of its memory,
/// each page of which a fresh instance gets anew. So what is worse than the worst that would be kept is dropped at
/// once, and there is room for twice as many as are wanted: cutting back is one selection for many offers.
pub(crate) struct Best<T> {
    wanted: usize,
    kept: Vec<T>,
    /// The worst that is of use, once enough were offered, lies at `wanted - 1`.
    full: bool,
}

impl<T: Ord> Best<T> {
    /// At most `offers` will come.
    pub(crate) fn new(wanted: usize, offers: usize) -> Self {
        Self { wanted, kept: Vec::with_capacity(wanted.saturating_mul(2).min(offers)), full: false }
    }

    #[inline]
    pub(crate) fn offer(&mut self, candidate: T) {
        if self.full && self.kept[self.wanted - 1] <= candidate {
            return;
        }
        self.kept.push(candidate);
        if self.kept.len() >= self.wanted.saturating_mul(2) {
            self.cut();
        }
    }

    #[inline(never)]
    fn cut(&mut self) {
        if self.wanted == 0 {
            self.kept.clear();
        } else if self.kept.len() > self.wanted {
            self.kept.select_nth_unstable(self.wanted - 1);
            self.kept.truncate(self.wanted);
            self.full = true;
        }
    }

    /// The lowest first.
    pub(crate) fn finish(mut self) -> Vec<T> {
        self.cut();
        self.kept.sort_unstable();
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::Best;

    #[test]
    fn the_best_are_those_that_sorting_all_would_give() {
        // A linear congruence visits every number once, in a wild order.
        let numbers: Vec<u32> = (0..1000).map(|i| (i * 7919 + 13) % 1009).collect();
        for n in [0, 1, 2, 3, 10, 999, 1000] {
            for wanted in [0, 1, 2, 3, 16, 500, 999, 1000, 5000, usize::MAX] {
                let mut best = Best::new(wanted, n);
                numbers[..n].iter().for_each(|number| best.offer(*number));
                let mut expected = numbers[..n].to_vec();
                expected.sort_unstable();
                expected.truncate(wanted);
                assert_eq!(best.finish(), expected, "{wanted} of {n}");
            }
        }
    }
}
