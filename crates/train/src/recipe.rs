//! Recipes: TOML files that say everything about a run, read strictly.
//!
//! A key that no section knows, a value of the wrong type, or a combination that cannot run is refused
//! with its full dotted path before anything is started; `key.path=value` overrides go through the same
//! checks as the file. [`Pretrain`] is the recipe of the pre-training stage, other stages bring their own
//! types. [`to_toml`] writes the resolved recipe into the run folder.

mod check;
mod pretrain;
mod schedule;
mod sections;
mod value;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

pub use pretrain::Pretrain;
pub use schedule::{Anneal, Phases, Schedule, ScheduleKind, Span};
pub use sections::{Activation, Batch, Compute, Corpus, Data, Dtype, Router, Run, Tokenizer, TokenizerTraining};

/// Why a recipe was refused. Keys are full dotted paths; each message tells what to change.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file, or one it names, could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML (or the model's config not JSON).
    #[error("{} does not parse: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// An override that is not `key.path=value`.
    #[error("override `{text}`: {problem}")]
    Override {
        /// The override as given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that its section does not have.
    #[error("unknown key `{key}`: {}", suggestion(nearest, known))]
    UnknownKey {
        /// Full dotted path.
        key: String,
        /// The known key of the same section that is spelled most alike, if any is close.
        nearest: Option<String>,
        /// All keys of that section.
        known: Vec<String>,
    },
    /// A key that must be given and is not.
    #[error("missing key `{key}`: it has no default, please state it")]
    Missing {
        /// Full dotted path.
        key: String,
    },
    /// A value of the wrong type.
    #[error("`{key}`: expected {expected}, found {found}")]
    WrongType {
        /// Full dotted path.
        key: String,
        /// What the key takes.
        expected: String,
        /// What the recipe says.
        found: String,
    },
    /// A value that has the right type and makes no sense.
    #[error("`{key}`: {problem}")]
    Invalid {
        /// Full dotted path.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The recipe cannot be written as TOML.
    #[error("the recipe cannot be written as TOML: {0}")]
    Write(#[from] toml::ser::Error),
}

impl RecipeError {
    pub(crate) fn invalid(key: impl Into<String>, problem: impl Into<String>) -> Self {
        let (key, problem) = (key.into(), problem.into());
        RecipeError::Invalid { key, problem }
    }
}

fn suggestion(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if known.is_empty() => "nothing is known here".into(),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Reads the recipe at `path`, applies `overrides` (`key.path=value`, in order) and checks every key.
///
/// A value is read as TOML (`3`, `true`, `[0.9, 0.95]`) and, where it is not TOML, as a plain string;
/// `key=` removes the key.
pub fn load<T: DeserializeOwned>(path: &Path, overrides: &[impl AsRef<str>]) -> Result<T, RecipeError> {
    let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
    parse(&text, overrides).map_err(|error| match error {
        RecipeError::Syntax { message, .. } => RecipeError::Syntax { path: path.to_owned(), message },
        other => other,
    })
}

/// As [`load`], from text.
pub fn parse<T: DeserializeOwned>(text: &str, overrides: &[impl AsRef<str>]) -> Result<T, RecipeError> {
    let mut table: Table = toml::from_str(text)
        .map_err(|error| RecipeError::Syntax { path: PathBuf::from("recipe"), message: error.to_string() })?;
    for text in overrides {
        apply(&mut table, text.as_ref())?;
    }
    value::from_table(table)
}

/// The resolved recipe as TOML, every default written out. Reading it back gives the same value.
pub fn to_toml<T: Serialize>(recipe: &T) -> Result<String, RecipeError> {
    Ok(toml::to_string_pretty(recipe)?)
}

/// Sets (or removes) one dotted key.
fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let refuse = |problem: String| RecipeError::Override { text: text.to_owned(), problem };
    let (path, value) = text.split_once('=').ok_or_else(|| refuse("write it as key.path=value".into()))?;
    let mut keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(refuse("its key has an empty part".into()));
    }
    let last = keys.pop().expect("split gives at least one part");
    let mut place = table;
    for (depth, key) in keys.iter().enumerate() {
        place = place.entry(*key).or_insert_with(|| Value::Table(Table::new())).as_table_mut().ok_or_else(|| {
            let path = keys[..=depth].join(".");
            refuse(format!("`{path}` is a value, not a section"))
        })?;
    }
    match value.trim() {
        "" => place.remove(last),
        value => place.insert(last.to_owned(), toml_or_string(value)),
    };
    Ok(())
}

/// What is not TOML is a string: `kind=cosine` needs no quotes on the command line.
fn toml_or_string(text: &str) -> Value {
    match toml::from_str::<Table>(&format!("value = {text}")) {
        Ok(mut table) if table.len() == 1 => table.remove("value").expect("just parsed"),
        _ => Value::String(text.to_owned()),
    }
}
