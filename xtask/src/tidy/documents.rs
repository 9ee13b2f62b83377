//! README.md and ARCHITECTURE.md keep up with the tree: they name every crate, and every path they name exists.

use super::{Problem, TextFile, layers};

const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md"];

/// Compares both documents with the list of files.
pub fn check(files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for &document in DOCUMENTS {
        match files.iter().find(|file| file.path == document) {
            None => problems.push(Problem::new(document, 0, "is missing; it is a reader's way in")),
            Some(file) => problems.extend(check_document(file, files)),
        }
    }
    problems
}

fn check_document(document: &TextFile, files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for name in layers::crates() {
        let manifest = format!("crates/{name}/Cargo.toml");
        let stands = files.iter().any(|file| file.path == manifest);
        let named = [format!("`{name}`"), format!("crates/{name}")];
        if stands && !named.iter().any(|form| document.text.contains(form)) {
            let message = format!("does not name the crate `{name}`; say what it is for");
            problems.push(Problem::new(&document.path, 0, message));
        }
    }
    for (index, line) in document.text.lines().enumerate() {
        for path in paths(line) {
            let folder = format!("{path}/");
            let exists = |file: &TextFile| file.path == path || file.path.starts_with(&folder);
            if !files.iter().any(exists) {
                let message = format!("names `{path}`, which does not exist");
                problems.push(Problem::new(&document.path, index + 1, message));
            }
        }
    }
    problems
}

/// Words of `line` that point into this repository. Patterns (`*`, `<…>`, `{…}`) are not paths.
fn paths(line: &str) -> Vec<&str> {
    let in_path = |char: char| char.is_ascii_alphanumeric() || "-_./*{}<>…,$".contains(char);
    line.split(|char| !in_path(char))
        .map(|word| word.trim_end_matches(['.', ',', '/']))
        .filter(|word| {
            let folder = word.split_once('/').map(|(folder, _)| folder);
            folder.is_some_and(|folder| ["crates", "recipes", "scripts", "xtask", ".ci"].contains(&folder))
        })
        .filter(|word| !word.contains(['*', '{', '<', '…', '$', ',']) && !word.contains("..."))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(readme: &str) -> Vec<String> {
        let names = ["ARCHITECTURE.md", "crates/tensor/Cargo.toml", "scripts/goldens.py"];
        let file = |path: &str, text: &str| TextFile { path: path.to_owned(), text: text.to_owned() };
        let mut files: Vec<TextFile> = names.iter().map(|name| file(name, "`tensor`")).collect();
        files.push(file("README.md", readme));
        check(&files).into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn a_document_that_keeps_up_passes() {
        assert!(problems("`tensor` holds arrays; see [it](crates/tensor/) or crates/*/src.").is_empty());
        assert!(problems("crates/tensor: made by `scripts/goldens.py`, not by recipes/<name>.").is_empty());
    }

    #[test]
    fn a_crate_that_is_not_named_fails() {
        assert_eq!(problems("Arrays."), ["does not name the crate `tensor`; say what it is for"]);
    }

    #[test]
    fn a_path_that_does_not_exist_fails() {
        assert_eq!(problems("`tensor` and `scripts/peer.py`."), ["names `scripts/peer.py`, which does not exist"]);
    }

    #[test]
    fn a_missing_document_fails() {
        assert_eq!(check(&[]).len(), 2);
    }
}
