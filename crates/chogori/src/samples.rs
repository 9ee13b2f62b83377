//! What a model in training makes of a few beginnings: for the terminal, and for the run's `samples/`.

use std::path::PathBuf;

use anyhow::Context;
use checkpoint::RunFolder;
use data::TokenStore;
use inference::{Generator, Sampler, Sampling};
use model::Model;
use tokens::Tokenizer;

const SAMPLE_TOKENS: usize = 48;
/// Tokens of a held-out document that are given as its beginning, and how many documents.
const PROMPT_TOKENS: usize = 16;
const PROMPTS: usize = 4;

/// Beginnings, and where their continuations go.
pub struct Samples<'a> {
    tokenizer: &'a Tokenizer,
    prompts: Vec<Vec<u32>>,
    folder: PathBuf,
}

impl<'a> Samples<'a> {
    /// Continues given texts.
    pub fn of_texts(folder: &RunFolder, tokenizer: &'a Tokenizer, texts: &[&str]) -> Self {
        let prompt = |text: &&str| tokenizer.bos().into_iter().chain(tokenizer.encode(text)).collect();
        Self { tokenizer, prompts: texts.iter().map(prompt).collect(), folder: folder.samples() }
    }

    /// Continues the beginnings of held-out documents, spread over all of them.
    pub fn of_held_out(folder: &RunFolder, tokenizer: &'a Tokenizer, store: &TokenStore) -> anyhow::Result<Self> {
        let count = store.len_documents().min(PROMPTS);
        let beginning = |i: usize| {
            let document = i * store.len_documents() / count;
            store.document_range(document, 0..store.document_len(document).min(PROMPT_TOKENS))
        };
        let prompts = (0..count).map(beginning).collect::<Result<_, _>>()?;
        Ok(Self { tokenizer, prompts, folder: folder.samples() })
    }

    /// Each beginning and its continuation, divided by `│`; also kept as `samples/step-N.txt`.
    pub fn take(&self, step: u64, model: &Model) -> anyhow::Result<Vec<String>> {
        let texts: Vec<String> = self.prompts.iter().filter_map(|prompt| self.continued(model, prompt)).collect();
        let path = self.folder.join(format!("step-{step:08}.txt"));
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| std::fs::write(&path, texts.join("\n\n")))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(texts)
    }

    /// `None` if the model's context is too short for the beginning: that costs the sample, not the run.
    fn continued(&self, model: &Model, prompt: &[u32]) -> Option<String> {
        let sampler = Sampler::new(Sampling { seed: 1, ..Sampling::default() }).expect("the default is valid");
        let stop: Vec<u32> = self.tokenizer.eos().into_iter().collect();
        let mut generator = Generator::new(model);
        generator.append(prompt).ok()?;
        let generation = generator.generate(&sampler, SAMPLE_TOKENS, &stop, |_| true).ok()?;
        let ids: Vec<u32> = generation.tokens.iter().map(|token| token.id).filter(|id| !stop.contains(id)).collect();
        // The mark of the beginning is no text; rows of the embedding beyond the vocabulary stand for nothing.
        let shown = &prompt[usize::from(prompt.first().copied() == self.tokenizer.bos())..];
        let text = |ids: &[u32]| self.tokenizer.decode_lossy(ids).unwrap_or_default();
        Some(format!("{}│{}", text(shown), text(&ids)))
    }
}
