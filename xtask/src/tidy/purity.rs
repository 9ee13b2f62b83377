//! Numbers depend on their inputs alone: numeric crates read no clock, nothing draws randomness without a
//! seed, and only the binary prints.

use super::Problem;
use super::source::{Source, words};

/// Crates in which a result must not depend on when it is computed.
const NUMERIC: &[&str] = &["tensor", "model", "optim"];
/// Crates that talk to a person.
const PRINTING: &[&str] = &["chogori"];

const PRINTS: &[&str] = &["println!", "eprintln!", "print!", "eprint!", "dbg!"];
const UNSEEDED: &[&str] = &["thread_rng", "rand::rng()", "from_entropy", "from_os_rng", "getrandom"];
const CLOCKS: &[&str] = &["SystemTime::now", "Instant::now"];

/// Finds prints, unseeded randomness and clocks where they do not belong; tests may print and measure.
pub fn check(source: &Source) -> Vec<Problem> {
    let Some(name) = source.crate_name() else {
        return Vec::new();
    };
    let mut rules = vec![(UNSEEDED, "draw from a seeded generator, so that a run can be repeated")];
    if !PRINTING.contains(&name) {
        rules.push((PRINTS, "a library returns what it has to say; the caller prints"));
    }
    if NUMERIC.contains(&name) {
        rules.push((CLOCKS, "a numeric crate reads no clock; measure in the caller"));
    }
    let mut problems = Vec::new();
    for (patterns, advice) in rules {
        for pattern in patterns {
            let found = words(&source.code, pattern).filter(|&offset| !source.is_test(offset));
            problems.extend(found.map(|offset| {
                let message = format!("`{pattern}`: {advice}");
                Problem::new(&source.path, source.line(offset), message)
            }));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn clocks_stay_out_of_numeric_crates() {
        let text = "fn a() { let begin = Instant::now(); }";
        assert_eq!(count("crates/optim/src/a.rs", text), 1);
        assert_eq!(count("crates/train/src/a.rs", text), 0);
        assert_eq!(count("crates/optim/benches/a.rs", text), 0);
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
        }
        assert_eq!(count("crates/chogori/src/a.rs", "Rng::seed_from_u64(7)"), 0);
    }
}
