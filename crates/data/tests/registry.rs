//! The corpus in Cargo's registry: the same for everyone with the same lock file.

use std::fs;
use std::path::Path;

use chogori_data::corpus::SkipReason;
use chogori_data::registry::{self, RegistryCorpus, RegistryError, RegistryOptions};
use tempfile::TempDir;

const LOCK: &str = r#"
version = 4

[[package]]
name = "app"
version = "0.1.0"
dependencies = ["app-core", "optional-dependency", "plain", "test-only"]

[[package]]
name = "app-core"
version = "0.1.0"
dependencies = ["twice 1.10.0", "renamed-inside"]

[[package]]
name = "optional-dependency"
version = "1.0.0"
source = "registry+https://example.org/index"

[[package]]
name = "plain"
version = "1.2.3"
source = "registry+https://example.org/index"
dependencies = ["behind", "twice 1.9.0 (registry+https://example.org/index)", "unix-only"]

[[package]]
name = "behind"
version = "0.3.0"
source = "registry+https://example.org/index"

[[package]]
name = "renamed-inside"
version = "2.0.0"
source = "registry+https://example.org/index"

[[package]]
name = "test-only"
version = "1.0.0"
source = "registry+https://example.org/index"

[[package]]
name = "twice"
version = "1.9.0"
source = "registry+https://example.org/index"

[[package]]
name = "twice"
version = "1.10.0"
source = "registry+https://example.org/index"

[[package]]
name = "unix-only"
version = "1.0.0"
source = "registry+https://example.org/index"
"#;

const MANIFESTS: [&str; 3] = [
    "[workspace]\nmembers = []\n[workspace.dependencies]\ncore = { package = \"app-core\", path = \"core\" }\n",
    "[package]\nname = \"app\"\n[dependencies]\ncore.workspace = true\nplain = \"1\"\n
     optional-dependency = { version = \"1\", optional = true }\n[dev-dependencies]\ntest-only = \"1\"\n",
    "[package]\nname = \"app-core\"\n[dependencies]\ntwice = \"1.10\"\nother-name = { package = \"renamed-inside\", version = \"2\" }\n",
];

fn options() -> RegistryOptions {
    RegistryOptions { root: "app".into(), manifests: MANIFESTS.map(String::from).to_vec(), file_bytes_max: 100 }
}

/// Everything that the corpus needs, in a registry of one index.
fn registry() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let plain = "[dependencies.behind]\nversion = \"0.3\"\n[build-dependencies]\ntwice = \"1.9\"\n
                 [target.'cfg(unix)'.dependencies]\nunix-only = \"1\"\n";
    put(&folder, "plain-1.2.3/Cargo.toml", plain);
    put(&folder, "plain-1.2.3/src/lib.rs", "//! Plain.\nmod a;\n");
    put(&folder, "plain-1.2.3/README.md", "# Plain\n");
    put(&folder, "plain-1.2.3/logo.png", "not text that we read\n");
    put(&folder, "behind-0.3.0/src/lib.rs", "//! Behind plain.\n");
    put(&folder, "renamed-inside-2.0.0/src/lib.rs", "//! Renamed.\n");
    put(&folder, "twice-1.10.0/src/lib.rs", "//! New.\n");
    put(&folder, "twice-1.9.0/src/lib.rs", "//! Old.\n");
    folder
}

fn put(folder: &TempDir, path: &str, text: impl AsRef<[u8]>) {
    let path = folder.path().join("index-1").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(folder: &Path) -> RegistryCorpus {
    registry::read(LOCK, folder, &options()).unwrap()
}

fn ids(corpus: &RegistryCorpus) -> Vec<&str> {
    corpus.documents.iter().map(|document| document.id.as_str()).collect()
}

const IDS: [&str; 5] = [
    "behind-0.3.0/src/lib.rs",
    "plain-1.2.3/README.md",
    "plain-1.2.3/src/lib.rs",
    "renamed-inside-2.0.0/src/lib.rs",
    "twice-1.10.0/src/lib.rs",
];

#[test]
fn holds_what_every_build_needs() {
    let folder = registry();
    let corpus = read(folder.path());
    assert_eq!(ids(&corpus), IDS);
    assert_eq!(corpus.packages, ["behind-0.3.0", "plain-1.2.3", "renamed-inside-2.0.0", "twice-1.10.0"]);
    assert!(corpus.missing.is_empty() && corpus.skipped.is_empty());
    assert_eq!(corpus.text_bytes, 18 + 8 + 18 + 13 + 9);
}

#[test]
fn more_on_the_disk_changes_nothing() {
    let (small, large) = (registry(), registry());
    for package in ["test-only-1.0.0", "unix-only-1.0.0", "optional-dependency-1.0.0", "plain-1.2.4"] {
        put(&large, &format!("{package}/src/lib.rs"), "//! Downloaded for another reason.\n");
    }
    let second_index = large.path().join("index-2/plain-1.2.3/src");
    fs::create_dir_all(&second_index).unwrap();
    fs::write(second_index.join("lib.rs"), "//! From another registry.\n").unwrap();
    let (small, large) = (read(small.path()), read(large.path()));
    assert_eq!(small.documents, large.documents);
    assert_eq!(small.digest, large.digest);
}

#[test]
fn every_change_of_text_changes_the_digest() {
    let folder = registry();
    let before = read(folder.path()).digest;
    put(&folder, "plain-1.2.3/README.md", "# plain\n");
    assert_ne!(read(folder.path()).digest, before);
}

#[test]
fn what_is_not_there_is_listed() {
    let folder = registry();
    fs::remove_dir_all(folder.path().join("index-1/behind-0.3.0")).unwrap();
    let corpus = read(folder.path());
    assert_eq!(corpus.missing, ["behind-0.3.0"]);
    assert_eq!(ids(&corpus), IDS[1..]);
}

#[test]
fn tables_generated_code_and_copies_are_left_out() {
    let folder = registry();
    put(&folder, "plain-1.2.3/src/a_table.rs", "1, ".repeat(40));
    put(&folder, "plain-1.2.3/src/b.rs", "\n// This file is @generated by a program.\n");
    put(&folder, "plain-1.2.3/src/c.rs", "//! New.\n\n");
    put(&folder, "plain-1.2.3/src/d.rs", b"// caf\xe9\n");
    put(&folder, "plain-1.2.3/src/e.rs", " \n");
    put(&folder, "renamed-inside-2.0.0/README.md", "# Plain\n");
    let corpus = read(folder.path());
    assert_eq!(corpus.documents.len(), IDS.len() + 1, "only c.rs is new: {:?}", ids(&corpus));
    use SkipReason::{Empty, Generated, NotUtf8, Repeated, TooLarge};
    for reason in [Empty, Generated, NotUtf8, Repeated, TooLarge] {
        assert_eq!(corpus.skipped.count(reason), 1, "{reason}");
    }
}

#[test]
fn a_file_of_mostly_known_lines_is_a_copy() {
    let lines = |range: std::ops::Range<usize>| -> String {
        range
            .map(|i| {
                format!(
                    "pub const NUMBER_{i}: usize = {i};
"
                )
            })
            .collect()
    };
    let folder = registry();
    put(&folder, "plain-1.2.3/src/x86.rs", lines(0..100));
    put(&folder, "plain-1.2.3/src/x87_arm.rs", lines(40..110));
    put(&folder, "plain-1.2.3/src/x88_other.rs", lines(60..200));
    let options = RegistryOptions { file_bytes_max: 1 << 20, ..options() };
    let corpus = registry::read(LOCK, folder.path(), &options).unwrap();
    assert_eq!(corpus.skipped.count(SkipReason::Repeated), 1);
    assert!(ids(&corpus).contains(&"plain-1.2.3/src/x88_other.rs"), "100 of its 140 lines are new: {:?}", ids(&corpus));
}

#[test]
fn what_cannot_be_understood_is_said() {
    let folder = registry();
    let check = |lock: &str, change: fn(&mut RegistryOptions), expected: &str| {
        let mut options = options();
        change(&mut options);
        let message = registry::read(lock, folder.path(), &options).expect_err("must fail").to_string();
        assert!(message.contains(expected), "{message:?} should say {expected:?}");
    };
    check("[[package", |_| (), "not a Cargo.lock");
    check("version = 4", |_| (), "no package app");
    check(LOCK, |options| options.root = "plain".into(), "no package plain of the workspace");
    check(LOCK, |options| options.manifests[1].push('['), "not a Cargo.toml");
    check(LOCK, |options| options.manifests.truncate(2), "Cargo.toml of app-core");
    let nothing = tempfile::tempdir().unwrap();
    let error = registry::read(LOCK, nothing.path(), &options()).expect_err("must fail");
    assert!(matches!(error, RegistryError::Empty { missing: 3, .. }), "{error}");
    let error = registry::read(LOCK, &nothing.path().join("src"), &options()).expect_err("must fail");
    assert!(error.to_string().contains("cargo fetch"), "{error}");
}
