//! What the system tells about processor, memory, disk and Cargo's packages. Whatever it does not tell is `None`.

use std::collections::{BTreeMap, HashSet};
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Instruction sets that matter for matrix work, as Linux spells them.
const FEATURES: [&str; 14] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
];

/// The processor and what it can do.
#[derive(Serialize)]
pub struct Processor {
    /// As it calls itself.
    pub name: String,
    /// Physical cores.
    pub cores: Option<usize>,
    /// Threads that this process may use at once.
    pub threads: usize,
    /// Mean number of threads that wanted to run in the last minute.
    pub load: Option<f64>,
    /// Of those that matter, the ones it has.
    pub features: Vec<&'static str>,
    /// And the ones it has not.
    pub missing_features: Vec<&'static str>,
}

/// Main memory.
#[derive(Serialize)]
pub struct Memory {
    /// Of the machine, or of the container if that has less.
    pub total_bytes: Option<u64>,
    /// What could be taken without anything else being pushed out.
    pub available_bytes: Option<u64>,
    /// `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
}

/// A file system.
#[derive(Serialize)]
pub struct Disk {
    /// The folder that was asked about.
    pub folder: String,
    /// What a user without privileges may still write.
    pub free_bytes: u64,
}

/// Unpacked packages, the corpus of the quick start.
#[derive(Serialize)]
pub struct Sources {
    /// Cargo's folder for them.
    pub folder: String,
    /// How many there are.
    pub packages: usize,
}

impl Processor {
    /// From `/proc`; without it, only the number of threads is known.
    pub fn read() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let load = read_to_string("/proc/loadavg").ok().and_then(|text| text.split(' ').next()?.parse().ok());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Processor { load, threads, ..Self::from_cpuinfo(&cpuinfo) }
    }

    fn from_cpuinfo(cpuinfo: &str) -> Self {
        let first = fields(cpuinfo.split("\n\n").next().unwrap_or_default());
        let flags: HashSet<&str> = first.get("flags").unwrap_or(&"").split(' ').collect();
        let (features, missing_features) = FEATURES.into_iter().partition(|feature| flags.contains(feature));
        let core = |processor: &str| {
            let fields = fields(processor);
            Some((fields.get("physical id")?.to_string(), fields.get("core id")?.to_string()))
        };
        let cores: HashSet<(String, String)> = cpuinfo.split("\n\n").filter_map(core).collect();
        Processor {
            name: first.get("model name").unwrap_or(&std::env::consts::ARCH).to_string(),
            cores: (!cores.is_empty()).then_some(cores.len()),
            threads: 0,
            load: None,
            features,
            missing_features,
        }
    }
}

impl Memory {
    /// From `/proc/meminfo` and the limits of the control group.
    pub fn read() -> Self {
        let meminfo = read_to_string("/proc/meminfo").unwrap_or_default();
        let limit = read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
        let huge_pages = read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
        Self::from_texts(&meminfo, limit, huge_pages.as_deref())
    }

    fn from_texts(meminfo: &str, limit: Option<u64>, huge_pages: Option<&str>) -> Self {
        let fields = fields(meminfo);
        let bytes = |key: &str| {
            let kib: u64 = fields.get(key)?.strip_suffix(" kB")?.trim().parse().ok()?;
            Some((kib * 1024).min(limit.unwrap_or(u64::MAX)))
        };
        // The chosen word stands in brackets: `always [madvise] never`.
        let chosen = |text: &str| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned());
        Memory {
            total_bytes: bytes("MemTotal"),
            available_bytes: bytes("MemAvailable"),
            huge_pages: huge_pages.and_then(chosen),
        }
    }
}

impl Disk {
    /// The file system that holds `folder`.
    #[cfg(unix)]
    pub fn of(folder: &Path) -> Option<Self> {
        let system = rustix::fs::statvfs(folder).ok()?;
        Some(Disk { folder: folder.display().to_string(), free_bytes: system.f_bavail.checked_mul(system.f_frsize)? })
    }

    /// Unknown on this system.
    #[cfg(not(unix))]
    pub fn of(_folder: &Path) -> Option<Self> {
        None
    }
}

impl Sources {
    /// Counts the packages of all registries below `folder`.
    pub fn find(folder: PathBuf) -> Self {
        let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
        let packages = entries(&folder).map(|registry| entries(&registry.path()).count()).sum();
        Sources { folder: folder.display().to_string(), packages }
    }
}

/// `key : value` lines.
fn fields(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_texts_are_understood() {
        let one =
            "processor : 0\nmodel name\t: Some CPU\nphysical id : 0\ncore id : 3\nflags\t: fpu avx2 fma amx_bf16\n";
        let cpuinfo = [one, one, &one.replace("id : 3", "id : 4")].join("\n");
        let processor = Processor::from_cpuinfo(&cpuinfo);
        assert_eq!((processor.name.as_str(), processor.cores), ("Some CPU", Some(2)));
        assert_eq!(processor.features, ["avx2", "fma", "amx_bf16"]);
        assert_eq!(processor.missing_features.len(), FEATURES.len() - 3);

        let meminfo = "MemTotal:       24000000 kB\nMemAvailable:   9000000 kB\n";
        let memory = Memory::from_texts(meminfo, Some(10_000_000_000), Some("always [madvise] never\n"));
        assert_eq!(memory.total_bytes, Some(10_000_000_000));
        assert_eq!(memory.available_bytes, Some(9_216_000_000));
        assert_eq!(memory.huge_pages.as_deref(), Some("madvise"));
    }

    #[test]
    fn what_the_system_does_not_tell_is_left_open() {
        let processor = Processor::from_cpuinfo("");
        assert!(processor.cores.is_none() && processor.features.is_empty());
        let memory = Memory::from_texts("", None, None);
        assert!(memory.total_bytes.is_none() && memory.huge_pages.is_none());
        assert_eq!(Sources::find("/nowhere/at/all".into()).packages, 0);
    }
}
