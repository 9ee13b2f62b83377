//! The pre-training recipe: its sections, how it is loaded, and the model's config inside it.

use std::collections::BTreeMap;
use std::path::Path;

use optim::OptimizerConfig;
use serde::{Deserialize, Serialize};
use tensor::saved::{Policy, Role};
use toml::{Table, Value};

use super::schedule::Schedule;
use super::sections::{Activation, Batch, Compute, Corpus, Data, Router, Run, Tokenizer};
use super::value::unknown_key;
use super::{RecipeError, load};

/// Everything that decides a pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    /// `[model]`: fields of a Hugging Face `config.json`, or `config = "file"` with such fields beside it
    /// that replace the file's. [`Pretrain::load`] leaves the fields only. JSON's null is `"none"`.
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
    pub optimizer: OptimizerConfig,
    /// `[router]`
    pub router: Router,
    /// `[activations]`: what becomes of each kind of activation between forward and backward, by role
    /// ([`Role::NAMES`]). Roles that are not named are kept.
    pub activations: BTreeMap<String, Activation>,
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
                return Err(RecipeError::invalid("model.config", "expected a file's path"));
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

    /// The model that the `[model]` section describes; a key that it does not have is refused.
    pub fn model(&self) -> Result<model::Config, RecipeError> {
        let config = read_model(&self.model)?;
        if let Some(unknown) = config.unknown_keys().next() {
            let fields = config.to_value();
            let fields = fields.as_object().into_iter().flat_map(|fields| fields.keys());
            let known: Vec<&str> = fields.map(String::as_str).filter(|key| !config.extra.contains_key(*key)).collect();
            return Err(unknown_key("model", unknown, &known));
        }
        Ok(config)
    }

    /// What the engine does with activations, by role.
    pub fn activation_policy(&self) -> Result<Policy, RecipeError> {
        let mut policy = Policy::default();
        for (name, activation) in &self.activations {
            let Some((_, role)) = Role::NAMES.iter().find(|(known, _)| known == name) else {
                return Err(unknown_key("activations", name, &Role::NAMES.map(|(known, _)| known)));
            };
            policy = policy.with(*role, (*activation).into());
        }
        Ok(policy)
    }
}

/// TOML has no null, and `q_lora_rank` may be one.
const NULL: &str = "none";

/// A `config.json` as TOML fields, without those that have no effect.
fn read_config(path: &Path) -> Result<Table, RecipeError> {
    let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
    let syntax = |message: String| RecipeError::Syntax { path: path.to_owned(), message };
    let mut config = serde_json::from_str(&text).map_err(|error| syntax(error.to_string()))?;
    replace(&mut config, &serde_json::Value::Null, &NULL.into());
    let mut fields = Table::try_from(config).map_err(|error| syntax(error.to_string()))?;
    // A recipe says only what has an effect; its own unknown keys are mistakes, those of a published file are not.
    for unknown in read_model(&fields)?.unknown_keys() {
        fields.remove(unknown);
    }
    Ok(fields)
}

fn read_model(fields: &Table) -> Result<model::Config, RecipeError> {
    let mut value = serde_json::to_value(fields).expect("a TOML table is a JSON object");
    replace(&mut value, &NULL.into(), &serde_json::Value::Null);
    model::Config::from_value(value).map_err(|error| RecipeError::invalid("model", error.to_string()))
}

/// Replaces a value wherever it stands.
fn replace(value: &mut serde_json::Value, old: &serde_json::Value, new: &serde_json::Value) {
    match value {
        value if value == old => *value = new.clone(),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(|field| replace(field, old, new)),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| replace(item, old, new)),
        _ => {}
    }
}
