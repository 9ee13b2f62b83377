//! The network family of Kimi K2: config, parameters, forward pass, and HF weights on disk.

pub mod config;
mod config_check;
mod config_fields;
pub mod config_json;
mod config_sections;
pub mod counts;
pub mod layout;
pub mod rope;

pub use config::Config;
pub use config_json::ConfigError;
pub use layout::{Kind, ParameterSpec};
