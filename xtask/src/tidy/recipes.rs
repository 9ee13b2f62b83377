//! Every file under `recipes/` is TOML. Whether its keys mean something is a test of the crates that read it.

use super::{Problem, TextFile};

/// Parses each recipe.
pub fn check(files: &[TextFile]) -> Vec<Problem> {
    let recipes = files.iter().filter(|file| file.path.starts_with("recipes/") && file.path.ends_with(".toml"));
    recipes
        .filter_map(|file| {
            let error = file.text.parse::<toml::Table>().err()?;
            let offset = error.span().map_or(0, |span| span.start);
            let line = 1 + file.text[..offset].matches('\n').count();
            Some(Problem::new(&file.path, line, format!("is no TOML: {}", error.message())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let (path, text) = (path.to_owned(), text.to_owned());
        let problems = check(&[TextFile { path, text }]);
        problems.iter().map(|problem| problem.line).collect()
    }

    #[test]
    fn a_table_passes() {
        assert!(lines("recipes/nano/a.toml", "[model]\nlayers = 4\n").is_empty());
    }

    #[test]
    fn broken_toml_fails_at_its_line() {
        assert_eq!(lines("recipes/nano/a.toml", "[model]\nlayers = = 4\n"), [2]);
        assert!(lines("crates/a.toml", "= =").is_empty());
    }
}
