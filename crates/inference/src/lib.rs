//! Generation: the KV cache and the sampler over the training kernels.
