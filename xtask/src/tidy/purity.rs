//! Numbers depend on their inputs alone: numeric crates read no clock, nothing draws randomness without a
//! seed, and only the binary prints.

use super::Problem;
use super::exceptions::Exceptions;
use super::source::{Source, words};

/// Crates in which a result must not depend on when it is computed.
const NUMERIC: &[&str] = &["tensor", "model", "optim"];
/// Crates that talk to a person.
const PRINTING: &[&str] = &["chogori"];

const PRINTS: &[&str] = &["println!", "eprintln!", "print!", "eprint!", "dbg!"];
const UNSEEDED: &[&str] = &["thread_rng", "rand::rng()", "from_entropy", "from_os_rng", "getrandom"];
const CLOCKS: &[&str] = &["SystemTime::now", "Instant::now"];

/// Finds prints, unseeded randomness and clocks where they do not belong. Tests, benches and examples may print
/// and measure, but draw from seeds all the same.
pub fn check(source: &Source, exceptions: &mut Exceptions) -> Vec<Problem> {
    let Some(name) = source.crate_name() else {
        return Vec::new();
    };
    let shipped = |&(offset, _): &(usize, &str)| !source.is_test(offset);
    let mut problems = Vec::new();
    let mut report = |found: Vec<(usize, &str)>, advice: &str| {
        problems.extend(found.into_iter().map(|(offset, pattern)| {
            Problem::new(&source.path, source.line(offset), format!("`{pattern}`: {advice}"))
        }));
    };
    report(find(source, UNSEEDED).collect(), "draw from a seeded generator, so that a run can be repeated");
    if !PRINTING.contains(&name) {
        let prints = find(source, PRINTS).filter(shipped).collect();
        report(prints, "a library returns what it has to say; the caller prints");
    }
    if NUMERIC.contains(&name) {
        let clocks: Vec<_> = find(source, CLOCKS).filter(shipped).collect();
        if !clocks.is_empty() && !exceptions.allow_wall_clock(&source.path) {
            report(clocks, "a numeric crate reads no clock; measure in the caller");
        }
    }
    problems
}

fn find<'a>(source: &'a Source, patterns: &'static [&'static str]) -> impl Iterator<Item = (usize, &'static str)> + 'a {
    patterns.iter().flat_map(|&pattern| words(&source.code, pattern).map(move |offset| (offset, pattern)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Source::new(path, text), &mut Exceptions::default()).len()
    }

    #[test]
    fn clocks_stay_out_of_numeric_crates() {
        let text = "fn a() { let begin = Instant::now(); }";
        assert_eq!(count("crates/optim/src/a.rs", text), 1);
        assert_eq!(count("crates/train/src/a.rs", text), 0);
        assert_eq!(count("crates/optim/benches/a.rs", text), 0);
        let listed = "[[wall_clock]]\nfile = 'crates/optim/src/a.rs'\nreason = 'Measures itself.'";
        let mut exceptions = Exceptions::parse(listed).unwrap();
        assert_eq!(check(&Source::new("crates/optim/src/a.rs", text), &mut exceptions), []);
    }

    #[test]
    fn only_the_binary_prints() {
        let text = "fn a() { println!(\"loss\"); }";
        assert_eq!(count("crates/train/src/a.rs", text), 1);
        assert_eq!(count("crates/chogori/src/a.rs", text), 0);
        assert_eq!(count("crates/train/src/a.rs", "// println!(1)\nfn a() {}"), 0);
        let in_test = format!("#[cfg(test)]\nmod tests {{ {text} }}");
        assert_eq!(count("crates/train/src/a.rs", &in_test), 0);
    }

    #[test]
    fn randomness_has_a_seed_everywhere() {
        for text in ["rand::thread_rng()", "rand::rng()", "Rng::from_entropy()"] {
            assert_eq!(count("crates/chogori/src/a.rs", text), 1, "{text}");
            assert_eq!(count("crates/chogori/tests/a.rs", text), 1, "{text}");
        }
        assert_eq!(count("crates/chogori/src/a.rs", "Rng::seed_from_u64(7)"), 0);
    }
}
