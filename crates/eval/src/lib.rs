//! Held-out bits per byte, and the baselines they are compared with.
