//! `chogori export`: a model as a Hugging Face folder.

use std::path::PathBuf;

use clap::Parser;
use model::hf_save::{self, SaveOptions};

use crate::open::{self, Dtype};
use crate::say;

#[derive(Parser)]
#[command(after_help = "Example:\n  chogori export runs/quickstart my-model\n  \
    python -c \"import transformers; transformers.AutoModelForCausalLM.from_pretrained('my-model')\"")]
pub struct Args {
    /// A run folder, or a folder with Hugging Face safetensors
    model: PathBuf,
    /// The folder to write; must be absent or empty
    output: PathBuf,
    /// Dtype of the stored weights; f32 keeps a run's weights exactly
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let opened = open::open(&args.model, Some(Dtype::F32))?;
    let files = tokenizer_files(&opened)?;
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let options = SaveOptions { dtype: args.dtype.into(), ..SaveOptions::default() };
    let weights: std::collections::HashMap<_, _> =
        opened.model.parameters().map(|(spec, weight)| (spec.name.clone(), weight.master().clone())).collect();
    hf_save::save(&args.output, opened.model.config(), &options, &files, |spec| weights[&spec.name].clone())?;
    say::line(format_args!("{}", args.output.display()))
}

/// The tokenizer's files, by name.
fn tokenizer_files(opened: &open::Opened) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let Some(tokenizer) = &opened.tokenizer else { return Ok(Vec::new()) };
    let folder = tempfile::tempdir()?;
    tokenizer.save(folder.path())?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    files.sort();
    Ok(files)
}
