//! The list of parameters against published totals, and its HF names against the released files.

use chogori_model::Config;
use chogori_model::layout::{Kind, SplitBy, parameters};

fn preset(name: &str) -> Config {
    Config::preset(name).unwrap()
}

#[test]
fn totals_are_those_of_the_released_models() {
    let check = |name, total, layers: f64, with_head: f64, both: f64| {
        let counts = preset(name).parameter_counts();
        assert_eq!(counts.total(), total, "{name}");
        let billions = |count: u64, expected: f64| {
            assert!((count as f64 / 1e9 - expected).abs() < 0.006, "{name}: {count} instead of {expected} billion");
        };
        billions(counts.activated_in_layers(), layers);
        billions(counts.activated_with_head(), with_head);
        billions(counts.activated(), both);
    };
    check("kimi-k2", 1_026_408_232_448, 30.513, 31.687, 32.862);
    check("deepseek-v3", 671_026_419_200, 35.70, 36.63, 37.55);
    check("moonlight", 15_960_110_208, 2.2437, 2.5792, 2.915);
    let mut all_moe = preset("kimi-k2");
    all_moe.moe.as_mut().unwrap().first_k_dense_replace = 0;
    assert_eq!(all_moe.parameter_counts().total(), 1_042_970_097_536);
}

#[test]
fn parts_of_k2_are_those_of_the_formula() {
    let k2 = preset("kimi-k2");
    let counts = k2.parameter_counts();
    assert_eq!(counts.of(Kind::Embedding).total, 1_174_405_120);
    assert_eq!(counts.of(Kind::RoutedExperts).total, 60 * 384 * 44_040_192);
    assert_eq!(counts.of(Kind::RoutedExperts).activated, 60 * 8 * 44_040_192);
    assert_eq!(counts.of(Kind::SharedExperts).total, 60 * 44_040_192);
    assert_eq!(counts.of(Kind::Router).total + counts.of(Kind::RouterBias).total, 60 * 2_752_896);
    assert_eq!(counts.of(Kind::DenseMlp).total, 396_361_728);
    let norms_of_latents = 61 * (1536 + 512);
    assert_eq!(counts.of(Kind::Attention).total + norms_of_latents, 61 * 101_124_096);
    assert_eq!(k2.kv_cache_bytes_per_token(2), 70_272);
}

#[test]
fn fp8_scales_of_k2_are_those_of_the_released_files() {
    let blocks = |axis: usize| axis.div_ceil(128) as u64;
    let scales: u64 = parameters(&preset("kimi-k2"))
        .filter(|spec| spec.kind.is_block_quantised())
        .map(|spec| spec.hf_tensors().map(|(_, shape)| blocks(shape[0]) * blocks(shape[1])).sum::<u64>())
        .sum();
    assert_eq!(scales, 62_495_192);
}

#[test]
fn flops_are_twice_the_multiplied_parameters_plus_attention() {
    let k2 = preset("kimi-k2");
    let flops = k2.flops_per_token(4096.0);
    assert_eq!(flops.attention_scores, 2.0 * 61.0 * 64.0 * 192.0 * 4096.0);
    assert_eq!(flops.attention_values, 2.0 * 61.0 * 64.0 * 128.0 * 4096.0);
    let counts = k2.parameter_counts();
    let vectors = counts.of(Kind::Norm).total + counts.of(Kind::RouterBias).total;
    let matrices = 2.0 * (counts.activated_with_head() - vectors) as f64;
    assert_eq!(flops.total(), matrices + flops.attention_scores + flops.attention_values);
    assert_eq!(k2.flops_per_token(0.0).total(), matrices);
}

#[test]
fn a_tied_head_is_counted_once_and_multiplied_all_the_same() {
    let mut tied = preset("moonlight");
    let untied = tied.parameter_counts();
    tied.tie_word_embeddings = true;
    let counts = tied.parameter_counts();
    assert_eq!(untied.total() - counts.total(), 163_840 * 2048);
    assert_eq!(counts.activated_with_head(), untied.activated_with_head());
    assert_eq!(tied.flops_per_token(1.0).total(), preset("moonlight").flops_per_token(1.0).total());
}

#[test]
fn hf_names_and_shapes_are_those_of_the_released_files() {
    let k2 = preset("kimi-k2");
    let shape_of = |name: &str| {
        let found = parameters(&k2).find_map(|spec| {
            let tensor = spec.hf_tensors().find(|(hf, _)| hf == name);
            tensor.map(|(_, shape)| shape.to_vec())
        });
        found.unwrap_or_else(|| panic!("{name} is not listed"))
    };
    assert_eq!(shape_of("model.embed_tokens.weight"), [163840, 7168]);
    assert_eq!(shape_of("model.layers.0.mlp.gate_proj.weight"), [18432, 7168]);
    assert_eq!(shape_of("model.layers.0.self_attn.q_b_proj.weight"), [12288, 1536]);
    assert_eq!(shape_of("model.layers.60.self_attn.kv_a_proj_with_mqa.weight"), [576, 7168]);
    assert_eq!(shape_of("model.layers.60.self_attn.kv_b_proj.weight"), [16384, 512]);
    assert_eq!(shape_of("model.layers.60.self_attn.o_proj.weight"), [7168, 8192]);
    assert_eq!(shape_of("model.layers.1.mlp.gate.e_score_correction_bias"), [384]);
    assert_eq!(shape_of("model.layers.1.mlp.experts.383.down_proj.weight"), [7168, 2048]);
    assert_eq!(shape_of("model.layers.60.mlp.shared_experts.up_proj.weight"), [2048, 7168]);
    assert_eq!(shape_of("lm_head.weight"), [163840, 7168]);
    let tensors: usize = parameters(&k2).map(|spec| spec.hf_tensors().count()).sum();
    assert_eq!(tensors, 1 + (9 + 3) + 60 * (9 + 2 + 3 * 384 + 3) + 2);
    let moonlight = preset("moonlight");
    assert!(parameters(&moonlight).any(|spec| spec.name == "model.layers.5.self_attn.q_proj.weight"));
}

#[test]
fn every_split_keeps_heads_and_experts_whole() {
    for name in chogori_model::config::PRESETS {
        for spec in parameters(&preset(name)) {
            let Some(split) = spec.split else { continue };
            assert!(spec.shape[split.axis].is_multiple_of(split.units), "{name}: {spec:?}");
            if split.by == SplitBy::Experts {
                assert_eq!((split.axis, spec.kind), (0, Kind::RoutedExperts));
            }
        }
    }
}
