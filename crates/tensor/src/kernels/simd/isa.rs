//! Instruction sets: what this CPU has, and functions compiled once for each of them.

/// Instruction sets, each including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the target guarantees.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with bfloat16 dot products.
    Avx512Bf16,
    /// AMX bfloat16 tiles.
    Amx,
}

impl Isa {
    /// From the least to the most capable.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether this CPU supports it; for AMX also whether the kernel permits it and a checked product is right.
    #[cfg(target_arch = "x86_64")]
    pub fn is_supported(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx2 && avx512,
            Self::Avx512Bf16 => avx2 && avx512 && is_x86_feature_detected!("avx512bf16"),
            Self::Amx => super::amx::is_supported(),
        }
    }

    /// Whether this CPU supports it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_supported(self) -> bool {
        self == Self::Portable
    }

    /// The most capable one that this CPU supports.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_supported()).unwrap_or(Self::Portable)
    }
}

/// Defines a function with a leading `isa: Isa` argument whose body is compiled for every instruction set.
///
/// The body is plain Rust over slices; the compiler vectorises it with what each set offers. Fused
/// multiply-adds are written as `f32::mul_add` and sums go over a fixed number of lanes, so that all sets
/// give the same bits. Loops are `for` loops, and helpers `#[inline(always)]`: closures given to iterators may be
/// compiled apart, without the set's instructions.
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident$(<$($T:ident: $bound:path),+>)?($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name$(<$($T: $bound),+>)?(isa: $crate::kernels::simd::Isa, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body$(<$($T: $bound),+>)?($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2$(<$($T: $bound),+>)?($($arg: $type),*) $(-> $result)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512$(<$($T: $bound),+>)?($($arg: $type),*) $(-> $result)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "a kernel set exists only where its instructions do")]
            match isa {
                $crate::kernels::simd::Isa::Portable => body($($arg),*),
                // SAFETY: `Simd::get` gives out a set only if `Isa::is_supported`.
                $crate::kernels::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                _ => unsafe { avx512($($arg),*) },
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = isa;
                body($($arg),*)
            }
        }
    };
}
pub(crate) use multiversion;
