//! The heap of a component: memory is handed out from below, and only the last block is ever taken back.
//!
//! Owns the component's memory above its data. Every question has an instance of its own, which ends with the answer,
//! so to keep books of what is free would cost more than it could save. Promises: the block that was handed out last
//! grows and shrinks in place and can be given back, which is what a text that is being written and a scratch list
//! inside of a loop need. Must not do: ask for memory in small steps; each one is a call to the host's kernel.
#![cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "natively only its tests use it"))]

use std::alloc::Layout;
use std::cell::Cell;

/// Memory that ends somewhere.
trait Memory {
    /// The lowest address that the heap may use; not 0.
    fn base(&self) -> usize;

    /// Where the memory ends.
    fn end(&self) -> usize;

    /// Moves the end up by at least `bytes`, zeroed; whether that could be done.
    fn grow(&self, bytes: usize) -> bool;
}

/// What of a memory has been handed out.
struct Heap<M> {
    memory: M,
    /// Where the last block ends; 0 before there is one.
    top: Cell<usize>,
    /// Where the highest block ended that there ever was: from here on, the memory is as it came, zeroed.
    touched: Cell<usize>,
}

impl<M: Memory> Heap<M> {
    const fn new(memory: M) -> Self {
        Self { memory, top: Cell::new(0), touched: Cell::new(0) }
    }

    /// The address of a new block; none where there is no memory left.
    #[inline]
    fn take(&self, layout: Layout) -> Option<usize> {
        let block = self.top.get().max(self.memory.base()).checked_next_multiple_of(layout.align())?;
        self.reach(block.checked_add(layout.size())?).then_some(block)
    }

    /// As [`take`](Self::take), and how many bytes of the block's beginning have to be zeroed.
    #[inline]
    fn take_zeroed(&self, layout: Layout) -> Option<(usize, usize)> {
        let touched = self.touched.get();
        let block = self.take(layout)?;
        Some((block, touched.saturating_sub(block).min(layout.size())))
    }

    /// Takes the block back if it is the last one.
    #[inline]
    fn give_back(&self, block: usize, size: usize) {
        if block + size == self.top.get() {
            self.top.set(block);
        }
    }

    /// Makes the block `new` bytes long where it is; whether that could be done.
    #[inline]
    fn resize(&self, block: usize, size: usize, new: usize) -> bool {
        if block + size == self.top.get() {
            block.checked_add(new).is_some_and(|top| self.reach(top))
        } else {
            new <= size
        }
    }

    /// Puts the end of the last block at `top`.
    #[inline]
    fn reach(&self, top: usize) -> bool {
        let end = self.memory.end();
        if top > end && !self.memory.grow(top - end) {
            return false;
        }
        self.top.set(top);
        self.touched.set(self.touched.get().max(top));
        true
    }
}

#[cfg(target_family = "wasm")]
mod component {
    #![expect(unsafe_code, reason = "an allocator is an unsafe trait: see the safety comments")]

    use std::alloc::{GlobalAlloc, Layout};
    use std::arch::wasm32::{memory_grow, memory_size};
    use std::ptr::null_mut;

    use super::{Heap, Memory};

    const PAGE: usize = 64 << 10;
    /// Pages that are asked for at once, where a policy was built without enough from the beginning.
    const STEP: usize = 16;

    /// The component's one memory. The linker puts the stack and the data below the heap.
    struct Linear;

    impl Memory for Linear {
        #[inline]
        fn base(&self) -> usize {
            unsafe extern "C" {
                static __heap_base: u8;
            }
            (&raw const __heap_base).addr()
        }

        #[inline]
        fn end(&self) -> usize {
            memory_size::<0>() * PAGE
        }

        #[cold]
        fn grow(&self, bytes: usize) -> bool {
            let needed = bytes.div_ceil(PAGE);
            let step = needed.max(STEP);
            memory_grow::<0>(step) != usize::MAX || memory_grow::<0>(needed) != usize::MAX
        }
    }

    struct Global(Heap<Linear>);

    // SAFETY: a component has no threads: the target is built without them, and the daemon's engine has none.
    unsafe impl Sync for Global {}

    // SAFETY: blocks lie between the heap's base and the memory's end, where nothing else is; two never overlap,
    // because a block begins where the last one ended at the earliest, and that moves down only when the last block
    // itself is given back or shrinks. Nothing here panics or allocates.
    unsafe impl GlobalAlloc for Global {
        #[inline]
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            self.0.take(layout).map_or(null_mut(), std::ptr::with_exposed_provenance_mut)
        }

        #[inline]
        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            self.0.give_back(block.addr(), layout.size());
        }

        #[inline]
        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            let Some((block, used)) = self.0.take_zeroed(layout) else { return null_mut() };
            let block: *mut u8 = std::ptr::with_exposed_provenance_mut(block);
            // SAFETY: the block is at least that long, and is the caller's from here on.
            unsafe { block.write_bytes(0, used) };
            block
        }

        #[inline]
        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            if self.0.resize(block.addr(), layout.size(), size) {
                return block;
            }
            // SAFETY: the caller promises that `size` is not 0 and does not overflow with this alignment.
            let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
            if !new.is_null() {
                // SAFETY: the two blocks do not overlap, see above, and both are at least that long.
                unsafe { block.copy_to_nonoverlapping(new, layout.size().min(size)) };
            }
            new
        }
    }

    #[global_allocator]
    static HEAP: Global = Global(Heap::new(Linear));
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: usize = 1000;

    /// Memory with an end that moves up to a limit.
    struct Limited {
        end: Cell<usize>,
        limit: usize,
    }

    impl Memory for Limited {
        fn base(&self) -> usize {
            BASE
        }

        fn end(&self) -> usize {
            self.end.get()
        }

        fn grow(&self, bytes: usize) -> bool {
            let end = self.end.get() + bytes;
            if end > self.limit {
                return false;
            }
            self.end.set(end);
            true
        }
    }

    fn heap(limit: usize) -> Heap<Limited> {
        Heap::new(Limited { end: Cell::new(BASE), limit })
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn blocks_are_aligned_and_do_not_overlap() {
        let heap = heap(usize::MAX);
        let mut last = BASE;
        for (size, align) in [(1, 1), (8, 8), (3, 2), (40, 16), (0, 4), (5, 1), (4, 4096)] {
            let block = heap.take(layout(size, align)).unwrap();
            assert!(block >= last && block.is_multiple_of(align), "{size} bytes at {block} after {last}");
            last = block + size;
            assert!(heap.memory.end() >= last);
        }
    }

    #[test]
    fn only_the_last_block_is_taken_back() {
        let heap = heap(usize::MAX);
        let [first, second] = [8, 8].map(|size| heap.take(layout(size, 8)).unwrap());
        heap.give_back(first, 8);
        assert_eq!(heap.take(layout(8, 8)), Some(second + 8));
        heap.give_back(second + 8, 8);
        assert_eq!(heap.take(layout(8, 8)), Some(second + 8));
    }

    #[test]
    fn the_last_block_changes_its_size_in_place_and_another_only_downwards() {
        let heap = heap(BASE + 100);
        let [first, second] = [8, 8].map(|size| heap.take(layout(size, 1)).unwrap());
        assert!(heap.resize(second, 8, 50) && heap.resize(second, 50, 20));
        assert_eq!(heap.take(layout(1, 1)), Some(second + 20));
        assert!(!heap.resize(first, 8, 9) && heap.resize(first, 8, 7));
        assert!(!heap.resize(second + 20, 1, 100), "there is no room for that");
        assert_eq!(heap.take(layout(1, 1)), Some(second + 21), "what failed changed nothing");
    }

    #[test]
    fn what_was_used_before_is_zeroed_and_what_was_not_is_left_alone() {
        let heap = heap(usize::MAX);
        assert_eq!(heap.take_zeroed(layout(16, 1)), Some((BASE, 0)));
        heap.give_back(BASE, 16);
        assert_eq!(heap.take_zeroed(layout(10, 1)), Some((BASE, 10)));
        assert_eq!(heap.take_zeroed(layout(10, 1)), Some((BASE + 10, 6)));
        assert_eq!(heap.take_zeroed(layout(10, 1)), Some((BASE + 20, 0)));
    }

    #[test]
    fn where_no_memory_is_left_there_is_no_block() {
        let heap = heap(BASE + 10);
        assert_eq!(heap.take(layout(11, 1)), None);
        assert_eq!(heap.take(layout(10, 1)), Some(BASE));
        assert_eq!(heap.take(layout(1, 1)), None);
        assert_eq!(heap.take(layout(usize::MAX >> 1, 1)), None);
    }
}
