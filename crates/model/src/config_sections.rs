//! The sections of a `config.json`: experts, rotary positions, quantisation.

use serde_json::{Value, json};

use crate::config::{BlockFp8, ModelType, Moe, ScoringFunc, TopkMethod};
use crate::config_fields::Fields;
use crate::config_json::ConfigError;
use crate::rope::{Rope, Yarn};

const MOE_KEYS: [&str; 11] = [
    "first_k_dense_replace",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "scoring_func",
    "topk_method",
    "n_group",
    "topk_group",
    "norm_topk_prob",
    "routed_scaling_factor",
];

pub(crate) fn read_moe(fields: &mut Fields, model_type: ModelType) -> Result<Option<Moe>, ConfigError> {
    let Some(n_routed_experts) = fields.size_or_null("n_routed_experts")? else {
        fields.forget(&MOE_KEYS);
        return Ok(None);
    };
    // DeepSeek-V2 names softmax and greedy as its defaults; V3 has nothing but sigmoid and noaux_tc.
    let second = model_type == ModelType::DeepseekV2;
    let scoring_func = match fields.text_or("scoring_func", if second { "softmax" } else { "sigmoid" })?.as_str() {
        "sigmoid" => ScoringFunc::Sigmoid,
        "softmax" => ScoringFunc::Softmax,
        other => return Err(fields.unsupported("scoring_func", other, "sigmoid, softmax")),
    };
    let topk_method = match fields.text_or("topk_method", if second { "greedy" } else { "noaux_tc" })?.as_str() {
        "noaux_tc" => TopkMethod::NoauxTc,
        "greedy" => TopkMethod::Greedy,
        "group_limited_greedy" => TopkMethod::GroupLimitedGreedy,
        other => return Err(fields.unsupported("topk_method", other, "noaux_tc, greedy, group_limited_greedy")),
    };
    let groups_matter = topk_method != TopkMethod::Greedy;
    Ok(Some(Moe {
        first_k_dense_replace: fields.count("first_k_dense_replace")?,
        n_routed_experts,
        n_shared_experts: fields.count_or_null("n_shared_experts")?.unwrap_or(0),
        num_experts_per_tok: fields.size("num_experts_per_tok")?,
        moe_intermediate_size: fields.size("moe_intermediate_size")?,
        scoring_func,
        topk_method,
        n_group: if groups_matter { fields.size("n_group")? } else { fields.size_or("n_group", 1)? },
        topk_group: if groups_matter { fields.size("topk_group")? } else { fields.size_or("topk_group", 1)? },
        norm_topk_prob: if second {
            fields.flag_or("norm_topk_prob", false)?
        } else {
            fields.flag("norm_topk_prob")?
        },
        routed_scaling_factor: fields.real("routed_scaling_factor")?,
    }))
}

pub(crate) fn write_moe(moe: Option<&Moe>, layers: usize) -> Value {
    // Without experts, first_k_dense_replace keeps readers that ignore the null from building any.
    let Some(moe) = moe else { return json!({ "n_routed_experts": null, "first_k_dense_replace": layers }) };
    json!({
        "first_k_dense_replace": moe.first_k_dense_replace,
        "n_routed_experts": moe.n_routed_experts,
        "n_shared_experts": moe.n_shared_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": moe.moe_intermediate_size,
        "scoring_func": match moe.scoring_func {
            ScoringFunc::Sigmoid => "sigmoid",
            ScoringFunc::Softmax => "softmax",
        },
        "topk_method": match moe.topk_method {
            TopkMethod::NoauxTc => "noaux_tc",
            TopkMethod::Greedy => "greedy",
            TopkMethod::GroupLimitedGreedy => "group_limited_greedy",
        },
        "n_group": moe.n_group,
        "topk_group": moe.topk_group,
        "norm_topk_prob": moe.norm_topk_prob,
        "routed_scaling_factor": moe.routed_scaling_factor,
    })
}

pub(crate) fn read_rope(fields: &mut Fields) -> Result<Rope, ConfigError> {
    let older = fields.object("rope_scaling")?;
    let newer = fields.object("rope_parameters")?;
    let mut inner = match (older, newer) {
        (Some(older), Some(newer)) if older.same_as(&newer) => newer,
        (Some(_), Some(_)) => {
            let why = "rope_scaling and rope_parameters differ; keep one of them";
            return Err(ConfigError::Contradiction(why.into()));
        }
        (one, other) => one.or(other).unwrap_or_default(),
    };
    let theta = match (fields.optional_real("rope_theta")?, inner.optional_real("rope_theta")?) {
        (Some(outside), Some(inside)) if outside != inside => {
            let why = format!("rope_theta is {outside} outside and {inside} inside the rope parameters");
            return Err(ConfigError::Contradiction(why));
        }
        (outside, inside) => outside.or(inside).ok_or_else(|| fields.missing("rope_theta"))?,
    };
    inner.require_fixed("partial_rotary_factor", "1.0")?;
    inner.require_fixed("truncate", "true")?;
    inner.require_fixed("rope_interleave", "true")?;
    let old_name = inner.text_or("type", "default")?;
    let yarn = match inner.text_or("rope_type", &old_name)?.as_str() {
        "default" => None,
        "yarn" => Some(read_yarn(&mut inner)?),
        other => return Err(inner.unsupported("rope_type", other, "yarn, default")),
    };
    inner.forget(&["partial_rotary_factor", "truncate", "rope_interleave"]);
    inner.refuse_rest()?;
    Ok(Rope { theta, yarn })
}

fn read_yarn(inner: &mut Fields) -> Result<Yarn, ConfigError> {
    let mscale = inner.optional_real("mscale")?;
    let mscale_all_dim = inner.real_or("mscale_all_dim", 0.0)?;
    // DeepSeek's own code and transformers read a half-given pair differently.
    let agreed = match mscale {
        None => mscale_all_dim == 0.0,
        Some(mscale) => mscale == 1.0 || mscale > 0.0 && mscale_all_dim > 0.0,
    };
    if !agreed || mscale_all_dim < 0.0 {
        let got = format!("{mscale:?} with mscale_all_dim = {mscale_all_dim}");
        return Err(inner.unsupported("mscale", got, "mscale and mscale_all_dim both given and positive, or neither"));
    }
    Ok(Yarn {
        factor: inner.real("factor")?,
        original_max_position_embeddings: inner.size("original_max_position_embeddings")?,
        beta_fast: inner.real_or("beta_fast", 32.0)?,
        beta_slow: inner.real_or("beta_slow", 1.0)?,
        mscale: mscale.unwrap_or(1.0),
        mscale_all_dim,
        attention_factor: inner.optional_real("attention_factor")?,
    })
}

pub(crate) fn write_yarn(yarn: &Yarn) -> Value {
    let mut value = json!({
        "type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_position_embeddings,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
    });
    if let Some(factor) = yarn.attention_factor {
        value["attention_factor"] = json!(factor);
    }
    value
}

pub(crate) fn read_quantization(fields: &mut Fields) -> Result<Option<BlockFp8>, ConfigError> {
    let Some(mut inner) = fields.object("quantization_config")? else { return Ok(None) };
    let method = inner.text("quant_method")?;
    if method != "fp8" {
        return Err(inner.unsupported("quant_method", method, "fp8 with weight_block_size, or unquantised weights"));
    }
    inner.require_fixed("fmt", "\"e4m3\"")?;
    let block = inner.pair("weight_block_size")?;
    Ok(Some(BlockFp8 { block }))
}

pub(crate) fn write_quantization(fp8: &BlockFp8) -> Value {
    json!({
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": fp8.block,
    })
}
