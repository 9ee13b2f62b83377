//! Merges the bytes of one piece into tokens: always the adjacent pair whose union has the lowest rank.
//!
//! Of equal ranks the leftmost pair goes first, as in tiktoken. Short pieces look for the minimum by
//! scanning, which is fastest; long ones use a heap, so that a piece of n bytes costs O(n log n) however
//! hostile it is.

use crate::vocabulary::Vocabulary;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Above this many bytes the heap wins over scanning.
const SCAN_BYTES_MAX: usize = 64;
/// The rank of a union that is no token.
const NO_TOKEN: u32 = u32::MAX;

/// Buffers reused from piece to piece.
#[derive(Default)]
pub(crate) struct Merger {
    parts: Vec<Part>,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A part of the piece: where it starts, and the rank of its union with the next part.
#[derive(Clone, Copy)]
struct Part {
    start: u32,
    rank: u32,
}

/// A part in the heap algorithm, stored under its first byte; `previous` and `next` are first bytes too.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    rank: u32,
}

/// A piece, and the ranks of its parts.
#[derive(Clone, Copy)]
struct Piece<'a> {
    vocabulary: &'a Vocabulary,
    bytes: &'a [u8],
    /// Unions longer than this are not made.
    union_bytes_max: usize,
}

impl Merger {
    /// Appends the ids of `piece` to `ids`.
    pub(crate) fn merge(&mut self, vocabulary: &Vocabulary, piece: &[u8], ids: &mut Vec<u32>) {
        self.merge_piece(Piece { vocabulary, bytes: piece, union_bytes_max: usize::MAX }, ids);
    }

    /// The two tokens whose union completes `token`; `None` for one byte, and where merging never gets there.
    ///
    /// There is only one such pair: whatever stands around the token, its own bytes merge in the same order.
    pub(crate) fn last_merge(&mut self, vocabulary: &Vocabulary, token: &[u8]) -> Option<(u32, u32)> {
        let mut ids = Vec::new();
        self.merge_piece(Piece { vocabulary, bytes: token, union_bytes_max: token.len() - 1 }, &mut ids);
        <[u32; 2]>::try_from(ids).ok().map(|[left, right]| (left, right))
    }

    fn merge_piece(&mut self, piece: Piece<'_>, ids: &mut Vec<u32>) {
        match piece.bytes.len() {
            0..=SCAN_BYTES_MAX => self.merge_by_scan(piece, ids),
            _ => self.merge_by_heap(piece, ids),
        }
    }

    fn merge_by_scan(&mut self, piece: Piece<'_>, ids: &mut Vec<u32>) {
        let parts = &mut self.parts;
        parts.clear();
        // One part more than there are bytes, so that each part's end is the next one's start.
        parts.extend((0..=piece.bytes.len() as u32).map(|start| Part { start, rank: NO_TOKEN }));
        (0..piece.bytes.len()).for_each(|at| parts[at].rank = union_rank(piece, parts, at));
        while let Some(at) = leftmost_minimum(parts) {
            parts.remove(at + 1);
            parts[at].rank = union_rank(piece, parts, at);
            if at > 0 {
                parts[at - 1].rank = union_rank(piece, parts, at - 1);
            }
        }
        ids.extend(parts.windows(2).map(|pair| piece.part_id(pair[0].start, pair[1].start)));
    }

    fn merge_by_heap(&mut self, piece: Piece<'_>, ids: &mut Vec<u32>) {
        let end = piece.bytes.len() as u32;
        self.links.clear();
        self.links.extend((0..end).map(|start| Link {
            previous: start.wrapping_sub(1),
            next: start + 1,
            rank: NO_TOKEN,
        }));
        self.heap.clear();
        (0..end).for_each(|part| self.refresh(piece, part));
        while let Some(Reverse((rank, part))) = self.heap.pop() {
            // Entries stay when their union changes; a stale one no longer agrees with its link.
            if self.links[part as usize].rank == rank {
                self.unite_with_next(part, end);
                self.refresh(piece, part);
                let previous = self.links[part as usize].previous;
                if previous < end {
                    self.refresh(piece, previous);
                }
            }
        }
        let mut start = 0;
        while start < end {
            let next = self.links[start as usize].next;
            ids.push(piece.part_id(start, next));
            start = next;
        }
    }

    /// Computes the rank of the union of `part` with its next part and queues it.
    fn refresh(&mut self, piece: Piece<'_>, part: u32) {
        let second = self.links[part as usize].next as usize;
        let rank = self.links.get(second).map_or(NO_TOKEN, |link| piece.rank(part, link.next));
        self.links[part as usize].rank = rank;
        if rank != NO_TOKEN {
            self.heap.push(Reverse((rank, part)));
        }
    }

    fn unite_with_next(&mut self, part: u32, end: u32) {
        let second = self.links[part as usize].next;
        let after = self.links[second as usize].next;
        self.links[second as usize].rank = NO_TOKEN;
        self.links[part as usize].next = after;
        if after < end {
            self.links[after as usize].previous = part;
        }
    }
}

impl Piece<'_> {
    /// The rank of these bytes of the piece as a union of two parts.
    #[inline]
    fn rank(&self, from: u32, to: u32) -> u32 {
        let bytes = &self.bytes[from as usize..to as usize];
        match bytes.len() <= self.union_bytes_max {
            true => self.vocabulary.id(bytes).unwrap_or(NO_TOKEN),
            false => NO_TOKEN,
        }
    }

    /// The id of a part: every byte is a token, and unions are only made where they are tokens.
    fn part_id(&self, from: u32, to: u32) -> u32 {
        self.vocabulary.id(&self.bytes[from as usize..to as usize]).expect("every part is a token")
    }
}

/// The rank of the union of parts `at` and `at + 1`.
fn union_rank(piece: Piece<'_>, parts: &[Part], at: usize) -> u32 {
    parts.get(at + 2).map_or(NO_TOKEN, |after| piece.rank(parts[at].start, after.start))
}

fn leftmost_minimum(parts: &[Part]) -> Option<usize> {
    let (at, part) = parts.iter().enumerate().min_by_key(|(_, part)| part.rank)?;
    (part.rank != NO_TOKEN).then_some(at)
}
