//! Products of every kernel set: close to the reference on odd sizes, and one arithmetic: an element's bits
//! depend on its row and its matrix alone.

use chogori_tensor::kernels::Form;
use chogori_tensor::{DType, Device, Tensor, pool};

const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Evenly distributed numbers in -1 .. 1, different for each seed.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn random(device: Device, dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_f64(device, dtype, shape, &numbers(shape.iter().product(), seed))
}

fn offsets(device: Device, group_rows: &[usize]) -> Tensor {
    let mut sums = vec![0u32];
    group_rows.iter().for_each(|&rows| sums.push(sums[sums.len() - 1] + rows as u32));
    Tensor::from_slice(device, &[sums.len()], &sums)
}

/// Distance between an exact number and its neighbour in `dtype`, relative.
fn epsilon(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-24) }
}

/// Sums of `depth` products of numbers below 1 in f32, then one rounding to `out`. Rounding errors of a sum
/// grow like a random walk: sqrt(depth) times an epsilon of the partial sums, which stay below sqrt(depth);
/// eight is a generous number of standard deviations.
fn assert_close(fast: &Tensor, truth: &Tensor, depth: usize, what: &str) {
    assert_eq!((fast.shape(), fast.dtype()), (truth.shape(), truth.dtype()), "{what}");
    let sums = 8.0 * epsilon(DType::F32) * depth as f64;
    for (i, (a, b)) in fast.to_vec_f64().into_iter().zip(truth.to_vec_f64()).enumerate() {
        let bound = sums + 2.0 * epsilon(fast.dtype()) * b.abs();
        assert!((a - b).abs() <= bound, "{what}: element {i} is {a}, the reference has {b}");
    }
}

/// Rows per group, N and K.
const SHAPES: &[(&[usize], usize, usize)] = &[
    (&[1], 1, 1),
    (&[3], 5, 7),
    (&[1], 33, 64),
    (&[17], 31, 33),
    (&[40], 70, 130),
    (&[29], 64, 517),
    (&[2], 40, 1100),
    (&[0], 8, 8),
    (&[5, 0, 1, 16], 33, 19),
    (&[0, 0, 31], 16, 48),
    (&[7, 15, 14, 13, 0], 20, 65),
    // More slices of the depth than are packed at once, in several groups of panels.
    (&[3], 270, 4700),
    // More rows than a weight gradient packs at once.
    (&[8195, 2], 3, 2),
];

/// Runs the three products of one shape: forward, input gradient, weight gradient (fresh and accumulated).
fn products(device: Device, dtype: DType, out: DType, shape: &(&[usize], usize, usize)) -> [Tensor; 4] {
    let (groups, n, k) = *shape;
    let rows = groups.iter().sum();
    let kernels = device.kernels();
    let w = random(device, DType::F32, &[groups.len(), n, k], 1);
    let (x, dy) = (random(device, dtype, &[rows, k], 2), random(device, dtype, &[rows, n], 3));
    let offsets = (groups.len() > 1).then(|| offsets(device, groups));
    let offsets = offsets.as_ref();
    let y = kernels.matmul(&x, offsets, &kernels.pack(&w, Form::Forward, dtype), out);
    let dx = kernels.matmul(&dy, offsets, &kernels.pack(&w, Form::InputGrad, dtype), out);
    let (mut dw, mut sum) = (random(device, DType::F32, &[groups.len(), n, k], 4), w);
    kernels.weight_grad(&dy, &x, offsets, &mut dw, false);
    kernels.weight_grad(&dy, &x, offsets, &mut sum, true);
    [y, dx, dw, sum]
}

#[test]
fn all_products_agree_with_the_reference() {
    for shape in SHAPES {
        for (dtype, out) in DTYPES.into_iter().flat_map(|dtype| DTYPES.map(|out| (dtype, out))) {
            let truth = products(Device::reference(), dtype, out, shape);
            for device in Device::all() {
                let fast = products(device, dtype, out, shape);
                let depths = [shape.2, shape.1, shape.0.iter().sum(), shape.0.iter().sum()];
                for (name, i) in [("forward", 0), ("input grad", 1), ("weight grad", 2), ("accumulated", 3)] {
                    let what = format!("{name} {shape:?} {dtype:?} -> {out:?} on {}", device.name());
                    assert_close(&fast[i], &truth[i], depths[i] + 1, &what);
                }
            }
        }
    }
}

#[test]
fn weights_in_bf16_and_weights_in_f32_are_rounded_alike() {
    for device in Device::all() {
        let kernels = device.kernels();
        let w = random(device, DType::F32, &[35, 21], 5);
        let x = random(device, DType::Bf16, &[6, 21], 6);
        let product =
            |w: &Tensor| kernels.matmul(&x, None, &kernels.pack(w, Form::Forward, DType::Bf16), DType::F32).to_bytes();
        assert_eq!(product(&w), product(&w.to_dtype(DType::Bf16)), "{}", device.name());
    }
}

#[test]
fn f32_products_have_the_same_bits_on_every_instruction_set() {
    let shape: (&[usize], usize, usize) = (&[5, 20], 45, 600);
    let sets: Vec<_> = Device::all().into_iter().filter(|device| *device != Device::reference()).collect();
    let first = products(sets[0], DType::F32, DType::F32, &shape);
    for device in &sets[1..] {
        let other = products(*device, DType::F32, DType::F32, &shape);
        for i in 0..4 {
            assert_eq!(first[i].to_bytes(), other[i].to_bytes(), "product {i} on {}", device.name());
        }
    }
}

/// Copies the given rows of `x` below each other.
fn pick(x: &Tensor, rows: &[usize]) -> Tensor {
    Tensor::concat_rows(&rows.iter().map(|&row| x.rows(row..row + 1)).collect::<Vec<_>>())
}

#[test]
fn a_row_has_the_same_bits_alone_in_any_order_in_a_view_and_beside_other_groups() {
    let (rows, n, k) = (45, 70, 1090);
    for (device, dtype, out) in Device::all().into_iter().flat_map(|d| DTYPES.map(|t| (d, t, t))) {
        let kernels = device.kernels();
        let (x, w) = (random(device, dtype, &[rows, k], 7), random(device, DType::F32, &[3, n, k], 8));
        let packed = kernels.pack(&w.rows(1..2), Form::Forward, dtype);
        let y = kernels.matmul(&x, None, &packed, out);
        let what = format!("{dtype:?} on {}", device.name());
        for first in [0, 1, 13, 44] {
            for len in [1, 2, 7, 15, 32].into_iter().filter(|len| first + len <= rows) {
                let part = kernels.matmul(&x.rows(first..first + len), None, &packed, out);
                assert_eq!(part.to_bytes(), y.rows(first..first + len).to_bytes(), "rows {first}+{len}, {what}");
            }
        }
        let order: Vec<_> = (0..rows).map(|i| i * 7 % rows).collect();
        let shuffled = kernels.matmul(&pick(&x, &order), None, &packed, out);
        assert_eq!(shuffled.to_bytes(), pick(&y, &order).to_bytes(), "shuffled, {what}");
        let all = kernels.pack(&w, Form::Forward, dtype);
        let (before, after) = (random(device, dtype, &[9, k], 9), random(device, dtype, &[2, k], 10));
        let grouped = Tensor::concat_rows(&[before, x.clone(), after]);
        let grouped = kernels.matmul(&grouped, Some(&offsets(device, &[9, rows, 2])), &all, out);
        assert_eq!(grouped.rows(9..9 + rows).to_bytes(), y.to_bytes(), "grouped, {what}");
    }
}

#[test]
fn a_weight_gradient_has_the_same_bits_beside_other_groups() {
    let (rows, n, k) = (77, 33, 65);
    for (device, dtype) in Device::all().into_iter().flat_map(|d| DTYPES.map(|t| (d, t))) {
        let kernels = device.kernels();
        let grad = |rows: &[(u64, usize)], groups: &Tensor| {
            let part = |seed: u64, width| {
                let parts: Vec<_> =
                    rows.iter().map(|&(s, rows)| random(device, dtype, &[rows, width], s + seed)).collect();
                Tensor::concat_rows(&parts)
            };
            let mut into = Tensor::zeros(device, DType::F32, &[groups.len() - 1, n, k]);
            kernels.weight_grad(&part(100, n), &part(200, k), Some(groups), &mut into, false);
            into
        };
        let alone = grad(&[(1, rows)], &offsets(device, &[rows]));
        let among = grad(&[(2, 5), (1, rows), (3, 30)], &offsets(device, &[5, 0, rows, 30]));
        assert_eq!(alone.to_bytes(), among.rows(2..3).to_bytes(), "{dtype:?} on {}", device.name());
    }
}

#[test]
fn threads_do_not_show_in_the_bits() {
    // Large enough to be cut into several tasks on every kernel set but the reference.
    let shape: (&[usize], usize, usize) = (&[150, 0, 300, 3], 200, 530);
    for (device, dtype) in Device::all().into_iter().skip(1).flat_map(|d| DTYPES.map(|t| (d, t))) {
        let run = |threads| {
            pool::set_threads(threads);
            products(device, dtype, dtype, &shape)
        };
        let (one, many) = (run(1), [run(2), run(5), run(0)]);
        for (other, i) in many.iter().flat_map(|other| (0..4).map(move |i| (other, i))) {
            assert_eq!(one[i].to_bytes(), other[i].to_bytes(), "product {i}, {dtype:?} on {}", device.name());
        }
    }
}

#[test]
fn a_row_that_is_not_a_number_spoils_no_other() {
    let (rows, n, k) = (19, 37, 31);
    for (device, dtype) in Device::all().into_iter().flat_map(|d| DTYPES.map(|t| (d, t))) {
        let kernels = device.kernels();
        let packed = kernels.pack(&random(device, DType::F32, &[n, k], 11), Form::Forward, dtype);
        let clean = numbers(rows * k, 12);
        let mut bad = clean.clone();
        bad[5 * k..6 * k].fill(f64::NAN);
        let y = |x: &[f64]| kernels.matmul(&Tensor::from_f64(device, dtype, &[rows, k], x), None, &packed, DType::F32);
        let (clean, bad) = (y(&clean), y(&bad));
        for row in (0..rows).filter(|&row| row != 5) {
            assert_eq!(clean.rows(row..row + 1).to_bytes(), bad.rows(row..row + 1).to_bytes(), "{}", device.name());
        }
    }
}
