//! State that is exported and imported continues a run bit by bit; anything that does not fit is refused.

mod support;

use chogori_optim::{
    Algorithm, Optimizer, OptimizerConfig, OptimizerState, Rule, Schedule, Shape, StateError, WeightAverage,
};
use serde::{Serialize, de::DeserializeOwned};
use support::*;
use tensor::{DType, Device, Tensor};

fn start(device: Device) -> [Owned; 3] {
    let mut random = Random(21);
    let mut normal = |len| random.normal(len, 0.1);
    [
        owned(4, "proj.weight", Rule::Muon, &[6, 4], &normal(24), device),
        owned(1, "experts.weight", Rule::Muon, &[2, 3, 5], &normal(30), device),
        owned(3, "norm.weight", Rule::AdamW, &[8], &normal(8), device),
    ]
}

fn run(optimizer: &mut Optimizer, all: &mut [Owned], steps: std::ops::Range<u64>) {
    for t in steps {
        let mut random = Random(100 + t);
        let g = [24, 30, 8].map(|len| random.normal(len, 1.0));
        step(optimizer, all, &g, 0.01 / (t + 1) as f64);
    }
}

fn bits(all: &[Owned]) -> Vec<Vec<u8>> {
    all.iter().map(|o| o.weight.master().to_bytes()).collect()
}

#[test]
fn a_run_that_is_saved_and_loaded_is_the_same_run() {
    for device in devices() {
        for algorithm in [Algorithm::MuonClip, Algorithm::AdamW] {
            let config = OptimizerConfig { algorithm, ..OptimizerConfig::kimi_k2() };
            let mut straight = start(device);
            let mut first = optimizer(&config, &mut straight);
            run(&mut first, &mut straight, 0..4);
            let (state, tensors) = first.export();
            let saved = bits(&straight);
            run(&mut first, &mut straight, 4..9);

            let mut loaded = start(device);
            for (o, bytes) in loaded.iter_mut().zip(&saved) {
                let shape = o.weight.master().shape().to_vec();
                o.weight.update(|master| *master = Tensor::from_bytes(device, DType::F32, &shape, bytes));
            }
            let mut second = optimizer(&config, &mut loaded);
            // As from a file: in another order, and in memory of their own.
            let own = |(name, t): &(String, Tensor)| {
                (name.clone(), Tensor::from_bytes(Device::reference(), t.dtype(), t.shape(), &t.to_bytes()))
            };
            second.import(&state, tensors.iter().rev().map(own)).unwrap();
            run(&mut second, &mut loaded, 4..9);
            assert_eq!(bits(&straight), bits(&loaded), "{algorithm:?} on {}", device.name());
            assert_eq!(first.steps_taken(), 9);
            assert_eq!(second.steps_taken(), 9);
        }
    }
}

#[test]
fn tensors_are_named_after_their_parameters() {
    let mut all = start(Device::reference());
    let (state, tensors) = optimizer(&OptimizerConfig::kimi_k2(), &mut all).export();
    assert_eq!(state, OptimizerState { algorithm: Algorithm::MuonClip, steps_taken: 0 });
    let names: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())).collect();
    let expected: [(&str, &[usize]); 4] = [
        ("experts.weight.momentum", &[2, 3, 5]),
        ("norm.weight.adam_m", &[8]),
        ("norm.weight.adam_v", &[8]),
        ("proj.weight.momentum", &[6, 4]),
    ];
    assert_eq!(names, expected);
}

/// What a broken file may do to the exported tensors.
type Damage = fn(&mut Vec<(String, Tensor)>);

#[test]
fn state_that_does_not_fit_is_refused_and_changes_nothing() {
    fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::zeros(Device::reference(), dtype, shape)
    }
    let mut all = start(Device::reference());
    let mut optimizer = optimizer(&OptimizerConfig::kimi_k2(), &mut all);
    run(&mut optimizer, &mut all, 0..2);
    let (state, tensors) = optimizer.export();
    let bytes = |tensors: &[(String, Tensor)]| tensors.iter().map(|(_, t)| t.to_bytes()).collect::<Vec<_>>();
    let mut refuse = |state: OptimizerState, damage: Damage| {
        // Steps and moments that would show if a part were taken over.
        let mut damaged: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), zeros(t.dtype(), t.shape()))).collect();
        damage(&mut damaged);
        let error = optimizer.import(&OptimizerState { steps_taken: 77, ..state }, damaged).unwrap_err();
        let (numbers, after) = optimizer.export();
        assert_eq!((numbers.steps_taken, bytes(&after)), (2, bytes(&tensors)), "{error}");
        error
    };
    let missing = refuse(state, |tensors| drop(tensors.remove(1)));
    assert_eq!(missing, StateError::Missing("norm.weight.adam_m".into()));
    let extra = refuse(state, |tensors| tensors.push(("zebra.momentum".into(), zeros(DType::F32, &[1]))));
    assert_eq!(extra, StateError::Extra("zebra.momentum".into()));
    let twice = refuse(state, |tensors| tensors.push(("norm.weight.adam_m".into(), zeros(DType::F32, &[8]))));
    assert_eq!(twice, StateError::Extra("norm.weight.adam_m".into()));
    let wrong: [Damage; 3] = [
        |tensors| tensors[3].1 = zeros(DType::F32, &[4, 6]),
        |tensors| tensors[3].1 = zeros(DType::F32, &[24]),
        |tensors| tensors[3].1 = zeros(DType::Bf16, &[6, 4]),
    ];
    for damage in wrong {
        let mismatch = refuse(state, damage);
        assert!(matches!(mismatch, StateError::Mismatch { name, .. } if name == "proj.weight.momentum"));
    }
    let adamw = OptimizerState { algorithm: Algorithm::AdamW, ..state };
    let algorithm = refuse(adamw, |_| ());
    assert_eq!(algorithm, StateError::Algorithm { saved: Algorithm::AdamW, wanted: Algorithm::MuonClip });
}

#[test]
fn config_refuses_numbers_that_make_no_step() {
    type Change = fn(&mut OptimizerConfig);
    let changes: [(&str, Change); 6] = [
        ("momentum", |config| config.momentum = 1.0),
        ("adamw.beta2", |config| config.adamw.beta2 = f64::NAN),
        ("newton_schulz_steps", |config| config.newton_schulz_steps = 0),
        ("qk_clip_tau", |config| config.qk_clip_tau = 0.0),
        ("weight_decay", |config| config.weight_decay = -0.1),
        ("gradient_clip", |config| config.gradient_clip = f64::INFINITY),
    ];
    assert_eq!(OptimizerConfig::kimi_k2().check(), Ok(()));
    for (key, change) in changes {
        let mut config = OptimizerConfig::kimi_k2();
        change(&mut config);
        assert_eq!(config.check().unwrap_err().key, key);
        assert!(Optimizer::new(config, &[]).is_err());
    }
}

#[test]
fn config_schedule_and_state_survive_a_file_and_refuse_unknown_keys() {
    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
        let mut json = serde_json::to_value(&value).unwrap();
        assert_eq!(serde_json::from_value::<T>(json.clone()).unwrap(), value);
        json.as_object_mut().unwrap().insert("momentun".into(), 0.9.into());
        let error = serde_json::from_value::<T>(json).unwrap_err().to_string();
        assert!(error.contains("momentun"), "{error}");
    }
    check(OptimizerConfig::kimi_k2());
    check(Schedule::kimi_k2(Shape::Linear));
    check(OptimizerState { algorithm: Algorithm::Muon, steps_taken: 3 });
}

#[test]
fn what_the_k2_report_publishes_may_be_left_out_of_the_config() {
    let mut json = serde_json::to_value(OptimizerConfig::kimi_k2()).unwrap();
    let fields = json.as_object_mut().unwrap();
    for key in ["update_rms", "weight_decay", "qk_clip_tau", "newton_schulz_dtype"] {
        assert!(fields.remove(key).is_some());
    }
    assert_eq!(serde_json::from_value::<OptimizerConfig>(json.clone()).unwrap(), OptimizerConfig::kimi_k2());
    json.as_object_mut().unwrap().remove("momentum");
    assert!(serde_json::from_value::<OptimizerConfig>(json).is_err());
}

#[test]
fn averages_of_weights() {
    for device in devices() {
        let snapshots: Vec<_> = [[1.0, 2.0], [3.0, -2.0], [8.0, 6.0]]
            .map(|values| owned(0, "w", Rule::AdamW, &[2], &values, device).weight)
            .into();
        let mut mean = WeightAverage::new();
        snapshots.iter().for_each(|weight| mean.add_to_mean([weight]));
        assert!(relative_error(&mean.averaged(&snapshots[2]).master().to_vec_f64(), &[4.0, 2.0]) < 1e-6);
        let mut moving = WeightAverage::new();
        snapshots.iter().for_each(|weight| moving.add_to_moving_average([weight], 0.75));
        assert!(relative_error(&moving.averaged(&snapshots[2]).master().to_vec_f64(), &[3.125, 2.25]) < 1e-6);
        assert_eq!(moving.snapshots(), 3);
    }
}
