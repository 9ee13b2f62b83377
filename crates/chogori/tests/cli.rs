//! The commands as a user meets them: one tiny run from text to every later stage, and what bad input is told.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// A model that trains in a second, as overrides of the nano recipe.
const TINY: [&str; 20] = [
    "model.vocab_size=400",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.intermediate_size=64",
    "model.moe_intermediate_size=16",
    "model.n_routed_experts=8",
    "model.num_experts_per_tok=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.q_lora_rank=16",
    "model.kv_lora_rank=16",
    "model.qk_nope_head_dim=8",
    "model.qk_rope_head_dim=8",
    "model.v_head_dim=8",
    "model.max_position_embeddings=128",
    "tokenizer.train.vocab_size=400",
    "data.held_out_fraction=0.2",
    "batch.sequence_length=64",
    "batch.sequences_per_micro_batch=2",
    "run.minutes=",
];

fn chogori(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chogori")).args(arguments).output().expect("the command starts")
}

fn succeed(arguments: &[&str]) -> String {
    let output = chogori(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "chogori {arguments:?}\n{out}\n{err}");
    out.into_owned()
}

/// The command fails with exit code 1, and says each of `words`.
fn refuse(arguments: &[&str], words: &[&str]) {
    let output = chogori(arguments);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "chogori {arguments:?}\n{err}");
    for word in words {
        assert!(err.contains(word), "chogori {arguments:?} should speak of {word:?}:\n{err}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

fn last_json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("some output")).expect("the last line is JSON")
}

/// Prose with some structure, made here.
fn write_corpus(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for file in 0..24 {
        let line =
            |i: usize| format!("fn item_{}(x: u32) -> u32 {{ x + {} }} // number {i}\n", (i * 7 + file) % 13, i % 5);
        let text: String = (0..60).map(line).collect();
        std::fs::write(folder.join(format!("part{file}.rs")), text).unwrap();
    }
}

struct Shared {
    folder: tempfile::TempDir,
    outcome: Value,
}

/// One quick start that the tests share; they only read it.
fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (corpus, run) = (folder.path().join("corpus"), folder.path().join("run"));
        write_corpus(&corpus);
        let mut arguments =
            vec!["quickstart", "--json", "--corpus", corpus.to_str().unwrap(), "--run", run.to_str().unwrap()];
        TINY.iter().for_each(|set| arguments.extend(["--set", set]));
        arguments.extend([
            "--set",
            "run.steps=12",
            "--set",
            "schedule.warmup_steps=2",
            "--set",
            "run.save_every_steps=5",
        ]);
        let outcome = last_json(&succeed(&arguments));
        Shared { folder, outcome }
    })
}

fn run_folder() -> String {
    shared().folder.path().join("run").display().to_string()
}

#[test]
fn the_quick_start_ends_with_the_numbers_that_scripts_read() {
    let outcome = &shared().outcome;
    for key in
        ["bits_per_byte", "bits_per_byte_gzip", "bits_per_byte_4gram", "tokens_per_s", "wall_s", "peak_memory_bytes"]
    {
        assert!(outcome[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {outcome}");
    }
    assert_eq!(outcome["run"].as_str(), Some(run_folder().as_str()));
    let metrics = std::fs::read_to_string(Path::new(&run_folder()).join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    for key in ["step", "tokens", "loss", "lr", "max_logit"] {
        assert!(first[key].is_number(), "{key} in {first}");
    }
    assert_eq!(metrics.lines().filter(|line| line.contains("\"loss\"")).count(), 12);
}

#[test]
fn what_was_sampled_has_the_log_probabilities_that_score_gives() {
    let run = run_folder();
    let generated = succeed(&["generate", &run, "--prompt", "fn item_1(", "-n", "12", "--seed", "5", "--json"]);
    let generated = last_json(&generated);
    let ids = |key: &str| serde_json::from_value::<Vec<u32>>(generated[key].clone()).unwrap();
    let all: Vec<String> = [ids("prompt_tokens"), ids("tokens")].concat().iter().map(u32::to_string).collect();
    let scored = last_json(&succeed(&["score", &run, "--tokens", &all.join(","), "--top", "3", "--json"]));
    let sampled = generated["logprobs"].as_array().unwrap();
    let logprobs = scored["logprobs"].as_array().unwrap();
    assert!(logprobs[0].is_null() && logprobs.len() == all.len());
    assert_eq!(&logprobs[all.len() - sampled.len()..], sampled, "bit for bit, through JSON");
    assert!(scored["top"].as_array().unwrap().iter().all(|top| top.as_array().unwrap().len() == 3));
}

#[test]
fn an_exported_model_scores_the_same() {
    let (run, folder) = (run_folder(), tempfile::tempdir().unwrap());
    let export = folder.path().join("hf").display().to_string();
    succeed(&["export", &run, &export]);
    let score =
        |model: &str| last_json(&succeed(&["score", model, "--tokens", "5,6,7,8", "--dtype", "bf16", "--json"]));
    assert_eq!(score(&run), score(&export));
    assert!(Path::new(&export).join("tokenizer.json").exists());
    refuse(&["export", &run, &export], &["hf"]);
}

#[test]
fn report_inspect_chat_and_doctor_work_on_it() {
    let (run, folder) = (run_folder(), tempfile::tempdir().unwrap());
    let page = folder.path().join("page.html").display().to_string();
    succeed(&["report", &run, "--output", &page]);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && !html.contains("src=\"http"), "a page with plots and no outside requests");
    let inspected = last_json(&succeed(&["inspect", &run, "--json", "--tensors"]));
    assert!(inspected["parameters"].as_u64() > Some(10_000) && inspected["tensors"].as_array().unwrap().len() > 20);
    let k2 = last_json(&succeed(&["inspect", "kimi-k2", "--json"]));
    assert_eq!(k2["parameters"].as_u64(), Some(1_026_408_232_448));
    let mut chat = Command::new(env!("CARGO_BIN_EXE_chogori"));
    chat.args(["chat", &run, "-n", "4"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = chat.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hello\nagain\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(last_json(&succeed(&["doctor", "--json"])).is_object());
}

#[test]
fn a_finished_run_resumes_to_its_end_and_a_busy_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("run");
    copy_folder(Path::new(&run_folder()), &copy);
    let run = copy.to_str().unwrap();
    let resumed = last_json(&succeed(&["pretrain", "--run", run, "--resume", "--json"]));
    assert_eq!(resumed["steps"].as_u64(), Some(12));
    let held = checkpoint::RunFolder::open(&copy).unwrap();
    let _lock = held.lock().unwrap();
    refuse(&["pretrain", "--run", run, "--resume"], &["use", run]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_without_any_other_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("run");
    copy_folder(Path::new(&run_folder()), &copy);
    let mut checkpoints: Vec<PathBuf> =
        std::fs::read_dir(copy.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    checkpoints.sort();
    assert!(checkpoints.len() >= 2, "{checkpoints:?}");
    let run = copy.to_str().unwrap();
    damage(checkpoints.last().unwrap());
    let output = chogori(&["score", run, "--tokens", "1,2", "--json"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("damaged"));
    checkpoints.iter().rev().skip(1).for_each(|checkpoint| damage(checkpoint));
    refuse(&["score", run, "--tokens", "1,2"], &["checkpoints"]);
}

/// Flips a bit in the largest file.
fn damage(checkpoint: &Path) {
    let files = std::fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap());
    let largest = files.max_by_key(|file| file.metadata().unwrap().len()).unwrap().path();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() * 3 / 4;
    bytes[middle] ^= 4;
    std::fs::write(&largest, bytes).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_bad_corpus_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["empty", "byte", "binary"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    std::fs::write(path("byte").join("a.txt"), "x").unwrap();
    std::fs::write(path("binary").join("a.txt"), [0xff, 0xfe, 0x80, 0x81].repeat(1000)).unwrap();
    let cases = [("empty", "empty"), ("byte", "byte"), ("binary", "binary"), ("absent", "absent")];
    for (number, (name, word)) in cases.into_iter().enumerate() {
        let (corpus, run) = (path(name).display().to_string(), path(&format!("run{number}")).display().to_string());
        refuse(&["quickstart", "--corpus", &corpus, "--run", &run], &[word]);
    }
}

#[test]
fn bad_recipes_and_models_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").display().to_string();
    let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/nano/pretrain.toml");
    let cases: [(&str, &[&str]); 6] = [
        ("schedule.peek=1", &["schedule.peek", "peak"]),
        ("optimizer.momentum=high", &["optimizer.momentum"]),
        ("model.hidden_act=gelu", &["hidden_act", "silu"]),
        ("model.num_experts_per_tok=99", &["num_experts_per_tok"]),
        ("model.vocab_size=100", &["vocab_size"]),
        ("activations.swiglu_inputs=keep", &["swiglu_input"]),
    ];
    for (set, words) in cases {
        refuse(&["pretrain", nano, "--run", &run, "--set", set, "--set", "tokenizer.train.vocab_size=400"], words);
    }
    refuse(&["pretrain", "absent.toml", "--run", &run], &["absent.toml"]);
    refuse(&["score", "/absent-model", "--tokens", "1"], &["/absent-model"]);
    refuse(&["score", &run_folder(), "--tokens", "1,400000"], &["400000", "vocabulary"]);
    refuse(&["generate", &run_folder(), "--top-p", "0"], &["top_p"]);
    refuse(&["inspect", "kimi-k3"], &["kimi-k2"]);
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    refuse(&["score", folder.path().to_str().unwrap(), "--tokens", "1"], &["config.json"]);
}

#[test]
fn a_tokenizer_is_trained_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, output) = (folder.path().join("corpus"), folder.path().join("tokenizer").display().to_string());
    write_corpus(&corpus);
    succeed(&["tokenizer", "train", corpus.to_str().unwrap(), "--output", &output, "--vocab-size", "400"]);
    let text = "fn item_3(x: u32) — ünïcode 你好";
    let ids: Vec<u32> = serde_json::from_str(&succeed(&["tokenizer", "encode", &output, text, "--json"])).unwrap();
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    assert_eq!(succeed(&["tokenizer", "decode", &output, &words.join(",")]).trim_end(), text);
    refuse(&["tokenizer", "train", corpus.to_str().unwrap(), "--output", &output], &["already"]);
    refuse(&["tokenizer", "encode", "/absent", "x"], &["/absent"]);
}
