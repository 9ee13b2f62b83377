//! [`Tokenizer`]: text to token ids and back.

use crate::encoder::Encoder;
use crate::special::{self, SpecialToken, Specials};
use crate::vocabulary::Vocabulary;
use crate::{TokenizerError, TrainOptions, TrainProgress};
use crate::{hugging_face, hugging_face_reader, tiktoken_file, training};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A byte-level BPE tokenizer with Kimi K2's pre-tokenisation and special tokens.
///
/// Ids `0..ranks` are byte strings in order of merge priority, the rest are special tokens. Every byte
/// string can be encoded and comes back unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    specials: Specials,
}

impl Tokenizer {
    /// A tokenizer from byte strings in order of rank, and the special tokens that follow them.
    pub fn new<T: AsRef<[u8]>>(
        ranked: impl IntoIterator<Item = T>,
        specials: Vec<SpecialToken>,
    ) -> Result<Self, TokenizerError> {
        let vocabulary = Vocabulary::new(ranked)?;
        let specials = Specials::new(vocabulary.len(), specials)?;
        Ok(Self { vocabulary, specials })
    }

    /// Learns merges from `texts`; the same texts in the same order give the same tokenizer on every machine.
    ///
    /// Ends with fewer than `options.vocab_size` ids when no pair of tokens occurs twice any more.
    pub fn train<T: AsRef<str>>(
        texts: impl IntoIterator<Item = T>,
        options: &TrainOptions,
        progress: impl FnMut(TrainProgress),
    ) -> Result<Self, TokenizerError> {
        let ranked = training::train(texts, options, progress)?;
        let specials = special::kimi_names(ranked.len(), options.reserved);
        Self::new(ranked, specials)
    }

    /// Reads a tokenizer: a `tokenizer.json`, a `tiktoken.model`, or a folder that has one of them.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        if !path.is_dir() {
            return match path.extension().is_some_and(|extension| extension == "json") {
                true => hugging_face_reader::load(path),
                false => tiktoken_file::load(path),
            };
        }
        let (json, ranks) = (path.join(hugging_face::TOKENIZER), path.join(tiktoken_file::NAME));
        match (json.exists(), ranks.exists()) {
            (true, _) => hugging_face_reader::load(&json),
            (false, true) => tiktoken_file::load(&ranks),
            (false, false) => {
                let names = (hugging_face::TOKENIZER, tiktoken_file::NAME);
                Err(TokenizerError::file(path, format!("the folder has neither {} nor {}", names.0, names.1)))
            }
        }
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` loads and which give
    /// the same ids there (up to Kimi's cuts in runs above 25,000 characters, which the format cannot say).
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), TokenizerError> {
        hugging_face::save(self, folder.as_ref())
    }

    /// Token ids of `text`. Names of special tokens in it are ordinary text: safe for what users write.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut encoder = Encoder::new(&self.vocabulary, text.len());
        encoder.encode(text);
        encoder.finish()
    }

    /// Token ids of `text`, where names of special tokens stand for these tokens: only for trusted text.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut encoder = Encoder::new(&self.vocabulary, text.len());
        encoder.encode_with_special(text, &self.specials);
        encoder.finish()
    }

    /// Token ids of any bytes. Valid UTF-8 is encoded as [`encode`](Self::encode) does; what stands
    /// between is not pre-tokenised.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let mut encoder = Encoder::new(&self.vocabulary, bytes.len());
        encoder.encode_bytes(bytes);
        encoder.finish()
    }

    /// [`encode`](Self::encode) of each text, on at most `threads` threads; the result does not depend on their number.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T], threads: usize) -> Vec<Vec<u32>> {
        let next = AtomicUsize::new(0);
        let encoded = Mutex::new(vec![Vec::new(); texts.len()]);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(text) = texts.get(index) else { break };
                let ids = self.encode(text.as_ref());
                encoded.lock().expect("no thread panics while it holds the lock")[index] = ids;
            }
        };
        std::thread::scope(|scope| {
            (1..threads.min(texts.len())).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        encoded.into_inner().expect("a panic of a worker has ended the scope")
    }

    /// The bytes that `ids` stand for; special tokens stand for their names.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id)?);
        }
        Ok(bytes)
    }

    /// The text that `ids` stand for, with U+FFFD where the bytes are not UTF-8.
    pub fn decode_lossy(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        Ok(String::from_utf8_lossy(&self.decode_bytes(ids)?).into_owned())
    }

    /// The bytes of one token, or the name of a special one.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], TokenizerError> {
        let special = || self.special_token(id).map(|token| token.name.as_bytes());
        let unknown = || TokenizerError::UnknownId { id, vocab_size: self.vocab_size() };
        self.vocabulary.bytes(id).or_else(special).ok_or_else(unknown)
    }

    /// Number of ids, special and reserved ones included: the embedding needs this many rows.
    pub fn vocab_size(&self) -> usize {
        self.ranks() + self.specials.tokens().len()
    }

    /// Number of ids that text can become; the special tokens follow them.
    pub fn ranks(&self) -> usize {
        self.vocabulary.len()
    }

    /// The id of a special token by its name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.id(name)
    }

    /// Whether `id` is a special token, which text never becomes.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_token(id).is_some()
    }

    /// The special token with this id.
    pub fn special_token(&self, id: u32) -> Option<&SpecialToken> {
        self.specials.tokens().get((id as usize).checked_sub(self.ranks())?)
    }

    /// All special tokens in order of id.
    pub fn special_tokens(&self) -> &[SpecialToken] {
        self.specials.tokens()
    }

    /// The id of `[BOS]`, if the tokenizer has it.
    pub fn bos(&self) -> Option<u32> {
        self.special(special::BOS)
    }

    /// The id of `[EOS]`, which ends a document.
    pub fn eos(&self) -> Option<u32> {
        self.special(special::EOS)
    }

    /// The id of `<|im_end|>`, which ends a chat message.
    pub fn im_end(&self) -> Option<u32> {
        self.special(special::IM_END)
    }

    /// The id of `[PAD]`.
    pub fn pad(&self) -> Option<u32> {
        self.special(special::PAD)
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}
