//! The section `model` of the configuration: which bundle, on what, with how many threads.
//! Knows keys and bounds; must not know how a session is built.

use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, BundleError};
use super::device::{Device, DeviceError};
use super::roots::search_roots;
use crate::keys::{Declared, Violation, section};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// End with an error.
    #[default]
    None,
    /// Say so and go on with the processor.
    Cpu,
}

section! {
    /// The model and what it runs on.
    #[derive(Eq)]
    pub struct ModelSettings in "model" {
        /// Folder of the model bundle (bundle.toml, model.onnx, tokenizer.json), as `make model` writes it. A relative
        /// path starts at the current folder; the default one is looked for above the program as well.
        bundle: String = DEFAULT_BUNDLE.to_owned();
        /// What the model runs on: "cpu", "cuda:N" or "tensorrt:N" with N the number of the GPU, from 0 to 255. A
        /// device that does not work is an error.
        device: String = Device::Cpu.to_string();
        /// What to do where the device does not work: "none" ends with the error, "cpu" says so and continues with the
        /// CPU.
        fallback: Fallback = Fallback::None;
        /// The ONNX Runtime library, a file or the folder that holds it; one that is named and missing is an error.
        /// Empty: the environment's ORT_DYLIB_PATH, then what `make setup` fetched into .deps/.
        runtime_library: String = String::new();
        /// Passes that run at once, each with its own session and copy of the weights. 0: as many as the cores can
        /// hold, for models of 256 MiB or more with up to 4 threads each; two on a GPU, which then computes one while
        /// the predictions of the other are scored. With a large model as many sessions as cores are faster, by a few
        /// percent on a quiet machine, where there is memory for all their copies or `prepared_weights` shares them.
        sessions: usize = 0, in 0..=MAX_THREADS;
        /// Threads of one pass. 0: the cores divided among the sessions; one on a GPU.
        threads: usize = 0, in 0..=MAX_THREADS;
        /// Whether idle threads of a pass wait in a busy loop. It saves some microseconds a pass and costs whole cores
        /// while there is nothing to do; of no use with one thread.
        spin: bool = false;
        /// Whether a session keeps the memory of one pass for the next. Faster; without it memory goes back to the
        /// system.
        arena: bool = true;
        /// Folder in which weights are kept in the form that this CPU multiplies with; made at the first start and
        /// whenever bundle, ONNX Runtime or CPU change, of twice the size of the weights; may be emptied while no
        /// worker starts. All sessions and workers of a machine then share one copy in memory, so that a large model,
        /// too, gets a session for each core. Empty: every session prepares its own. Not for a GPU.
        prepared_weights: String = String::new();
        /// GPU memory that a session may take, in MiB. 0: as much as there is.
        gpu_memory_limit_mib: usize = 0, in 0..=MAX_GPU_MEMORY_MIB;
        /// Folder for the engines that TensorRT builds. Empty: they are built at every start, which takes minutes.
        tensorrt_cache: String = String::new();
    }
}

impl ModelSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.out_of_range();
        if self.bundle.trim().is_empty() {
            violations.push(Violation::new("bundle", "", "a folder"));
        }
        if Device::parse(&self.device).is_none() {
            violations.push(Violation::new("device", &self.device, Device::ALLOWED));
        }
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
                "sessions",
                "threads",
                "gpu_memory_limit_mib",
                "bundle",
                "device"
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
