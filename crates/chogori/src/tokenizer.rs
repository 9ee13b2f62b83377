//! `chogori tokenizer train|encode|decode`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use data::corpus::{self, CorpusOptions};
use tokens::{Tokenizer, TrainOptions, TrainProgress};

use crate::progress::Spinner;
use crate::say;

#[derive(Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Learn a byte-level BPE vocabulary with K2's pre-tokenisation
    Train {
        /// A folder or file of text, Markdown, JSON lines (also .gz, .zst)
        corpus: PathBuf,
        /// Folder for tokenizer.json and tokenizer_config.json
        #[arg(short, long)]
        output: PathBuf,
        /// Ids in all, reserved ones included
        #[arg(long, default_value_t = 8192)]
        vocab_size: usize,
        /// Ids at the end for special tokens
        #[arg(long, default_value_t = 32)]
        reserved: usize,
        /// Text beyond this many bytes is not read
        #[arg(long, default_value_t = 64_000_000)]
        bytes: u64,
        /// Field of JSON lines that holds the text
        #[arg(long, default_value = "text")]
        text_field: String,
    },
    /// Print the ids of a text
    Encode {
        /// A folder with tokenizer.json or tiktoken.model, or such a file
        tokenizer: PathBuf,
        /// The text [default: standard input]
        text: Option<String>,
        /// Match special tokens instead of encoding them as text
        #[arg(long)]
        special: bool,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print the text of some ids
    Decode {
        /// A folder with tokenizer.json or tiktoken.model, or such a file
        tokenizer: PathBuf,
        /// Ids, separated by commas or spaces
        #[arg(value_delimiter = ',', num_args = 1..)]
        ids: Vec<u32>,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Train { corpus, output, vocab_size, reserved, bytes, text_field } => {
            let options = TrainOptions { vocab_size, reserved, text_bytes_max: bytes, token_bytes_max: 256 };
            train(&corpus, &output, text_field, &options)
        }
        Command::Encode { tokenizer, text, special, json } => {
            let tokenizer = Tokenizer::load(&tokenizer)?;
            let text = match text {
                Some(text) => text,
                None => std::io::read_to_string(std::io::stdin()).context("cannot read text from standard input")?,
            };
            let ids = if special { tokenizer.encode_with_special(&text) } else { tokenizer.encode(&text) };
            let words: Vec<String> = ids.iter().map(u32::to_string).collect();
            say::line(format_args!("{}", if json { format!("[{}]", words.join(",")) } else { words.join(" ") }))
        }
        Command::Decode { tokenizer, ids } => {
            let text = Tokenizer::load(&tokenizer)?.decode_lossy(&ids)?;
            say::line(format_args!("{text}"))
        }
    }
}

fn train(
    path: &std::path::Path,
    output: &std::path::Path,
    text_field: String,
    options: &TrainOptions,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        !output.join("tokenizer.json").exists(),
        "{} has a tokenizer already: choose another folder",
        output.display()
    );
    let mut documents = corpus::open(path, CorpusOptions { text_field, ..CorpusOptions::default() })?;
    let spinner = Spinner::new();
    // The trainer takes texts; an error among the documents ends them and is reported after.
    let mut failure = None;
    let texts = std::iter::from_fn(|| match documents.next()? {
        Ok(document) => Some(document.text),
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    let tokenizer = Tokenizer::train(texts, options, |step| match step {
        TrainProgress::Counting { text_bytes } => spinner.say(format!("reading: {:.1} MB", text_bytes as f64 / 1e6)),
        TrainProgress::Merging { done, wanted } => spinner.say(format!("merging: {done} of {wanted}")),
    });
    spinner.finish();
    if let Some(error) = failure {
        return Err(error.into());
    }
    let tokenizer = tokenizer?;
    tokenizer.save(output)?;
    say::line(format_args!("{} ids in {}", tokenizer.vocab_size(), output.display()))
}
