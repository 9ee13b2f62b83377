//! Matrix products on AMX: tiles of 16 rows of 64 bytes, multiplied by `tdpbf16ps` (Intel SDM, volume 2).
//!
//! The algorithm is written over the small trait [`Tiles`], of which a software version with the instruction's
//! exact arithmetic runs in the tests of every machine; only the four instructions behind the hardware's version
//! need an AMX machine. **These have not been run on hardware by us yet.** So a product of whole numbers is
//! checked once before AMX is used, and a machine where it differs falls back to AVX-512.
//!
//! A tile's sum over 32 numbers has its own order (even and odd places apart), the same for every row; so bits
//! do not depend on the number of rows, but differ from those of other instruction sets.

#![expect(unsafe_code, reason = "tile instructions exist only as assembly; used only where detected and checked")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::cell::Cell;
use std::sync::OnceLock;

use super::gemm::micro::Micro;
use super::gemm::words::Word;
use super::isa::Isa;
use crate::dtype::Bf16;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// 32-bit words in a row of a tile.
pub const TILE_WORDS: usize = 16;
/// Rows and columns of the block that one call computes: two tiles by two tiles of sums.
const BLOCK: usize = 32;

/// Eight registers of sixteen rows of sixteen words.
///
/// # Safety
/// Pointers are valid for sixteen rows of 64 bytes, `stride` bytes apart.
pub trait Tiles {
    /// Sets register `T` to zero.
    unsafe fn zero<const T: u8>(&mut self);
    /// Loads register `T`.
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize);
    /// Stores register `T`.
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize);
    /// Adds to the f32 sums `C` the products of bf16 pairs of row `A[m]` with those of `B`'s columns.
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self);
}

/// `c (+)= a · b` for up to 32 rows and 32 columns, see [`super::gemm::micro::RunUnit`]. Rows are read and written
/// in sixteens, steps in sixteens too.
///
/// # Safety
/// The operands hold whole tiles: `a` 16 or 32 rows, `a_stride` words apart; `b` `steps` rows of 32 words; `c` 16 or
/// 32 rows of 32 floats, `c_stride` apart.
pub unsafe fn block<T: Tiles>(
    tiles: &mut T,
    (rows, steps): (usize, usize),
    (a, a_stride): (*const u32, usize),
    b: *const u32,
    (c, c_stride): (*mut f32, usize),
    load: bool,
) {
    let lower = rows > TILE_ROWS;
    let bytes = size_of::<u32>();
    let (right, below) = (c.wrapping_add(TILE_WORDS), c.wrapping_add(TILE_ROWS * c_stride));
    let below_right = below.wrapping_add(TILE_WORDS);
    // SAFETY: the caller's promise.
    unsafe {
        if load {
            tiles.load::<0>(c.cast(), c_stride * bytes);
            tiles.load::<1>(right.cast(), c_stride * bytes);
        } else {
            tiles.zero::<0>();
            tiles.zero::<1>();
        }
        if lower && load {
            tiles.load::<2>(below.cast(), c_stride * bytes);
            tiles.load::<3>(below_right.cast(), c_stride * bytes);
        } else if lower {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
        for step in (0..steps).step_by(TILE_WORDS) {
            let (a, b) = (a.add(step), b.add(step * BLOCK));
            tiles.load::<4>(a.cast(), a_stride * bytes);
            tiles.load::<6>(b.cast(), BLOCK * bytes);
            tiles.load::<7>(b.add(TILE_WORDS).cast(), BLOCK * bytes);
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 7>();
            if lower {
                tiles.load::<5>(a.add(TILE_ROWS * a_stride).cast(), a_stride * bytes);
                tiles.dot::<2, 5, 6>();
                tiles.dot::<3, 5, 7>();
            }
        }
        tiles.store::<0>(c.cast(), c_stride * bytes);
        tiles.store::<1>(right.cast(), c_stride * bytes);
        if lower {
            tiles.store::<2>(below.cast(), c_stride * bytes);
            tiles.store::<3>(below_right.cast(), c_stride * bytes);
        }
    }
}

/// The micro-kernel of a matrix unit that works through `run`; `small` serves blocks that are too small for it.
pub fn micro(small: Micro, run: super::gemm::micro::RunUnit) -> Micro {
    assert!(small.width == BLOCK && small.right == Word::Pair && small.left == Word::Pair);
    Micro { rows: BLOCK, row_unit: TILE_ROWS, rate: 1024, step_unit: TILE_WORDS, run_unit: Some(run), ..small }
}

/// [`block`] on the tile registers.
///
/// # Safety
/// [`is_supported`], and as for [`block`].
pub unsafe fn run(
    rows: usize,
    steps: usize,
    a: (*const u32, usize),
    b: *const u32,
    c: *mut f32,
    c_stride: usize,
    load: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { block(&mut Registers::of_this_thread(), (rows, steps), a, b, (c, c_stride), load) };
}

/// The tile registers of the calling thread, configured as eight tiles of 16 rows of 64 bytes.
struct Registers(());

thread_local! {
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// Operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Registers {
    /// # Safety
    /// The CPU has AMX, and the kernel has given permission to use it.
    unsafe fn of_this_thread() -> Self {
        if !CONFIGURED.get() {
            let mut configuration =
                Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
            configuration.row_bytes[..8].fill(64);
            configuration.rows[..8].fill(TILE_ROWS as u8);
            // SAFETY: a valid configuration of 64 bytes; nothing else in this program uses the tiles.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, preserves_flags)) };
            CONFIGURED.set(true);
        }
        Self(())
    }
}

// The compiler knows nothing of the tile registers, and never uses them; assembly that is not `pure` stays in order.
impl Tiles for Registers {
    #[inline(always)]
    unsafe fn zero<const T: u8>(&mut self) {
        // SAFETY: the registers are configured.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: as above, and the caller's promise.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) stride,
                options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: as above, and the caller's promise.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: the registers are configured.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }
}

/// Multiply-adds of tiles from registers only, for the peak: `rounds` times four products of tiles.
///
/// # Safety
/// [`is_supported`].
pub unsafe fn burst(rounds: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut tiles = Registers::of_this_thread();
        tiles.zero::<4>();
        tiles.zero::<6>();
        for _ in 0..rounds {
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 6>();
            tiles.dot::<2, 4, 6>();
            tiles.dot::<3, 4, 6>();
        }
    }
}

/// FLOPs of one round of [`burst`].
pub const BURST_FLOPS: f64 = (4 * TILE_ROWS * TILE_WORDS * 2 * TILE_WORDS * 2) as f64;

/// Whether products on the tiles work here: the CPU has them, the kernel permits them, and a checked product of
/// whole numbers is right. Asked once.
pub fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| Isa::Avx512Bf16.is_supported() && has_tiles() && is_permitted() && is_right(run))
}

/// Whether the CPU has bf16 tiles of the expected size, and the kernel saves them.
fn has_tiles() -> bool {
    let leaf = |leaf, sub| __cpuid_count(leaf, sub);
    if leaf(0, 0).eax < 0x1d || leaf(1, 0).ecx & 1 << 27 == 0 {
        return false;
    }
    let features = leaf(7, 0).edx;
    // SAFETY: bit 27 (OSXSAVE) says that the instruction exists.
    let saved = unsafe { saved_states() };
    let palette = leaf(0x1d, 1);
    let (bf16, tile) = (1 << 22, 1 << 24);
    features & (bf16 | tile) == bf16 | tile
        && saved & 0b11 << 17 == 0b11 << 17
        && (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff) == (64, 8, 16)
}

#[target_feature(enable = "xsave")]
fn saved_states() -> u64 {
    // SAFETY: XCR0 exists where the instruction does.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for permission to use the tile registers (arch/x86/include/uapi/asm/prctl.h); it holds for the whole
/// process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: isize;
    // SAFETY: this system call changes nothing but the permission; it overwrites rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems have their own ways, which we do not know yet.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Compares a product of whole numbers, which every order of sums gives exactly, with the plain loop: all four tiles,
/// sums that start from something, and rows that end within a tile.
fn is_right(run: super::gemm::micro::RunUnit) -> bool {
    const STEPS: usize = 3 * TILE_WORDS;
    const STRIDE: usize = STEPS + 5;
    let whole = |i: usize, modulus: usize| (i * 37 % modulus) as f32 - (modulus / 2) as f32;
    let pair = |i: usize, modulus| {
        let half = |i| u32::from(Bf16::from_f32(whole(i, modulus)).0);
        half(2 * i) | half(2 * i + 1) << 16
    };
    let a: Vec<u32> = (0..BLOCK * STRIDE).map(|i| pair(i, 17)).collect();
    let b: Vec<u32> = (0..STEPS * BLOCK).map(|i| pair(i, 13)).collect();
    let start: Vec<f32> = (0..BLOCK * BLOCK).map(|i| whole(i, 11)).collect();
    let halves = |word: u32| [Bf16(word as u16).to_f32(), Bf16((word >> 16) as u16).to_f32()];
    let plain = |row: usize, column: usize| -> f32 {
        let product = |step: usize| {
            let (a, b) = (halves(a[row * STRIDE + step]), halves(b[step * BLOCK + column]));
            a[0] * b[0] + a[1] * b[1]
        };
        (0..STEPS).map(product).sum()
    };
    [(BLOCK, true), (BLOCK, false), (7, true)].into_iter().all(|(rows, load)| {
        let mut c = start.clone();
        // SAFETY: whole tiles, as `block` wants them; the CPU has the instructions.
        unsafe { run(rows, STEPS, (a.as_ptr(), STRIDE), b.as_ptr(), c.as_mut_ptr(), BLOCK, load) };
        (0..rows).flat_map(|row| (0..BLOCK).map(move |column| (row, column))).all(|(row, column)| {
            let at = row * BLOCK + column;
            c[at] == plain(row, column) + if load { start[at] } else { 0.0 }
        })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernels::Form;
    use crate::kernels::simd::gemm;
    use crate::{DType, Device, Tensor};

    /// The registers in memory.
    struct Software([[[u32; TILE_WORDS]; TILE_ROWS]; 8]);

    /// Subnormal numbers count as zero, in operands and results.
    fn flush(x: f32) -> f32 {
        if x.is_subnormal() { 0.0 * x.signum() } else { x }
    }

    impl Tiles for Software {
        unsafe fn zero<const T: u8>(&mut self) {
            self.0[T as usize] = [[0; TILE_WORDS]; TILE_ROWS];
        }

        unsafe fn load<const T: u8>(&mut self, from: *const u8, stride: usize) {
            for (i, row) in self.0[T as usize].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *row = unsafe { from.add(i * stride).cast::<[u32; TILE_WORDS]>().read_unaligned() };
            }
        }

        unsafe fn store<const T: u8>(&mut self, to: *mut u8, stride: usize) {
            for (i, row) in self.0[T as usize].iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { to.add(i * stride).cast::<[u32; TILE_WORDS]>().write_unaligned(*row) };
            }
        }

        /// The operation section of TDPBF16PS: even and odd places are summed apart, then added, then accumulated.
        unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
            let half = |word: u32, odd: usize| flush(f32::from_bits(word << (16 * (1 - odd)) & 0xffff_0000));
            for m in 0..TILE_ROWS {
                for n in 0..TILE_WORDS {
                    let mut sums = [0.0f32; 2];
                    for k in 0..TILE_WORDS {
                        let (a, b) = (self.0[A as usize][m][k], self.0[B as usize][k][n]);
                        for odd in 0..2 {
                            sums[odd] = flush(half(a, odd).mul_add(half(b, odd), sums[odd]));
                        }
                    }
                    let c = &mut self.0[C as usize][m][n];
                    *c = flush(flush(f32::from_bits(*c)) + flush(sums[0] + sums[1])).to_bits();
                }
            }
        }
    }

    /// [`block`] on registers in memory, for machines without AMX.
    ///
    /// # Safety
    /// As for [`block`].
    pub unsafe fn software(
        rows: usize,
        steps: usize,
        a: (*const u32, usize),
        b: *const u32,
        c: *mut f32,
        c_stride: usize,
        load: bool,
    ) {
        let mut tiles = Software([[[0; TILE_WORDS]; TILE_ROWS]; 8]);
        // SAFETY: the caller's promise.
        unsafe { block(&mut tiles, (rows, steps), a, b, (c, c_stride), load) };
    }

    fn random(device: Device, dtype: DType, shape: &[usize], seed: u32) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 23) - 1.0
        };
        let values: Vec<_> = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
        Tensor::from_f64(device, dtype, shape, &values)
    }

    /// The three products of one shape by way of the software tiles, if this CPU can pack for them.
    fn products(isa: Isa, rows: &[usize], n: usize, k: usize) -> [Tensor; 3] {
        let device = Device::cpu_with(isa).expect("the caller has asked");
        let micro = micro(Micro::of(isa, DType::Bf16), software);
        let all = rows.iter().sum();
        let (x, dy) = (random(device, DType::Bf16, &[all, k], 1), random(device, DType::Bf16, &[all, n], 2));
        let w = random(device, DType::F32, &[rows.len(), n, k], 3);
        let offsets: Vec<u32> = (0..=rows.len()).map(|i| rows[..i].iter().sum::<usize>() as u32).collect();
        let offsets = Tensor::from_slice(device, &[offsets.len()], &offsets);
        let product = |x: &Tensor, form, out| {
            gemm::matmul_with(isa, &micro, x, Some(&offsets), &gemm::pack_with(isa, &micro, &w, form, DType::Bf16), out)
        };
        let mut dw = w.clone();
        gemm::weight_grad_with(isa, &micro, &dy, &x, Some(&offsets), &mut dw, true);
        [product(&x, Form::Forward, DType::F32), product(&dy, Form::InputGrad, DType::Bf16), dw]
    }

    #[test]
    fn the_check_at_detection_accepts_right_tiles_and_no_others() {
        assert!(is_right(software));
        unsafe fn broken(
            rows: usize,
            steps: usize,
            a: (*const u32, usize),
            b: *const u32,
            c: *mut f32,
            stride: usize,
            load: bool,
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                software(rows, steps, a, b, c, stride, load);
                *c.add(6 * stride + 31) += 1.0;
            }
        }
        assert!(!is_right(broken));
    }

    #[test]
    fn products_by_way_of_tiles_agree_with_the_reference() {
        if !Isa::Avx512Bf16.is_supported() {
            return; // The layout of its operands belongs to these kernels.
        }
        for (rows, n, k) in [(vec![1], 5, 7), (vec![40, 0, 17, 3], 70, 65), (vec![64], 64, 96), (vec![33], 40, 1100)] {
            let fast = products(Isa::Avx512Bf16, &rows, n, k);
            let (reference, all) = (Device::reference(), rows.iter().sum());
            let kernels = reference.kernels();
            let (x, dy) = (random(reference, DType::Bf16, &[all, k], 1), random(reference, DType::Bf16, &[all, n], 2));
            let w = random(reference, DType::F32, &[rows.len(), n, k], 3);
            let offsets: Vec<u32> = (0..=rows.len()).map(|i| rows[..i].iter().sum::<usize>() as u32).collect();
            let offsets = Tensor::from_slice(reference, &[offsets.len()], &offsets);
            let product =
                |x: &Tensor, form| kernels.matmul(x, Some(&offsets), &kernels.pack(&w, form, DType::Bf16), DType::F32);
            let mut dw = w.clone();
            kernels.weight_grad(&dy, &x, Some(&offsets), &mut dw, true);
            let truth = [product(&x, Form::Forward), product(&dy, Form::InputGrad), dw];
            for (i, (fast, truth)) in fast.iter().zip(&truth).enumerate() {
                for (a, b) in fast.to_vec_f64().into_iter().zip(truth.to_vec_f64()) {
                    let bound = 1e-6 * (n + k + all) as f64 + if i == 1 { b.abs() / 256.0 } else { 0.0 };
                    assert!((a - b).abs() <= bound, "product {i} of {rows:?} {n}x{k}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        if !Isa::Avx512Bf16.is_supported() {
            return;
        }
        let (isa, device) = (Isa::Avx512Bf16, Device::cpu_with(Isa::Avx512Bf16).expect("just asked"));
        let micro = micro(Micro::of(isa, DType::Bf16), software);
        let packed =
            gemm::pack_with(isa, &micro, &random(device, DType::F32, &[40, 1088], 3), Form::Forward, DType::Bf16);
        let x = random(device, DType::Bf16, &[50, 1088], 1);
        let all = gemm::matmul_with(isa, &micro, &x, None, &packed, DType::F32);
        for rows in [0..1, 3..36, 17..49, 49..50] {
            let part = gemm::matmul_with(isa, &micro, &x.rows(rows.clone()), None, &packed, DType::F32);
            assert_eq!(part.to_bytes(), all.rows(rows.clone()).to_bytes(), "{rows:?}");
        }
    }
}
