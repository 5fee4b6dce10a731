//! Finds ONNX Runtime, loads it once for the process and owns its environment.
//! Knows paths and the library; knows nothing of bundles or graphs.

use std::env;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use super::device::Device;
use super::providers;
use super::roots::search_roots;

/// The variable that names the library where the configuration does not.
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// Where `make setup` puts the library, below the repository's root; the first is for GPUs only.
const GPU_FOLDER: &str = ".deps/onnxruntime-gpu";
const CPU_FOLDER: &str = ".deps/onnxruntime";
/// Folders within which packages of ONNX Runtime keep the library itself.
const INNER_FOLDERS: [&str; 3] = ["", "lib", "capi"];
/// The smallest minor version of ONNX Runtime 1.x with the functions that this build calls.
const LOWEST_MINOR_VERSION: u32 = ort::MINOR_VERSION;

/// The library that this process has loaded; there can be no second one.
struct Loaded {
    path: PathBuf,
    environment: Environment,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// The environment of the library that the configuration means, loaded at the first call.
pub(super) fn environment(
    configured: Option<&Path>,
    device: Device,
) -> Result<Environment, RuntimeError> {
    let path = find_library(
        configured,
        env::var_os(LIBRARY_VARIABLE),
        &search_roots(),
        device,
    )?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = loaded.as_ref() {
        if loaded.path == path {
            return Ok(loaded.environment.clone());
        }
        return Err(RuntimeError::AlreadyLoaded {
            loaded: loaded.path.clone(),
            asked: path,
        });
    }
    if let (true, Some(folder)) = (device.is_gpu(), path.parent()) {
        providers::preload_cuda(folder).map_err(|reason| RuntimeError::Unusable {
            path: path.clone(),
            reason,
        })?;
    }
    let environment = load(&path)?;
    tracing::debug!(library = %path.display(), "onnx runtime loaded");
    *loaded = Some(Loaded {
        path,
        environment: environment.clone(),
    });
    Ok(environment)
}

/// A library that was named must be there; only where none was named is one looked for.
fn find_library(
    configured: Option<&Path>,
    variable: Option<OsString>,
    roots: &[PathBuf],
    device: Device,
) -> Result<PathBuf, RuntimeError> {
    let variable = variable
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let named = match (configured, &variable) {
        (Some(path), _) => Some(("model.runtime_library", path)),
        (None, Some(path)) => Some((LIBRARY_VARIABLE, path.as_path())),
        (None, None) => None,
    };
    if let Some((origin, path)) = named {
        return named_library(origin, path);
    }
    let folders: &[&str] = if device.is_gpu() {
        &[GPU_FOLDER, CPU_FOLDER]
    } else {
        &[CPU_FOLDER]
    };
    for folder in folders {
        for root in roots {
            if let Some(path) = library_within(&root.join(folder)) {
                return absolute(&path);
            }
        }
    }
    Err(RuntimeError::NotFound {
        command: if device.is_gpu() {
            "make setup RUNTIME=gpu"
        } else {
            "make setup"
        },
    })
}

fn named_library(origin: &'static str, path: &Path) -> Result<PathBuf, RuntimeError> {
    let missing = || RuntimeError::NamedMissing {
        origin,
        path: path.to_owned(),
    };
    if path.is_dir() {
        return absolute(&library_within(path).ok_or_else(missing)?);
    }
    if path.is_file() {
        return absolute(path);
    }
    Err(missing())
}

/// The newest library in a folder as packages lay it out.
fn library_within(folder: &Path) -> Option<PathBuf> {
    INNER_FOLDERS.iter().find_map(|inner| {
        fs::read_dir(folder.join(inner))
            .ok()?
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let version = library_version(entry.file_name().to_str()?)?;
                entry.path().is_file().then(|| (version, entry.path()))
            })
            .max()
            .map(|(_, path)| path)
    })
}

/// The version in a library's file name, empty where it has none; `None` for any other file.
fn library_version(file_name: &str) -> Option<Vec<u32>> {
    let rest = file_name.strip_prefix(&format!("{DLL_PREFIX}onnxruntime"))?;
    let (before, after) = rest.split_once(DLL_SUFFIX)?;
    // `libonnxruntime_providers_shared.so` is no runtime; a version stands after the suffix on
    // Linux and before it on macOS.
    let version = [before, after].concat();
    version
        .split('.')
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().ok())
        .collect()
}

/// A relative path would be looked up beside the program first: the file that was checked must be
/// the file that is loaded.
fn absolute(path: &Path) -> Result<PathBuf, RuntimeError> {
    path.canonicalize().map_err(|error| RuntimeError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn load(path: &Path) -> Result<Environment, RuntimeError> {
    use ort::LoadDynamicError;

    let unusable = |reason: String| RuntimeError::Unusable {
        path: path.to_owned(),
        reason,
    };
    let builder = ort::init_from(path).map_err(|error| match error {
        LoadDynamicError::BadVersion { version_str, .. } => RuntimeError::TooOld {
            path: path.to_owned(),
            found: version_str,
        },
        LoadDynamicError::MissingApi { .. } => {
            unusable("it is a library, but not ONNX Runtime".to_owned())
        }
        LoadDynamicError::Dlopen { error, .. } => unusable(error.to_string()),
        other @ LoadDynamicError::InvalidVersionString => unusable(other.to_string()),
    })?;
    let environment = builder
        .with_name("tcbert-worker")
        .with_telemetry(false)
        .with_logger(Arc::new(|level, _, _, location, message| {
            forward(level, location, message);
        }))
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    // Built with a logger, the environment passes everything on, down to each node of each pass.
    environment.set_log_level(LogLevel::Warning);
    Ok(environment)
}

/// What the runtime says of itself. Its warnings are hints for who tunes graphs, and its errors
/// come back from the call as well, so that neither is an alarm here.
fn forward(level: LogLevel, location: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => {
            tracing::trace!(location, message, "onnx runtime");
        }
        LogLevel::Warning => tracing::debug!(location, message, "onnx runtime"),
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(location, message, "onnx runtime"),
    }
}

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A library was named and is not there.
    #[error("{origin} names {}, which holds no ONNX Runtime library; correct it, or leave it out to use what \
             `make setup` fetched", .path.display())]
    NamedMissing {
        /// Where it was named.
        origin: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// No library was named and none is where `make setup` puts it.
    #[error(
        "ONNX Runtime was not found; fetch it with `{command}`, or name the library in model.runtime_library or \
         {LIBRARY_VARIABLE}"
    )]
    NotFound {
        /// The command that fetches it.
        command: &'static str,
    },
    /// The library is older than this build needs.
    #[error(
        "{} is ONNX Runtime {found}, at least 1.{LOWEST_MINOR_VERSION} is needed; `make setup` fetches the right one",
        .path.display()
    )]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The library cannot be loaded.
    #[error("{} cannot be loaded as ONNX Runtime: {reason}; `make setup` fetches the right one", .path.display())]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another library is already in use; a process can hold one only.
    #[error("ONNX Runtime is already loaded from {}, so {} cannot be loaded too", .loaded.display(), .asked.display())]
    AlreadyLoaded {
        /// The library in use.
        loaded: PathBuf,
        /// The library asked for.
        asked: PathBuf,
    },
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn touch(root: &Path, name: &str) -> PathBuf {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "not a library").unwrap();
        path.canonicalize().unwrap()
    }

    fn find(
        configured: Option<&Path>,
        variable: Option<&Path>,
        root: &Path,
        device: Device,
    ) -> Result<PathBuf, String> {
        let variable = variable.map(|path| path.as_os_str().to_owned());
        find_library(configured, variable, &[root.to_owned()], device)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_configuration_goes_before_the_variable_and_both_before_the_search() {
        let root = tempfile::tempdir().unwrap();
        let fetched = touch(root.path(), ".deps/onnxruntime/libonnxruntime.so.1.24.4");
        let configured = touch(root.path(), "one.so");
        let variable = touch(root.path(), "two.so");
        let both = find(Some(&configured), Some(&variable), root.path(), Device::Cpu);
        assert_eq!(both, Ok(configured));
        let second = find(None, Some(&variable), root.path(), Device::Cpu);
        assert_eq!(second, Ok(variable));
        let none = find(None, Some(Path::new("")), root.path(), Device::Cpu);
        assert_eq!(none, Ok(fetched));
    }

    #[test]
    fn a_named_library_that_is_missing_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), ".deps/onnxruntime/libonnxruntime.so.1.24.4");
        let missing = root.path().join("missing.so");
        let message = find(Some(&missing), None, root.path(), Device::Cpu).unwrap_err();
        assert!(message.contains("model.runtime_library"), "{message}");
        let message = find(None, Some(&missing), root.path(), Device::Cpu).unwrap_err();
        assert!(message.contains("ORT_DYLIB_PATH"), "{message}");
    }

    #[test]
    fn the_newest_library_of_a_folder_is_taken_and_no_provider() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            ".deps/onnxruntime/libonnxruntime_providers_shared.so",
        );
        let message = find(None, None, root.path(), Device::Cpu).unwrap_err();
        assert!(message.contains("`make setup`"), "{message}");
        touch(root.path(), ".deps/onnxruntime/libonnxruntime.so.1.9.0");
        let newest = touch(root.path(), ".deps/onnxruntime/libonnxruntime.so.1.24.4");
        assert_eq!(find(None, None, root.path(), Device::Cpu), Ok(newest));
    }

    #[test]
    fn a_gpu_prefers_the_gpu_build() {
        let root = tempfile::tempdir().unwrap();
        let cpu = touch(root.path(), ".deps/onnxruntime/lib/libonnxruntime.so");
        let gpu = touch(
            root.path(),
            ".deps/onnxruntime-gpu/capi/libonnxruntime.so.1.24.4",
        );
        let cuda = Device::Cuda(0);
        assert_eq!(find(None, None, root.path(), cuda), Ok(gpu.clone()));
        assert_eq!(find(None, None, root.path(), Device::Cpu), Ok(cpu.clone()));
        fs::remove_file(gpu).unwrap();
        assert_eq!(find(None, None, root.path(), cuda), Ok(cpu));
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_and_no_panic() {
        let root = tempfile::tempdir().unwrap();
        let path = touch(root.path(), "libonnxruntime.so");
        // Held so that no other test loads the real one half-way.
        let _loaded = LOADED.lock().unwrap();
        let message = load(&path).unwrap_err().to_string();
        assert!(message.contains("cannot be loaded"), "{message}");
        assert!(message.contains("make setup"), "{message}");
    }
}
