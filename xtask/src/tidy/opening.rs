//! Each Rust file opens with `//!`: what it is, which paper, how it fits.

use super::Problem;
use super::source::Source;

/// The first line that is neither a shebang nor an inner attribute is a `//!` line with words on it.
pub fn check(source: &Source) -> Option<Problem> {
    let text = source.text.as_str();
    let mut rest = match text.strip_prefix("#!") {
        Some(shebang) if !shebang.starts_with('[') => shebang.split_once('\n').map_or("", |(_, rest)| rest),
        _ => text,
    };
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("#![") {
            break;
        }
        rest = rest.find(']').map_or("", |end| &rest[end + 1..]);
    }
    let first = rest.lines().next().unwrap_or("");
    let words = first.strip_prefix("//!").map(str::trim).unwrap_or("");
    let line = source.line(text.len() - rest.len());
    words.is_empty().then(|| {
        let message = "opens without `//!`; say in a sentence or two what this file is";
        Problem::new(&source.path, line, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(text: &str) -> bool {
        check(&Source::new("a.rs", text)).is_none()
    }

    #[test]
    fn good_openings() {
        assert!(passes("//! The router.\nfn a() {}"));
        assert!(passes("#![allow(x)]\n//! The router."));
        assert!(passes("#!/usr/bin/env run\n#![allow(\n  x\n)]\n\n//! The router."));
    }

    #[test]
    fn bad_openings() {
        assert!(!passes(""));
        assert!(!passes("//!\nfn a() {}"));
        assert!(!passes("// The router.\nfn a() {}"));
        assert!(!passes("fn a() {}\n//! Too late."));
        assert!(!passes("#![allow(x)]\nfn a() {}"));
    }
}
