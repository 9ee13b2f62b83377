//! The repository stands on its own: no ticket numbers and no paths of somebody's machine, in any text file.

use super::{Problem, TextFile};

/// Folders of one machine. Split, so that this file does not find itself.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("../sha", "red/"),
];

/// Finds ticket numbers and machine paths.
pub fn check(file: &TextFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let mut report = |message: &str| problems.push(Problem::new(&file.path, index + 1, message));
        if names_ticket(line) {
            report("names a ticket by number; say the thing itself, the reader has no list of tickets");
        }
        if names_machine_path(line) {
            report("names a path of one machine; use one below the repository or a placeholder");
        }
    }
    problems
}

/// `issue` followed by a number, with or without a hash sign.
fn names_ticket(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    lower.match_indices("issue").any(|(offset, word)| {
        let after = lower[offset + word.len()..].trim_start_matches([' ', '-', '_']);
        let number = after.strip_prefix('#').unwrap_or(after);
        number.starts_with(|first: char| first.is_ascii_digit())
    })
}

/// One of the machine folders, where a path can begin.
fn names_machine_path(line: &str) -> bool {
    MACHINE_PATHS.iter().any(|path| {
        line.match_indices(path).any(|(offset, _)| {
            let before = line[..offset].chars().next_back();
            before.is_none_or(|char| !char.is_alphanumeric() && !"_-.~}/$".contains(char))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: String) -> usize {
        check(&TextFile { path: "a.md".to_owned(), text }).len()
    }

    #[test]
    fn ordinary_words_pass() {
        assert_eq!(count("An issue that 2 readers had.\nA fetch is issued.".to_owned()), 0);
        assert_eq!(count("See crates/home/a.rs and runs/work/b.".to_owned()), 0);
    }

    #[test]
    fn tickets_fail() {
        assert_eq!(count(format!("Closes issue {}.", 12)), 1);
        assert_eq!(count(format!("Issue{}{}", '#', 7)), 1);
    }

    #[test]
    fn machine_paths_fail() {
        for path in MACHINE_PATHS {
            assert_eq!(count(format!("reads `{path}me/corpus`")), 1, "{path}");
        }
    }
}
