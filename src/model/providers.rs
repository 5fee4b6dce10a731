//! Execution providers: what of ONNX Runtime runs a graph on which device, and with which options.
//! Knows devices and settings; knows nothing of graphs.

use std::path::Path;

use ort::ep;
use ort::session::builder::SessionBuilder;

use super::bundle::{Bundle, Precision};
use super::device::{Device, DeviceError};
use super::settings::ModelSettings;

/// What the CUDA provider is linked to, dependencies first. Where the libraries lie beside ONNX Runtime, as
/// `make setup RUNTIME=gpu` puts them, they are loaded from there; elsewhere the system finds its own.
const CUDA_LIBRARIES: [&str; 4] = [
    "libcudart.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
];

/// Loads NVIDIA's libraries out of `folder`, those of them that are there.
///
/// # Errors
/// Says which one cannot be loaded and why.
pub(super) fn preload_cuda(folder: &Path) -> Result<(), String> {
    for name in CUDA_LIBRARIES {
        let path = folder.join(name);
        if path.is_file() {
            ort::util::preload_dylib(&path)
                .map_err(|error| format!("{} cannot be loaded: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Gives the session the providers of `device`; an absent one is an error, not a slow session.
///
/// # Errors
/// When the runtime was not built with the provider or its libraries are missing.
pub(super) fn register(
    builder: SessionBuilder,
    settings: &ModelSettings,
    device: Device,
    bundle: &Bundle,
) -> Result<SessionBuilder, DeviceError> {
    let cpu = ep::CPU::default()
        .with_arena_allocator(settings.arena)
        .build();
    let providers = match device {
        Device::Cpu => vec![cpu],
        Device::Cuda(index) => vec![cuda(settings, index).build().error_on_failure(), cpu],
        Device::TensorRt(index) => vec![
            tensorrt(settings, index, bundle).build().error_on_failure(),
            // What TensorRT cannot do stays on the GPU.
            cuda(settings, index).build().error_on_failure(),
            cpu,
        ],
    };
    builder
        .with_execution_providers(providers)
        .map_err(|error| DeviceError::Unavailable {
            device,
            reason: error.to_string(),
        })
}

fn cuda(settings: &ModelSettings, index: u16) -> ep::CUDA {
    let provider = ep::CUDA::default()
        .with_device_id(i32::from(index))
        // Sums within a norm in 32 bits, whatever its inputs have.
        .with_skip_layer_norm_strict_mode(true)
        // Batches differ in shape: memory extended by doubling would never settle.
        .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested);
    match settings.gpu_memory_limit_mib {
        0 => provider,
        mib => provider.with_memory_limit(mib << 20),
    }
}

fn tensorrt(settings: &ModelSettings, index: u16, bundle: &Bundle) -> ep::TensorRT {
    let manifest = bundle.manifest();
    let mut provider = ep::TensorRT::default()
        .with_device_id(i32::from(index))
        .with_fp16(manifest.precision == Precision::Fp16)
        .with_layer_norm_fp32_fallback(true);
    if let Some(profile) = &manifest.tensorrt {
        provider = provider
            .with_profile_min_shapes(&profile.smallest)
            .with_profile_opt_shapes(&profile.best)
            .with_profile_max_shapes(&profile.largest);
    }
    if settings.tensorrt_cache.is_empty() {
        return provider;
    }
    provider
        .with_engine_cache(true)
        .with_engine_cache_path(&settings.tensorrt_cache)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_nvidia_libraries_has_nothing_to_load() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(preload_cuda(folder.path()), Ok(()));
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libcudart.so.13"), "not a library").unwrap();
        let message = preload_cuda(folder.path()).unwrap_err();
        assert!(message.contains("libcudart.so.13"), "{message}");
    }
}
