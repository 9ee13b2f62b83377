//! Arrows only point down: a crate depends on crates of lower layers alone (ARCHITECTURE.md has the map).

use toml::{Table, Value};

use super::{Problem, TextFile};

/// The crates of each layer, the ones to come included.
const LAYERS: &[&[&str]] = &[
    &["tensor", "comm", "tokens"],
    &["model", "data"],
    &["optim", "checkpoint", "plan"],
    &["train", "inference"],
    &["serve", "agents"],
    &["rl", "eval"],
    &["chogori"],
];

/// Compares every manifest under `crates/` with the layers. Development dependencies are free.
pub fn check(files: &[TextFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        let name = file.path.strip_prefix("crates/");
        let Some(name) = name.and_then(|path| path.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        let Some(layer) = layer(name) else {
            let message = format!("`{name}` has no layer; give it one in xtask/src/tidy/layers.rs");
            problems.push(Problem::new(&file.path, 0, message));
            continue;
        };
        let manifest = match file.text.parse::<Table>() {
            Ok(manifest) => manifest,
            Err(error) => {
                problems.push(Problem::new(&file.path, 0, error.message()));
                continue;
            }
        };
        for dependency in dependencies(&manifest) {
            if let Some(other) = self::layer(&dependency).filter(|&other| other >= layer) {
                let message = format!(
                    "`{name}` (layer {layer}) depends on `{dependency}` (layer {other}); arrows only point down"
                );
                problems.push(Problem::new(&file.path, 0, message));
            }
        }
    }
    problems
}

/// Names of all crates that the layers place, lowest first.
pub fn crates() -> impl Iterator<Item = &'static str> {
    LAYERS.iter().copied().flatten().copied()
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// What a manifest needs to build, by the name of the crate's folder.
fn dependencies(manifest: &Table) -> Vec<String> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let mut names = Vec::new();
    for table in std::iter::once(manifest).chain(targets) {
        for kind in ["dependencies", "build-dependencies"] {
            let list = table.get(kind).and_then(Value::as_table);
            for (alias, value) in list.into_iter().flatten() {
                let package = value.get("package").and_then(Value::as_str).unwrap_or(alias);
                names.push(package.strip_prefix("chogori-").unwrap_or(package).to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, manifest: &str) -> usize {
        let path = format!("crates/{name}/Cargo.toml");
        let text = manifest.to_owned();
        check(&[TextFile { path, text }]).len()
    }

    #[test]
    fn fifteen_crates_have_a_layer() {
        assert_eq!(crates().count(), 15);
    }

    #[test]
    fn downward_and_development_dependencies_pass() {
        let manifest = "[dependencies]\ntensor.workspace = true\nserde = \"1\"\n\
                        [dev-dependencies]\ntrain.workspace = true\n";
        assert_eq!(problems("model", manifest), 0);
    }

    #[test]
    fn upward_and_sideways_dependencies_fail() {
        for dependency in [
            "[dependencies]\ntrain.workspace = true",
            "[dependencies]\ndata.workspace = true",
            "[build-dependencies]\noptim.workspace = true",
            "[dependencies]\nother = { package = \"chogori-train\", path = \"../train\" }",
            "[target.'cfg(unix)'.dependencies]\nchogori-eval.path = \"../eval\"",
        ] {
            assert_eq!(problems("model", dependency), 1, "{dependency}");
        }
        assert_eq!(problems("unheard-of", ""), 1);
    }
}
