//! The network family of Kimi K2: config, parameters, forward pass, and HF weights on disk.
