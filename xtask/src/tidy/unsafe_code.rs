//! Unsafe code stays in the kernels, the thread pool and tensor storage, and in a few listed places.

use super::Problem;
use super::exceptions::Exceptions;
use super::source::{Source, words};

const HOMES: &[&str] = &[
    "crates/tensor/src/kernels/",
    "crates/tensor/src/kernels.rs",
    "crates/tensor/src/pool",
    "crates/tensor/src/storage",
];

/// Finds the first `unsafe` of a file that is not a home of unsafe code.
pub fn check(source: &Source, exceptions: &mut Exceptions) -> Option<Problem> {
    let offset = words(&source.code, "unsafe").next()?;
    let at_home = HOMES.iter().any(|home| source.path.starts_with(home));
    if at_home || exceptions.allow_unsafe_code(&source.path) {
        return None;
    }
    let message = "unsafe code outside the kernels; use a safe form, or list the file with its reason";
    Some(Problem::new(&source.path, source.line(offset), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(path: &str, text: &str, listed: &str) -> bool {
        let mut exceptions = Exceptions::parse(listed).unwrap();
        check(&Source::new(path, text), &mut exceptions).is_none()
    }

    #[test]
    fn kernels_and_listed_files_pass() {
        let text = "fn a() { unsafe { b() } }";
        assert!(passes("crates/tensor/src/kernels/simd.rs", text, ""));
        assert!(passes("crates/model/src/a.rs", "// unsafe\n#![deny(unsafe_code)]", ""));
        let listed = "[[unsafe_code]]\nfile = 'crates/model/src/a.rs'\nreason = 'Maps files.'";
        assert!(passes("crates/model/src/a.rs", text, listed));
    }

    #[test]
    fn other_places_fail() {
        assert!(!passes("crates/model/src/a.rs", "fn a() { unsafe { b() } }", ""));
    }
}
