//! Opening a MODEL: a run folder (its newest good checkpoint) or a folder with HF safetensors.

use std::path::Path;

use anyhow::{Context, bail};
use checkpoint::RunFolder;
use clap::ValueEnum;
use model::config::WeightDtype;
use model::{Config, Kind, Model, ParameterSpec, hf};
use tensor::{DType, Device, Tensor};
use tokens::Tokenizer;
use train::recipe::{self, Pretrain};

use crate::say;

/// Type of the operands of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit floats
    F32,
    /// bfloat16, as in training
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// A model ready for use.
pub struct Opened {
    /// The network.
    pub model: Model,
    /// Its vocabulary, if the folder has one.
    pub tokenizer: Option<Tokenizer>,
}

impl Opened {
    /// The tokenizer, or an error that says what to do without one.
    pub fn tokenizer(&self, folder: &Path) -> anyhow::Result<&Tokenizer> {
        let missing =
            || format!("{} has no tokenizer.json or tiktoken.model: put one beside config.json", folder.display());
        self.tokenizer.as_ref().with_context(missing)
    }

    /// Tokens that end a text: those of the config and of the tokenizer.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let of_tokenizer = self.tokenizer.iter().flat_map(|tokenizer| [tokenizer.eos(), tokenizer.im_end()]);
        let mut all: Vec<u32> =
            of_tokenizer.flatten().chain(self.model.config().eos_token_ids.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Whether `folder` is a run.
pub fn is_run(folder: &Path) -> bool {
    folder.join("recipe.toml").is_file()
}

/// The resolved recipe of a run.
pub fn recipe_of(folder: &RunFolder) -> anyhow::Result<Pretrain> {
    let path = folder.recipe();
    recipe::load(&path, &[""; 0]).with_context(|| format!("the run's recipe {} is damaged", path.display()))
}

/// Opens a model with products in `dtype` (by default what a run trained in, and bf16 for HF folders).
pub fn open(folder: &Path, dtype: Option<Dtype>) -> anyhow::Result<Opened> {
    if !folder.is_dir() {
        bail!("{} is not a folder: give a run folder, or one with config.json and safetensors", folder.display());
    }
    if is_run(folder) { open_run(folder, dtype) } else { open_hf(folder, dtype) }
}

fn open_run(folder: &Path, dtype: Option<Dtype>) -> anyhow::Result<Opened> {
    let run = RunFolder::open(folder)?;
    let recipe = recipe_of(&run)?;
    let latest = run.checkpoints().latest()?;
    let Some(checkpoint::Latest { snapshot, skipped }) = latest else {
        bail!("{} has no checkpoint yet: let `chogori pretrain` reach its first one", folder.display());
    };
    skipped.iter().for_each(|damaged| say::note(format_args!("passing over a damaged checkpoint: {damaged}")));
    let compute = dtype.map_or(recipe.compute.dtype.into(), DType::from);
    let device = Device::cpu();
    let load = |spec: &ParameterSpec| snapshot.tensor(&spec.name, device, DType::F32, &spec.shape);
    let model = Model::build(recipe.model()?, device, compute, load)?;
    Ok(Opened { model, tokenizer: tokenizer_in(&folder.join("data").join("tokenizer"))? })
}

fn open_hf(folder: &Path, dtype: Option<Dtype>) -> anyhow::Result<Opened> {
    let config = Config::from_file(&folder.join("config.json"))?;
    let weights = hf::Weights::open(folder, &config)?;
    config.notes().iter().chain(weights.notes()).for_each(|note| say::note(format_args!("note: {note}")));
    let compute = dtype.map_or(DType::Bf16, DType::from);
    let (device, disk) = (Device::cpu(), config.dtype);
    let load = |spec: &ParameterSpec| {
        Ok::<Tensor, anyhow::Error>(weights.tensor(spec, device, held_dtype(spec.kind, disk, compute)))
    };
    let model = Model::build(config, device, compute, load)?;
    Ok(Opened { model, tokenizer: tokenizer_in(folder)? })
}

/// Matrices are held as they are multiplied. Vectors and the router stay f32, and so does the embedding if it was saved
/// so: its rows are the residual stream's start and no operand of a product.
fn held_dtype(kind: Kind, disk: WeightDtype, compute: DType) -> DType {
    match kind {
        Kind::Norm | Kind::Router | Kind::RouterBias => DType::F32,
        Kind::Embedding if disk == WeightDtype::F32 => DType::F32,
        _ => compute,
    }
}

fn tokenizer_in(folder: &Path) -> anyhow::Result<Option<Tokenizer>> {
    let found = ["tokenizer.json", "tiktoken.model"].iter().any(|name| folder.join(name).is_file());
    Ok(if found { Some(Tokenizer::load(folder)?) } else { None })
}
