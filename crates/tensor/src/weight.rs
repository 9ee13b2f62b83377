//! A weight: its master copy, and the packed forms that products read, made when first needed.

use std::sync::{Arc, OnceLock};

use crate::dtype::DType;
use crate::kernels::{Form, Packed};
use crate::tape::ParamId;
use crate::tensor::Tensor;

/// A trainable tensor. Cloning is cheap and shares everything.
#[derive(Clone)]
pub struct Weight {
    id: ParamId,
    master: Tensor,
    /// Dtype of the operands in matrix products.
    compute: DType,
    packed: Arc<[OnceLock<Packed>; 2]>,
}

impl Weight {
    /// `master` is f32 in training, and whatever the file had in inference.
    pub fn new(id: ParamId, master: Tensor, compute: DType) -> Self {
        Self { id, master, compute, packed: Arc::default() }
    }

    /// Key of its gradient.
    pub fn id(&self) -> ParamId {
        self.id
    }

    /// The master copy.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// Dtype of the operands in matrix products.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// Changes the master copy and forgets the packed forms.
    pub fn update(&mut self, change: impl FnOnce(&mut Tensor)) {
        self.packed = Arc::default();
        change(&mut self.master);
    }

    /// Same weight for products in another dtype.
    pub fn with_compute(&self, compute: DType) -> Self {
        Self::new(self.id, self.master.clone(), compute)
    }

    /// The layout for `form`, made once.
    pub fn packed(&self, form: Form) -> &Packed {
        let pack = || self.master.device().kernels().pack(&self.master, form, self.compute);
        self.packed[form as usize].get_or_init(pack)
    }
}
