//! `chogori data build`: a data folder that any number of runs can share.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde_json::json;
use train::prepare::PreparedData;
use train::recipe::Pretrain;

use crate::corpus;
use crate::say::{self, Narrator};

#[derive(Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build tokenizer and token stores from a recipe's corpus; runs use the folder as `data.corpus`
    Build {
        /// The recipe whose `tokenizer` and `data` sections are used
        recipe: PathBuf,
        /// The folder to fill
        #[arg(short, long)]
        output: PathBuf,
        /// Change a key of the recipe: --set data.corpus=my-texts
        #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
        set: Vec<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Build { recipe, output, set, json } = args.command;
    let recipe = Pretrain::load(&recipe, &set)?;
    let data = corpus::prepare(&recipe, &output, Narrator { json })?;
    let PreparedData { tokenizer, train, held_out } = &data;
    if json {
        let side = |store: &data::TokenStore| json!({ "documents": store.len_documents(), "tokens": store.len_tokens(), "bytes": store.text_bytes() });
        let result = json!({ "vocab_size": tokenizer.vocab_size(), "train": side(train), "held_out": side(held_out) });
        return say::line(format_args!("{result}"));
    }
    for (name, store) in [("train", train), ("held out", held_out)] {
        say::line(format_args!(
            "{name:<9} {:>8} documents {:>12} tokens {:>13} bytes, {:.2} bytes per token",
            store.len_documents(),
            store.len_tokens(),
            store.text_bytes(),
            store.text_bytes() as f64 / store.len_tokens() as f64
        ))?;
    }
    say::line(format_args!(
        "vocabulary of {}; use it with --set data.corpus={}",
        tokenizer.vocab_size(),
        output.display()
    ))
}
