//! The one place that decides what the forward pass leaves behind for the backward pass.
//!
//! Kimi K2 (arXiv 2507.20534, section 2.4.3) recomputes norms, SwiGLU and MLA's up-projections, stores the
//! inputs of the MoE up-projections and of SwiGLU in FP8, and offloads the rest. Here each is an [`Action`]
//! that a [`Policy`] gives to a [`Role`]; operations only call [`crate::Tape::save`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, OnceLock};

use crate::dtype::DType;
use crate::tensor::Tensor;

/// What a saved activation is; the granularity at which policies decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Output of an RMSNorm.
    NormOutput,
    /// Outputs of MLA's up-projections (queries; keys and values), rotated or not.
    MlaUpProjection,
    /// Output of attention, with its row statistics.
    AttentionOutput,
    /// Token rows gathered for the experts: the input of the MoE up-projections.
    ExpertInput,
    /// Gate and up projections: the inputs of SwiGLU.
    SwigluInput,
    /// Output of SwiGLU: the input of the down-projections.
    SwigluOutput,
    /// The residual stream.
    Residual,
    /// Everything else.
    Other,
}

impl Role {
    /// All roles with the names that recipes use.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("norm_output", Self::NormOutput),
        ("mla_up_projection", Self::MlaUpProjection),
        ("attention_output", Self::AttentionOutput),
        ("expert_input", Self::ExpertInput),
        ("swiglu_input", Self::SwigluInput),
        ("swiglu_output", Self::SwigluOutput),
        ("residual", Self::Residual),
        ("other", Self::Other),
    ];
}

/// What happens to a saved activation between forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Stays as it is.
    #[default]
    Keep,
    /// Is dropped and computed again by the operation that made it; kept where that is unknown.
    Recompute,
    /// Is stored as FP8 E4M3 with an f32 scale for each 1x128 tile. Changes the gradients slightly.
    Fp8,
    /// Is written to a temporary file and read back.
    Offload,
}

/// Which action each role gets; roles that are not named are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    actions: BTreeMap<Role, Action>,
}

impl Policy {
    /// Sets the action of one role.
    pub fn with(mut self, role: Role, action: Action) -> Self {
        self.actions.insert(role, action);
        self
    }

    /// The cheap parts are recomputed: norms, SwiGLU and the gathering of expert inputs.
    pub fn recompute_cheap() -> Self {
        let roles = [Role::NormOutput, Role::SwigluOutput, Role::ExpertInput];
        roles.into_iter().fold(Self::default(), |policy, role| policy.with(role, Action::Recompute))
    }

    /// The action for a role.
    pub fn action(&self, role: Role) -> Action {
        self.actions.get(&role).copied().unwrap_or_default()
    }
}

/// Computes an activation again, bit for bit.
pub type Recipe = Arc<dyn Fn() -> Tensor + Send + Sync>;

/// An activation on its way to the backward pass.
#[derive(Clone)]
pub struct Saved(Arc<State>);

enum State {
    Kept(Tensor),
    /// `made` holds the tensor while several users of one backward step want it.
    Recomputed(Recipe),
    Fp8 {
        codes: Tensor,
        scales: Tensor,
        dtype: DType,
    },
    Offloaded {
        file: Mutex<File>,
        like: Tensor,
        bytes: usize,
        shape: Vec<usize>,
    },
}

impl Saved {
    pub(crate) fn new(tensor: &Tensor, recipe: Option<&Recipe>, action: Action) -> Self {
        let real = tensor.dtype().is_float() && !tensor.shape().is_empty();
        Self(Arc::new(match (action, recipe) {
            (Action::Recompute, Some(recipe)) => State::Recomputed(recipe.clone()),
            (Action::Fp8, _) if real && tensor.dtype() != DType::F64 => {
                let (codes, scales) = tensor.device().kernels().quantize_fp8(tensor);
                State::Fp8 { codes, scales, dtype: tensor.dtype() }
            }
            (Action::Offload, _) => offload(tensor),
            _ => State::Kept(tensor.clone()),
        }))
    }

    /// The activation again.
    pub fn load(&self) -> Tensor {
        match &*self.0 {
            State::Kept(tensor) => tensor.clone(),
            State::Recomputed(recipe) => recipe(),
            State::Fp8 { codes, scales, dtype } => codes.device().kernels().dequantize_fp8(codes, scales, *dtype),
            State::Offloaded { file, like, bytes, shape } => {
                let mut content = vec![0; *bytes];
                let mut file = file.lock().expect("no reader panics");
                file.seek(SeekFrom::Start(0))
                    .and_then(|_| file.read_exact(&mut content))
                    .expect("the offload file can be read back");
                Tensor::from_bytes(like.device(), like.dtype(), shape, &content)
            }
        }
    }
}

/// Writes to an anonymous temporary file, which the system removes when it is closed. Falls back to keeping
/// the tensor where no such file can be made or written: slower is not wrong.
fn offload(tensor: &Tensor) -> State {
    let bytes = tensor.to_bytes();
    let written = tempfile::tempfile().and_then(|mut file| file.write_all(&bytes).map(|()| file));
    match written {
        Ok(file) => State::Offloaded {
            file: Mutex::new(file),
            like: Tensor::empty(tensor.device(), tensor.dtype(), &[0]),
            bytes: bytes.len(),
            shape: tensor.shape().to_vec(),
        },
        Err(_) => State::Kept(tensor.clone()),
    }
}

/// Saves an activation at most once, however many operations want it.
pub(crate) type SavedOnce = Arc<OnceLock<Saved>>;
