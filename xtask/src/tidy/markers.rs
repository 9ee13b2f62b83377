//! No stray markers: what is not done is not merged, and a test that does not run is not a test.

use super::Problem;
use super::source::{Source, words};

const IN_COMMENTS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];
const IN_CODE: &[(&str, &str)] = &[
    ("todo!", "do it, or leave the function out"),
    ("unimplemented!", "do it, or return a typed error"),
    ("#[ignore", "make the test quick, or delete it"),
];

/// Finds markers in comments, and placeholders and ignored tests in code.
pub fn check(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for marker in IN_COMMENTS {
        for offset in words(&source.comments, marker) {
            let message = format!("`{marker}` in a comment: do it now, or say why it is as it is");
            problems.push(Problem::new(&source.path, source.line(offset), message));
        }
    }
    for (marker, advice) in IN_CODE {
        for offset in words(&source.code, marker) {
            let message = format!("`{marker}`: {advice}");
            problems.push(Problem::new(&source.path, source.line(offset), message));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_lines(text: &str, expected: &[usize]) {
        let problems = check(&Source::new("a.rs", text));
        let lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, expected, "{problems:?}");
    }

    #[test]
    fn words_in_literals_and_longer_words_pass() {
        check_lines("//! A TODOlist.\nlet a = \"TODO\"; let my_todo = 1;", &[]);
        check_lines("#[test]\nfn ignore() {}", &[]);
    }

    #[test]
    fn markers_and_placeholders_fail() {
        check_lines("//! A.\n// TODO: more\nfn a() {}", &[2]);
        check_lines("/* a\nFIXME */", &[2]);
        check_lines("fn a() {\n    todo!()\n}\nfn b() { unimplemented!(\"b\") }", &[2, 4]);
        check_lines("#[test]\n#[ignore = \"slow\"]\nfn a() {}", &[2]);
    }
}
