//! Sums over micro-batches in one canonical order.
//!
//! Inside a micro-batch kernels add tokens in order. Over micro-batches the sum is a binary tree by global
//! micro-batch index: a rank that holds an aligned power of two of them computes a subtree, so every layout over
//! ranks gives the same bits.

/// Adds up values pushed in the order of their index, as a balanced binary tree with the first value leftmost.
pub struct PairwiseSum<T> {
    /// Finished subtrees, with their sizes: distinct powers of two, largest first.
    subtrees: Vec<(usize, T)>,
    add: fn(T, T) -> T,
}

impl<T> PairwiseSum<T> {
    /// `add(left, right)` joins two subtrees.
    pub fn new(add: fn(T, T) -> T) -> Self {
        Self { subtrees: Vec::new(), add }
    }

    /// The next value.
    pub fn push(&mut self, value: T) {
        let (mut size, mut sum) = (1, value);
        while self.subtrees.last().is_some_and(|(other, _)| *other == size) {
            let (_, left) = self.subtrees.pop().expect("just seen");
            sum = (self.add)(left, sum);
            size *= 2;
        }
        self.subtrees.push((size, sum));
    }

    /// The sum of all; `None` without values. Incomplete subtrees join from the right.
    pub fn finish(mut self) -> Option<T> {
        let (_, mut sum) = self.subtrees.pop()?;
        while let Some((_, left)) = self.subtrees.pop() {
            sum = (self.add)(left, sum);
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(count: usize) -> String {
        let mut sum = PairwiseSum::new(|a: String, b: String| format!("({a}{b})"));
        (0..count).for_each(|i| sum.push(i.to_string()));
        sum.finish().unwrap_or_default()
    }

    #[test]
    fn the_tree_is_a_function_of_the_count_alone() {
        let cases = ["", "0", "(01)", "((01)2)", "((01)(23))", "(((01)(23))4)", "(((01)(23))(45))"];
        for (count, expected) in cases.iter().enumerate() {
            assert_eq!(shape(count), *expected);
        }
    }

    #[test]
    fn an_aligned_block_is_a_subtree() {
        // What two ranks with four micro-batches each compute stands as it is in the tree over eight.
        let second = "((45)(67))";
        assert_eq!(shape(8), format!("({}{second})", shape(4)));
    }
}
