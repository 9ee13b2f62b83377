//! Arrays, the tape, and coarse differentiable operations on interchangeable kernel sets.
