//! Kimi's cuts before pre-tokenisation: every 400,000 characters, and inside runs of more than 25,000.
//!
//! `tokenization_kimi.py` makes them to protect its regex engine. They change ids, so we make them too.

const TEXT_CHARS_MAX: usize = 400_000;
const RUN_CHARS_MAX: usize = 25_000;

/// The segments of `text` in order; together they are the text. An empty text has none.
pub(crate) fn segments(text: &str) -> impl Iterator<Item = &str> {
    blocks(text).flat_map(runs)
}

/// Blocks of 400,000 characters.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        // Bytes bound characters from above, so short texts need no counting.
        let end = match rest.len() > TEXT_CHARS_MAX {
            true => rest.char_indices().nth(TEXT_CHARS_MAX).map_or(rest.len(), |(at, _)| at),
            false => rest.len(),
        };
        let (block, tail) = rest.split_at(end);
        rest = tail;
        (!block.is_empty()).then_some(block)
    })
}

/// Parts of a block in which no run of whitespace, or of anything else, has more than 25,000 characters.
fn runs(block: &str) -> impl Iterator<Item = &str> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let (part, tail) = rest.split_at(run_cut(rest));
        rest = tail;
        (!part.is_empty()).then_some(part)
    })
}

/// Where the first run that is too long must be cut; the length of `text` if there is none.
fn run_cut(text: &str) -> usize {
    if text.len() <= RUN_CHARS_MAX {
        return text.len();
    }
    let (mut in_space, mut run_chars) = (false, 0);
    for (at, char) in text.char_indices() {
        let space = is_python_space(char);
        if space != in_space {
            (in_space, run_chars) = (space, 0);
        }
        run_chars += 1;
        if run_chars > RUN_CHARS_MAX {
            return at;
        }
    }
    text.len()
}

/// Python's `str.isspace`: White_Space and the four information separators.
fn is_python_space(char: char) -> bool {
    char.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, chars: &[usize]) {
        let parts: Vec<&str> = segments(text).collect();
        assert_eq!(parts.concat(), text);
        assert_eq!(parts.iter().map(|p| p.chars().count()).collect::<Vec<_>>(), chars);
    }

    #[test]
    fn cuts_where_kimi_cuts() {
        check("", &[]);
        check("a b", &[3]);
        check(&"x".repeat(25_000), &[25_000]);
        check(&"é".repeat(25_001), &[25_000, 1]);
        check(&" ".repeat(60_000), &[25_000, 25_000, 10_000]);
        // A run that starts inside a segment counts from its own start.
        check(&format!("ab {}", "x".repeat(25_001)), &[25_003, 1]);
        check(&"ab ".repeat(140_000), &[400_000, 20_000]);
        // The block ends a run: counting starts anew after 400,000 characters.
        check(&format!("{}{}", "ab ".repeat(130_000), "x".repeat(40_000)), &[400_000, 25_000, 5_000]);
        // Python calls U+001F a space, Unicode does not.
        check(&format!("{}\u{1f}{}", "x".repeat(20_000), "x".repeat(20_000)), &[40_001]);
    }
}
