//! Learns a BPE vocabulary: again and again the most frequent pair of neighbours becomes a token.
//!
//! Pairs of equal frequency go in order of their ids, so the result is a function of the texts alone.
//! The pieces of pre-tokenisation are counted first; after that the cost depends on the number of
//! different pieces, and each merge touches only the pieces that contain its pair.

use crate::byte_alphabet::byte_order;
use crate::pretoken::pieces;
use crate::segments::segments;
use crate::{TokenizerError, special};
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A pair of neighbouring tokens.
type Pair = (u32, u32);

/// What to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainOptions {
    /// Number of ids wanted in all: 256 bytes, merges, and reserved ids. The embedding gets this many rows.
    pub vocab_size: usize,
    /// Ids kept for special tokens at the end: 256 in Kimi's tokenizer, 32 is enough for a small one.
    pub reserved: usize,
    /// Text beyond this many bytes is not read: frequencies hardly change after some tens of megabytes.
    pub text_bytes_max: u64,
    /// No token becomes longer than this (Kimi's longest has 256 bytes).
    pub token_bytes_max: usize,
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainProgress {
    /// Reading and counting; so many bytes of text so far.
    Counting {
        /// Bytes read.
        text_bytes: u64,
    },
    /// Merging; so many of the wanted merges are found.
    Merging {
        /// Merges found.
        done: usize,
        /// Merges wanted.
        wanted: usize,
    },
}

/// The learned byte strings in order of rank.
pub(crate) fn train<T: AsRef<str>>(
    texts: impl IntoIterator<Item = T>,
    options: &TrainOptions,
    mut progress: impl FnMut(TrainProgress),
) -> Result<Vec<Vec<u8>>, TokenizerError> {
    let wanted = merges_wanted(options)?;
    let counts = count_pieces(texts, options.text_bytes_max, &mut progress);
    let mut words = Words::new(counts);
    let mut tokens: Vec<Vec<u8>> = byte_order().map(|byte| vec![byte]).collect();
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> =
        words.pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect();
    for done in 0..wanted {
        progress(TrainProgress::Merging { done, wanted });
        let Some(pair) = next_pair(&mut queue, &words, &tokens, options.token_bytes_max) else { break };
        let token = [tokens[pair.0 as usize].as_slice(), &tokens[pair.1 as usize]].concat();
        let id = tokens.len() as u32;
        tokens.push(token);
        queue.extend(words.merge(pair, id));
    }
    Ok(tokens)
}

fn merges_wanted(options: &TrainOptions) -> Result<usize, TokenizerError> {
    let TrainOptions { vocab_size, reserved, .. } = *options;
    if reserved < special::RESERVED_MIN {
        let least = special::RESERVED_MIN;
        return Err(TokenizerError::Options(format!(
            "reserved = {reserved}, but the chat tokens need at least {least}"
        )));
    }
    vocab_size.checked_sub(256 + reserved).ok_or_else(|| {
        let least = 256 + reserved;
        TokenizerError::Options(format!(
            "vocab_size = {vocab_size}, but 256 bytes and {reserved} reserved ids need {least}"
        ))
    })
}

/// How often each piece of more than one byte occurs.
fn count_pieces<T: AsRef<str>>(
    texts: impl IntoIterator<Item = T>,
    text_bytes_max: u64,
    progress: &mut impl FnMut(TrainProgress),
) -> FxHashMap<Box<[u8]>, u64> {
    let mut counts: FxHashMap<Box<[u8]>, u64> = FxHashMap::default();
    let mut text_bytes = 0;
    for text in texts {
        let room = usize::try_from(text_bytes_max - text_bytes).unwrap_or(usize::MAX);
        if room == 0 {
            break;
        }
        let text = text.as_ref();
        let text = &text[..text.floor_char_boundary(room)];
        for piece in segments(text).flat_map(pieces).filter(|piece| piece.len() > 1) {
            match counts.get_mut(piece.as_bytes()) {
                Some(count) => *count += 1,
                None => drop(counts.insert(piece.as_bytes().into(), 1)),
            }
        }
        text_bytes += text.len() as u64;
        progress(TrainProgress::Counting { text_bytes });
    }
    counts
}

/// The most frequent pair that still is as frequent as the queue says and may become a token.
fn next_pair(
    queue: &mut BinaryHeap<(u64, Reverse<Pair>)>,
    words: &Words,
    tokens: &[Vec<u8>],
    token_bytes_max: usize,
) -> Option<Pair> {
    loop {
        let (count, Reverse(pair)) = queue.pop()?;
        let now = words.pairs.get(&pair).map_or(0, |found| found.count);
        let bytes = tokens[pair.0 as usize].len() + tokens[pair.1 as usize].len();
        if now < 2 || bytes > token_bytes_max {
            continue;
        }
        // Counts of queued pairs only fall, so the entry is an upper bound; it returns with its true count.
        match now == count {
            true => return Some(pair),
            false => queue.push((now, Reverse(pair))),
        }
    }
}

/// Where a pair occurs.
#[derive(Default)]
struct Found {
    /// Occurrences in the texts.
    count: u64,
    /// Words that have or had it; the last entry is never repeated.
    words: Vec<u32>,
}

/// The different pieces of the texts as token ids, and all pairs in them.
struct Words {
    tokens: Vec<Vec<u32>>,
    counts: Vec<u64>,
    pairs: FxHashMap<Pair, Found>,
}

impl Words {
    fn new(pieces: FxHashMap<Box<[u8]>, u64>) -> Self {
        let mut id_of_byte = [0; 256];
        byte_order().enumerate().for_each(|(id, byte)| id_of_byte[byte as usize] = id as u32);
        let mut words = Self { tokens: Vec::new(), counts: Vec::new(), pairs: FxHashMap::default() };
        for (piece, count) in pieces {
            let word = words.tokens.len() as u32;
            let tokens: Vec<u32> = piece.iter().map(|&byte| id_of_byte[byte as usize]).collect();
            tokens.windows(2).for_each(|pair| words.pairs.entry((pair[0], pair[1])).or_default().add(word, count));
            words.tokens.push(tokens);
            words.counts.push(count);
        }
        words
    }

    /// Replaces `pair` by `id` everywhere; gives the new pairs, which all contain `id`, for the queue.
    fn merge(&mut self, pair: Pair, id: u32) -> Vec<(u64, Reverse<Pair>)> {
        let Some(found) = self.pairs.remove(&pair) else { return Vec::new() };
        let mut fresh = Vec::new();
        for word in found.words {
            let count = self.counts[word as usize];
            replace_pair(&mut self.tokens[word as usize], pair, id, |change, neighbours| match change {
                // The merged pair itself is gone from the table: `aaa` loses it where it overlaps itself.
                Change::Lost => drop(self.pairs.get_mut(&neighbours).map(|found| found.count -= count)),
                Change::Won => {
                    self.pairs.entry(neighbours).or_default().add(word, count);
                    fresh.push(neighbours);
                }
            });
        }
        fresh.sort_unstable();
        fresh.dedup();
        fresh.into_iter().map(|pair| (self.pairs[&pair].count, Reverse(pair))).collect()
    }
}

impl Found {
    fn add(&mut self, word: u32, count: u64) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

/// What happens to a pair of neighbours beside a replaced one.
enum Change {
    Lost,
    Won,
}

/// Replaces `pair` by `id` from left to right in place, and tells which neighbouring pairs change.
fn replace_pair(tokens: &mut Vec<u32>, pair: Pair, id: u32, mut changed: impl FnMut(Change, Pair)) {
    let (mut read, mut write) = (0, 0);
    while read < tokens.len() {
        if read + 1 == tokens.len() || (tokens[read], tokens[read + 1]) != pair {
            tokens[write] = tokens[read];
            (read, write) = (read + 1, write + 1);
            continue;
        }
        if let Some(before) = write.checked_sub(1).map(|at| tokens[at]) {
            changed(Change::Lost, (before, pair.0));
            changed(Change::Won, (before, id));
        }
        if let Some(&after) = tokens.get(read + 2) {
            changed(Change::Lost, (pair.1, after));
            changed(Change::Won, (id, after));
        }
        tokens[write] = id;
        (read, write) = (read + 2, write + 1);
    }
    tokens.truncate(write);
}
