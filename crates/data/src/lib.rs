//! From a folder of files to packed, shuffled training sequences.
