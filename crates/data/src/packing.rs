//! Best-fit packing: lays documents of all lengths into rows of one length with little padding
//! (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).
//!
//! A document of n tokens holds n - 1 predictions: token t is the input for target t + 1. A [`Piece`] is a run of
//! *inputs*; its last target is the token after it, which may be the first input of the next piece. So a document
//! that is cut loses no prediction at the cut, every token but a document's last is an input exactly once, every
//! token but its first is a target exactly once, and no target ever lies in another document.

use std::collections::BTreeMap;

/// A run of inputs from one document. Its targets are the tokens `start + 1 ..= start + len` of that document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the document in the store.
    pub document: usize,
    /// First input, counted in tokens from the start of the document.
    pub start: usize,
    /// Number of inputs, at least one and at most the sequence length.
    pub len: usize,
}

/// All documents laid into rows of `sequence_length` inputs each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    sequence_length: usize,
    /// The pieces of all rows, one row after the other.
    pieces: Vec<Piece>,
    /// Row `r` is `pieces[row_ends[r - 1]..row_ends[r]]`.
    row_ends: Vec<usize>,
    inputs: u64,
}

impl Packing {
    /// Packs documents of the given lengths (in tokens) by best fit, longest piece first.
    ///
    /// A pure function of its arguments, O(n log n). Documents longer than a row are cut into full rows and a rest;
    /// documents of fewer than two tokens predict nothing and get no piece.
    pub fn best_fit(document_lens: impl IntoIterator<Item = usize>, sequence_length: usize) -> Self {
        assert!(sequence_length > 0, "sequence_length must be at least 1");
        let mut pieces = cut(document_lens, sequence_length);
        // Stable, so that equal lengths keep the order of the store.
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len));
        let (row_of_piece, rows) = assign(&pieces, sequence_length);
        let inputs = pieces.iter().map(|piece| piece.len as u64).sum();
        let (pieces, row_ends) = group(&pieces, &row_of_piece, rows);
        Packing { sequence_length, pieces, row_ends, inputs }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.row_ends.len()
    }

    /// Inputs per row.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// The pieces of one row, longest first. What they leave free at the end of the row is padding.
    pub fn row(&self, row: usize) -> &[Piece] {
        assert!(row < self.rows(), "row {row} of a packing with {} rows", self.rows());
        let start = if row == 0 { 0 } else { self.row_ends[row - 1] };
        &self.pieces[start..self.row_ends[row]]
    }

    /// Number of inputs (equally: of targets) in all rows, without padding.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    /// Share of all positions that is padding, 0 to 1.
    pub fn padding(&self) -> f64 {
        let positions = self.rows() as u64 * self.sequence_length as u64;
        if positions == 0 { 0.0 } else { (positions - self.inputs) as f64 / positions as f64 }
    }
}

/// Full rows from the front of each document, then its rest.
fn cut(document_lens: impl IntoIterator<Item = usize>, sequence_length: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (document, len) in document_lens.into_iter().enumerate() {
        let inputs = len.saturating_sub(1);
        for start in (0..inputs).step_by(sequence_length) {
            pieces.push(Piece { document, start, len: sequence_length.min(inputs - start) });
        }
    }
    pieces
}

/// For each piece (longest first) the fullest row that still has room for it; a new row if none has.
fn assign(pieces: &[Piece], sequence_length: usize) -> (Vec<usize>, usize) {
    let mut row_of_piece = Vec::with_capacity(pieces.len());
    let mut rows = 0;
    // Open rows by the room they have left. The rows of one room are a stack: any choice is a best fit.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for piece in pieces {
        let (row, room) = match open.range_mut(piece.len..).next() {
            Some((&room, stack)) => {
                let row = stack.pop().expect("empty stacks are removed");
                if stack.is_empty() {
                    open.remove(&room);
                }
                (row, room)
            }
            None => {
                rows += 1;
                (rows - 1, sequence_length)
            }
        };
        row_of_piece.push(row);
        if room > piece.len {
            open.entry(room - piece.len).or_default().push(row);
        }
    }
    (row_of_piece, rows)
}

/// Sorts the pieces by row (counting sort, stable) and says where each row ends.
fn group(pieces: &[Piece], row_of_piece: &[usize], rows: usize) -> (Vec<Piece>, Vec<usize>) {
    let mut row_ends = vec![0; rows];
    row_of_piece.iter().for_each(|&row| row_ends[row] += 1);
    let mut total = 0;
    let mut next: Vec<usize> = Vec::with_capacity(rows);
    for end in &mut row_ends {
        next.push(total);
        total += *end;
        *end = total;
    }
    let mut grouped = pieces.to_vec();
    for (&piece, &row) in pieces.iter().zip(row_of_piece) {
        grouped[next[row]] = piece;
        next[row] += 1;
    }
    (grouped, row_ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn every_prediction_is_made_exactly_once(
            lens in prop::collection::vec(0_usize..300, 0..200), sequence_length in 1_usize..97,
        ) {
            let packing = Packing::best_fit(lens.iter().copied(), sequence_length);
            let mut seen: Vec<Vec<u8>> = lens.iter().map(|&n| vec![0; n.saturating_sub(1)]).collect();
            for row in 0..packing.rows() {
                let pieces = packing.row(row);
                prop_assert!(!pieces.is_empty());
                prop_assert!(pieces.iter().map(|p| p.len).sum::<usize>() <= sequence_length);
                for piece in pieces {
                    prop_assert!(piece.len > 0);
                    seen[piece.document][piece.start..piece.start + piece.len].iter_mut().for_each(|n| *n += 1);
                }
            }
            prop_assert!(seen.iter().flatten().all(|&n| n == 1));
            prop_assert_eq!(packing.inputs() as usize, seen.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(&packing, &Packing::best_fit(lens.iter().copied(), sequence_length));
        }

        /// A new row is opened only for a piece that fits in no other, so any two rows together are more than full.
        #[test]
        fn rows_stay_within_the_proven_bound(
            lens in prop::collection::vec(2_usize..64, 1..300), sequence_length in 64_usize..257,
        ) {
            let packing = Packing::best_fit(lens.iter().copied(), sequence_length);
            let least = (packing.inputs() as f64 / sequence_length as f64).ceil();
            prop_assert!((packing.rows() as f64) <= 2.0 * least);
        }
    }

    #[test]
    fn small_cases() {
        let check = |lens: &[usize], sequence_length, rows: usize| {
            let packing = Packing::best_fit(lens.iter().copied(), sequence_length);
            assert_eq!(packing.rows(), rows, "{lens:?} in rows of {sequence_length}");
        };
        check(&[], 8, 0);
        check(&[0, 1], 8, 0);
        check(&[2], 8, 1);
        check(&[9], 8, 1);
        check(&[10], 8, 2);
        check(&[17, 17], 8, 4);
        // 5+3, 4+4, 8: first fit in the order of arrival would need four rows.
        check(&[5, 4, 5, 6, 9], 8, 3);
    }

    #[test]
    fn many_short_documents_leave_little_padding() {
        let lens = (0..10_000_u64).map(|i| 2 + (crate::stable_hash::mix(i) % 700) as usize);
        let packing = Packing::best_fit(lens, 512);
        assert!(packing.padding() < 0.005, "{}", packing.padding());
    }
}
