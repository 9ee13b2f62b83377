//! The account of what a reader left out: how many by reason, with one example each.

use std::collections::BTreeMap;
use std::fmt;

/// Why something is not in the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SkipReason {
    /// The name starts with a dot (version control, caches, editors).
    Hidden,
    /// The name does not end as the options ask.
    Extension,
    /// A link leads to a folder that was read already: a loop, or the same files under a second name.
    FolderRepeated,
    /// A pipe, socket or device.
    NotAFile,
    /// It holds a zero byte, so it is not text.
    Binary,
    /// It is not UTF-8.
    NotUtf8,
    /// It holds no byte of text.
    Empty,
    /// It cannot be opened or unpacked.
    Unreadable,
    /// It is larger than the options allow.
    TooLarge,
    /// A line is not JSON, or has no text field.
    Malformed,
    /// Its first lines say that a program wrote it.
    Generated,
    /// The same contents, or nearly, were read under another name.
    Repeated,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SkipReason::Hidden => "hidden",
            SkipReason::Extension => "with another extension",
            SkipReason::FolderRepeated => "linked a second time",
            SkipReason::NotAFile => "not regular files",
            SkipReason::Binary => "binary",
            SkipReason::NotUtf8 => "not UTF-8",
            SkipReason::Empty => "empty",
            SkipReason::Unreadable => "unreadable",
            SkipReason::TooLarge => "too large",
            SkipReason::Malformed => "malformed",
            SkipReason::Generated => "generated",
            SkipReason::Repeated => "repeated",
        })
    }
}

/// Counts by reason; displayed as `3 binary (a.png), 1 empty (b.txt)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many, and the first of them.
    reasons: BTreeMap<SkipReason, (usize, String)>,
}

impl Skipped {
    /// How many were left out for `reason`.
    pub fn count(&self, reason: SkipReason) -> usize {
        self.reasons.get(&reason).map_or(0, |(count, _)| *count)
    }

    /// All reasons that occurred, with their counts and the first example.
    pub fn iter(&self) -> impl Iterator<Item = (SkipReason, usize, &str)> {
        self.reasons.iter().map(|(&reason, (count, example))| (reason, *count, example.as_str()))
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    pub(crate) fn add(&mut self, reason: SkipReason, id: &str) {
        self.reasons.entry(reason).or_insert_with(|| (0, id.to_owned())).0 += 1;
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (reason, count, example)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let such_as = if count == 1 { "" } else { "such as " };
            write!(f, "{comma}{count} {reason} ({such_as}{example})")?;
        }
        Ok(())
    }
}
