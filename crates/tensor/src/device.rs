//! Where a tensor lives and which kernel set computes on it, chosen at run time.

use std::sync::OnceLock;

use crate::kernels::simd::{Isa, Simd};
use crate::kernels::{Kernels, reference::Reference};

/// A handle to a kernel set; cheap to copy.
#[derive(Clone, Copy)]
pub struct Device(&'static dyn Kernels);

impl Device {
    /// The plain loops that define every operation. They compute in f64 and round once.
    pub fn reference() -> Self {
        static REFERENCE: Reference = Reference;
        Self(&REFERENCE)
    }

    /// The fastest kernel set that this CPU supports.
    pub fn cpu() -> Self {
        static BEST: OnceLock<Device> = OnceLock::new();
        *BEST.get_or_init(|| Self::cpu_with(Isa::best()).expect("the detected instruction set is supported"))
    }

    /// The CPU kernels restricted to `isa`, or `None` where the CPU lacks it.
    pub fn cpu_with(isa: Isa) -> Option<Self> {
        Simd::get(isa).map(|kernels| Self(kernels))
    }

    /// Every kernel set that runs on this machine, the reference first.
    pub fn all() -> Vec<Self> {
        let simd = Isa::ALL.into_iter().filter_map(Self::cpu_with);
        std::iter::once(Self::reference()).chain(simd).collect()
    }

    /// Name for reports: `reference`, `portable`, `avx2`, …
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The operations.
    pub fn kernels(self) -> &'static dyn Kernels {
        self.0
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}
