//! The `chogori` command.

fn main() {}
