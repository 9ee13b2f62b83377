//! Tokenizers: byte-level BPE with Kimi's pre-tokenisation, training, and the special tokens.
