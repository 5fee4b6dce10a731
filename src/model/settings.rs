//! The section `model` of the configuration: which bundle, on what, with how many threads.
//! Knows keys and bounds; must not know how a session is built.

use std::path::{Path, PathBuf};
use std::thread;

use serde::Deserialize;

use super::bundle::{Bundle, BundleError};
use super::device::{Device, DeviceError};
use super::roots::search_roots;
use crate::bounds::{Violation, check_range};

/// The bundle that comes with the repository.
const DEFAULT_BUNDLE: &str = "models/compact";
/// More sessions or threads than any machine has cores.
const MAX_THREADS: usize = 1024;
/// Each session holds the weights once more: from this size on a few threads share one. Measured with 330M in
/// int8 on two cores: one session of two threads costs a tenth more time and 340 MiB less than two of one.
const LARGE_GRAPH_BYTES: u64 = 256 << 20;
const LARGE_GRAPH_THREADS: usize = 4;
/// While the answers of one pass are scored, the GPU computes the other.
const GPU_SESSIONS: usize = 2;
/// One tebibyte: more memory than any GPU has.
const MAX_GPU_MEMORY_MIB: usize = 1 << 20;

/// What to do where the device does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// End with an error.
    #[default]
    None,
    /// Say so and go on with the processor.
    Cpu,
}

/// The section `model`; every key is described in `config/default.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Folder of the model bundle.
    pub bundle: String,
    /// `cpu`, `cuda:N` or `tensorrt:N`.
    pub device: String,
    /// What to do where the device does not work.
    pub fallback: Fallback,
    /// The ONNX Runtime library, a file or the folder that holds it; empty: it is looked for.
    pub runtime_library: String,
    /// Passes that run at once; 0: as many as the cores can hold, two on a GPU.
    pub sessions: usize,
    /// Threads of one pass; 0: the cores divided among the sessions, which for a large graph are few.
    pub threads: usize,
    /// Whether idle threads of a pass wait in a busy loop.
    pub spin: bool,
    /// Whether a session keeps the memory of a pass for the next.
    pub arena: bool,
    /// Folder for weights in the processor's form; empty: every session prepares its own.
    pub prepared_weights: String,
    /// GPU memory that a session may take, in MiB; 0: as much as there is.
    pub gpu_memory_limit_mib: usize,
    /// Folder for the engines that TensorRT builds; empty: built at every start.
    pub tensorrt_cache: String,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            bundle: DEFAULT_BUNDLE.to_owned(),
            device: Device::Cpu.to_string(),
            fallback: Fallback::None,
            runtime_library: String::new(),
            sessions: 0,
            threads: 0,
            spin: false,
            arena: true,
            prepared_weights: String::new(),
            gpu_memory_limit_mib: 0,
            tensorrt_cache: String::new(),
        }
    }
}

impl ModelSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        if self.bundle.trim().is_empty() {
            violations.push(Violation::new("bundle", "", "a folder"));
        }
        if Device::parse(&self.device).is_none() {
            violations.push(Violation::new("device", &self.device, Device::ALLOWED));
        }
        check_range(&mut violations, "sessions", self.sessions, 0, MAX_THREADS);
        check_range(&mut violations, "threads", self.threads, 0, MAX_THREADS);
        check_range(
            &mut violations,
            "gpu_memory_limit_mib",
            self.gpu_memory_limit_mib,
            0,
            MAX_GPU_MEMORY_MIB,
        );
        violations
    }

    /// Whether the model is to run on a GPU.
    pub fn on_gpu(&self) -> bool {
        Device::parse(&self.device).is_some_and(Device::is_gpu)
    }

    /// Opens and verifies the bundle; says so where its export did not match its checkpoint.
    ///
    /// # Errors
    /// When the folder is not what its `bundle.toml` says.
    pub fn open_bundle(&self) -> Result<Bundle, BundleError> {
        let bundle = Bundle::open(&self.bundle_folder())?;
        if let Some(doubt) = bundle.doubt() {
            tracing::warn!(
                bundle = bundle.manifest().name,
                folder = %bundle.folder().display(),
                "{doubt}"
            );
        }
        Ok(bundle)
    }

    /// The folder as it was named; the repository's own is looked for above the program as well,
    /// so that the program works from any folder.
    fn bundle_folder(&self) -> PathBuf {
        let named = PathBuf::from(&self.bundle);
        if self.bundle != DEFAULT_BUNDLE {
            return named;
        }
        search_roots()
            .into_iter()
            .map(|root| root.join(DEFAULT_BUNDLE))
            .find(|folder| folder.is_dir())
            .unwrap_or(named)
    }

    pub(super) fn parse_device(&self) -> Result<Device, DeviceError> {
        Device::parse(&self.device).ok_or_else(|| DeviceError::Unknown(self.device.clone()))
    }

    pub(super) fn named_library(&self) -> Option<&Path> {
        Some(Path::new(&self.runtime_library)).filter(|path| !path.as_os_str().is_empty())
    }

    /// Where weights are kept in the processor's form.
    pub(super) fn prepared_folder(&self) -> Option<&Path> {
        Some(Path::new(&self.prepared_weights)).filter(|path| !path.as_os_str().is_empty())
    }

    /// Sessions and threads of each on this machine, for a graph of so many bytes.
    pub(super) fn parallelism(&self, device: Device, graph_bytes: u64) -> Parallelism {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        self.parallelism_on(device, cores, graph_bytes)
    }

    fn parallelism_on(&self, device: Device, cores: usize, graph_bytes: u64) -> Parallelism {
        // Prepared weights are mapped: more sessions have no more of them.
        let is_large = graph_bytes >= LARGE_GRAPH_BYTES && self.prepared_folder().is_none();
        let own_threads = if is_large {
            cores.min(LARGE_GRAPH_THREADS)
        } else {
            1
        };
        let sessions = match (self.sessions, self.threads) {
            (0, _) if device.is_gpu() => GPU_SESSIONS,
            // A pass of one thread waits for nobody: as many passes as the cores can hold.
            (0, 0) => (cores / own_threads).max(1),
            (0, threads) => (cores / threads).max(1),
            (sessions, _) => sessions,
        };
        let threads = match self.threads {
            0 if device.is_gpu() => 1,
            0 => (cores / sessions).max(1),
            threads => threads,
        };
        Parallelism { sessions, threads }
    }
}

/// How many passes run at once and how many threads each has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parallelism {
    pub(super) sessions: usize,
    pub(super) threads: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelSettings, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_commented_part_holds_every_key_with_its_default() {
        #[derive(Deserialize)]
        struct Part {
            model: toml::Table,
        }
        let text = include_str!("../../config/default.toml");
        let part: Part = toml::from_str(text).unwrap();
        let keys = part.model.len();
        let settings: ModelSettings = part.model.try_into().unwrap();
        assert_eq!(settings, ModelSettings::default());
        assert_eq!(keys, 11, "a key is missing in config/default.toml");
    }

    #[test]
    fn wrong_values_are_named() {
        let settings = read(
            "device = \"gpu\"\nsessions = 2000\nthreads = 1025\nbundle = \" \"\ngpu_memory_limit_mib = 2000000",
        )
        .unwrap();
        let keys: Vec<_> = settings
            .violations()
            .into_iter()
            .map(|violation| violation.key)
            .collect();
        assert_eq!(
            keys,
            [
                "bundle",
                "device",
                "sessions",
                "threads",
                "gpu_memory_limit_mib"
            ]
        );
        assert!(ModelSettings::default().violations().is_empty());
    }

    #[test]
    fn an_unknown_key_or_fallback_is_refused() {
        assert!(read("bundel = \"x\"").unwrap_err().contains("bundel"));
        assert!(read("fallback = \"gpu\"").unwrap_err().contains("gpu"));
        assert_eq!(read("fallback = \"cpu\"").unwrap().fallback, Fallback::Cpu);
    }

    #[test]
    fn cores_are_shared_among_sessions() {
        let check_sized = |sessions, threads, device, cores, bytes, expected| {
            let settings = ModelSettings {
                sessions,
                threads,
                ..ModelSettings::default()
            };
            let got = settings.parallelism_on(device, cores, bytes);
            assert_eq!((got.sessions, got.threads), expected);
        };
        let check = |sessions, threads, device, cores, expected| {
            check_sized(sessions, threads, device, cores, 14_000_000, expected);
        };
        check(0, 0, Device::Cpu, 4, (4, 1));
        check(2, 0, Device::Cpu, 4, (2, 2));
        check(0, 2, Device::Cpu, 4, (2, 2));
        check(0, 8, Device::Cpu, 4, (1, 8));
        check(8, 0, Device::Cpu, 4, (8, 1));
        check(0, 0, Device::Cuda(0), 4, (2, 1));
        check(1, 0, Device::Cuda(0), 4, (1, 1));
        check(2, 3, Device::Cuda(0), 4, (2, 3));
        let large = LARGE_GRAPH_BYTES;
        check_sized(0, 0, Device::Cpu, 2, large, (1, 2));
        check_sized(0, 0, Device::Cpu, 16, large, (4, 4));
        check_sized(16, 0, Device::Cpu, 16, large, (16, 1));
        check_sized(0, 1, Device::Cpu, 16, large, (16, 1));
    }

    #[test]
    fn shared_weights_let_a_large_model_have_a_session_a_core() {
        let settings = ModelSettings {
            prepared_weights: "prepared".to_owned(),
            ..ModelSettings::default()
        };
        let parallelism = settings.parallelism_on(Device::Cpu, 16, LARGE_GRAPH_BYTES);
        assert_eq!((parallelism.sessions, parallelism.threads), (16, 1));
    }

    #[test]
    fn only_the_default_folder_is_looked_for() {
        let settings = ModelSettings {
            bundle: "models/other".to_owned(),
            ..ModelSettings::default()
        };
        assert_eq!(settings.bundle_folder(), PathBuf::from("models/other"));
    }
}
