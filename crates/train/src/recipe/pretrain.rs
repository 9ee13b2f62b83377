//! The pre-training recipe: its sections, how it is loaded, and the model's config inside it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::schedule::Schedule;
use super::sections::{Batch, Compute, Corpus, Data, Optimizer, Router, Run, Saved, Tokenizer};
use super::{RecipeError, load};

/// Everything that decides a pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    /// `[model]`: fields of a Hugging Face `config.json`, or `config = "file"` with such fields beside it
    /// that replace the file's. [`Pretrain::load`] leaves the fields only. TOML has no null: a null field is absent.
    pub model: Table,
    /// `[tokenizer]`
    pub tokenizer: Tokenizer,
    /// `[data]`
    pub data: Data,
    /// `[batch]`
    pub batch: Batch,
    /// `[schedule]`
    pub schedule: Schedule,
    /// `[optimizer]`
    pub optimizer: Optimizer,
    /// `[router]`
    pub router: Router,
    /// `[activations]`: what becomes of each kind of activation between forward and backward, by role;
    /// the role `default` stands for all that are not named. The roles are the engine's.
    pub activations: BTreeMap<String, Saved>,
    /// `[compute]`
    pub compute: Compute,
    /// `[run]`
    pub run: Run,
}

impl Pretrain {
    /// Loads, checks, reads `model.config` into the section, and makes paths absolute: those in the file
    /// start at the recipe's folder, those given as overrides at the current one.
    pub fn load(path: &Path, overrides: &[impl AsRef<str>]) -> Result<Self, RecipeError> {
        let mut recipe: Pretrain = load(path, overrides)?;
        let absolute = |key: &str, value: &Path| {
            let overridden = overrides.iter().any(|text| {
                let key_given = text.as_ref().split('=').next().unwrap_or_default();
                key_given.trim() == key
            });
            let start = match overridden {
                true => Path::new(""),
                false => path.parent().unwrap_or(Path::new("")),
            };
            let joined = start.join(value);
            std::path::absolute(&joined).unwrap_or(joined)
        };
        if let Some(config) = recipe.model.remove("config") {
            let Value::String(config) = config else {
                return Err(RecipeError::invalid(
                    "model.config",
                    "expected a file's path",
                ));
            };
            let mut fields = read_config(&absolute("model.config", Path::new(&config)))?;
            fields.extend(std::mem::take(&mut recipe.model));
            recipe.model = fields;
        }
        if let Corpus::Path(corpus) = &mut recipe.data.corpus {
            *corpus = absolute("data.corpus", corpus);
        }
        if let Some(tokenizer) = &mut recipe.tokenizer.path {
            *tokenizer = absolute("tokenizer.path", tokenizer);
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// The model's section as the `config.json` that it is.
    pub fn model_config(&self) -> serde_json::Value {
        serde_json::to_value(&self.model).expect("a TOML table is a JSON object")
    }
}

/// A `config.json` as TOML fields; nulls are left out.
fn read_config(path: &Path) -> Result<Table, RecipeError> {
    let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
        path: path.to_owned(),
        source,
    })?;
    let syntax = |message: String| RecipeError::Syntax {
        path: path.to_owned(),
        message,
    };
    let mut config = serde_json::from_str(&text).map_err(|error| syntax(error.to_string()))?;
    remove_nulls(&mut config);
    Table::try_from(config).map_err(|error| syntax(error.to_string()))
}

fn remove_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}
