//! What a session loads and how it is built: the bundle's graph, or one with prepared weights.
//! Knows paths and settings; knows no tensors.

use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::ModelError;
use super::bundle::Bundle;
use super::device::Device;
use super::prepared;
use super::settings::ModelSettings;

/// What a session loads.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) path: PathBuf,
    /// Optimised already, its weights in the processor's form.
    is_prepared: bool,
}

impl Graph {
    /// The bundle's, or where the settings name a folder for that the prepared one, made first where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be used, or the bundle's graph cannot be loaded.
    pub(super) fn of(
        environment: &Environment,
        bundle: &Bundle,
        settings: &ModelSettings,
        device: Device,
    ) -> Result<Self, ModelError> {
        let path = bundle.graph_path(device);
        match settings.prepared_folder() {
            Some(folder) if !device.is_gpu() => {
                let write = |to: &Path| {
                    prepare(environment, settings, &path, to)
                        .map_err(|error| cause(environment, settings, &path, folder, &error))
                };
                let path = prepared::graph(folder, bundle.fingerprint(), ort::info(), write)?;
                Ok(Self {
                    path,
                    is_prepared: true,
                })
            }
            _ => Ok(Self {
                path,
                is_prepared: false,
            }),
        }
    }

    /// What is left to optimise.
    pub(super) fn level(&self) -> GraphOptimizationLevel {
        if self.is_prepared {
            GraphOptimizationLevel::Disable
        } else {
            GraphOptimizationLevel::All
        }
    }
}

/// Smaller tensors stay within the graph.
const SMALLEST_EXTERNAL_BYTES: &str = "1024";

/// Writes the optimised graph to `to`, and beside it its weights in the processor's form.
fn prepare(
    environment: &Environment,
    settings: &ModelSettings,
    from: &Path,
    to: &Path,
) -> Result<(), ort::Error> {
    let mut builder = builder(environment, settings, 1)?
        // That the file is for this machine alone is what is wanted.
        .with_log_level(LogLevel::Error)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_optimized_model_path(to)?
        .with_config_entry(
            "session.optimized_model_external_initializers_file_name",
            prepared::WEIGHTS,
        )?
        .with_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes",
            SMALLEST_EXTERNAL_BYTES,
        )?
        .with_config_entry("session.save_external_prepacked_constant_initializers", "1")?;
    builder.commit_from_file(from).map(drop)
}

/// What was wrong when a graph could not be prepared: the graph itself, if it cannot be loaded without being written either.
fn cause(
    environment: &Environment,
    settings: &ModelSettings,
    from: &Path,
    folder: &Path,
    error: &ort::Error,
) -> ModelError {
    let alone = builder(environment, settings, 1)
        .and_then(|mut builder| builder.commit_from_file(from).map(drop));
    match alone {
        Ok(()) => prepared::unusable(folder, error.to_string()),
        Err(error) => ModelError::Load {
            path: from.display().to_string(),
            reason: error.to_string(),
        },
    }
}

/// A session as the settings want it, but for its level of optimisation.
pub(super) fn builder(
    environment: &Environment,
    settings: &ModelSettings,
    threads: usize,
) -> Result<SessionBuilder, ort::Error> {
    let builder = Session::builder(environment)?
        // A session's own level, or else everything is formatted and thrown away.
        .with_log_level(LogLevel::Warning)?
        .with_intra_threads(threads)?
        .with_intra_op_spinning(settings.spin)?
        // A pattern is planned for one shape and kept: batches have a new shape every time.
        .with_memory_pattern(false)?
        // Weights do not come out of the arena, which grows by powers of two.
        .with_device_allocated_initializers()?;
    Ok(builder)
}
