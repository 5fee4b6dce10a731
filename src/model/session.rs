//! Sessions of ONNX Runtime: builds them as configured, holds them to the graph contract, runs passes.
//! Knows tensors; knows nothing of documents, labels or batching.

use std::path::{Path, PathBuf};
use std::thread;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::bundle::{Bundle, Precision};
use super::device::{Device, DeviceError};
use super::prepared;
use super::providers;
use super::runtime;
use super::settings::{Fallback, ModelSettings};
use super::{Model, ModelError, PassInput, PassOutput};

const INPUT_IDS: &str = "input_ids";
const ATTENTION_MASK: &str = "attention_mask";
const MASK_POSITIONS: &str = "mask_positions";
const LABEL_TOKEN_IDS: &str = "label_token_ids";
const LABEL_LOG_PROBS: &str = "label_log_probs";
const SENTENCE_EMBEDDING: &str = "sentence_embedding";

/// Inputs of the graph contract with their number of dimensions; all int64.
const INPUTS: [(&str, usize); 4] = [
    (INPUT_IDS, 2),
    (ATTENTION_MASK, 2),
    (MASK_POSITIONS, 2),
    (LABEL_TOKEN_IDS, 1),
];
/// Outputs of the graph contract with their number of dimensions; all 32-bit floats.
const OUTPUTS: [(&str, usize); 2] = [(LABEL_LOG_PROBS, 3), (SENTENCE_EMBEDDING, 2)];

/// A model in ONNX Runtime; one session, used by one inference thread.
#[derive(Debug)]
pub struct OnnxModel {
    session: Session,
    hidden_size: usize,
    device: Device,
}

impl OnnxModel {
    /// Builds as many sessions over a verified bundle as the settings say, one for each inference
    /// thread; never none.
    ///
    /// # Errors
    /// When ONNX Runtime is missing, the device does not work (and no fallback is allowed), or the
    /// graph cannot be loaded or breaks the contract.
    pub fn load_all(bundle: &Bundle, settings: &ModelSettings) -> Result<Vec<Self>, ModelError> {
        let device = settings.parse_device()?;
        let environment = runtime::environment(settings.named_library(), device)?;
        match Self::load_on(&environment, bundle, settings, device) {
            Err(ModelError::Device(error)) if settings.fallback == Fallback::Cpu => {
                tracing::warn!(
                    %device,
                    %error,
                    "going on with the processor, as model.fallback says"
                );
                Self::load_on(&environment, bundle, settings, Device::Cpu)
            }
            outcome => outcome,
        }
    }

    fn load_on(
        environment: &Environment,
        bundle: &Bundle,
        settings: &ModelSettings,
        device: Device,
    ) -> Result<Vec<Self>, ModelError> {
        let parallelism = settings.parallelism(device, bundle.graph_bytes());
        let graph = Graph::of(environment, bundle, settings, device)?;
        let load = || {
            Self::load(
                environment,
                bundle,
                &graph,
                settings,
                device,
                parallelism.threads,
            )
        };
        // The first one alone: what is wrong is then said once.
        let mut sessions = vec![load()?];
        let others: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (1..parallelism.sessions)
                .map(|_| scope.spawn(load))
                .collect();
            threads
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect()
        });
        for other in others {
            sessions.push(other.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        tracing::info!(
            bundle = bundle.manifest().name,
            precision = bundle.manifest().precision.as_str(),
            %device,
            sessions = parallelism.sessions,
            threads = parallelism.threads,
            "model ready"
        );
        if device.is_gpu() && bundle.manifest().precision == Precision::Int8 {
            tracing::warn!(
                bundle = bundle.manifest().name,
                "an int8 bundle is for processors, most of it does not run on the GPU; export the checkpoint with \
                 PRECISION=fp16"
            );
        }
        Ok(sessions)
    }

    fn load(
        environment: &Environment,
        bundle: &Bundle,
        graph: &Graph,
        settings: &ModelSettings,
        device: Device,
        threads: usize,
    ) -> Result<Self, ModelError> {
        let path = &graph.path;
        let failed = |error: ort::Error| match device {
            Device::Cpu => ModelError::Load {
                path: path.display().to_string(),
                reason: error.to_string(),
            },
            // Drivers and device numbers are looked at only when the session is made.
            Device::Cuda(_) | Device::TensorRt(_) => ModelError::Device(DeviceError::Unavailable {
                device,
                reason: error.to_string(),
            }),
        };
        let builder = builder(environment, settings, threads).map_err(failed)?;
        let builder = builder
            .with_optimization_level(graph.level())
            .map_err(|error| failed(error.into()))?;
        let mut builder = providers::register(builder, settings, device, bundle)?;
        let session = builder.commit_from_file(path).map_err(failed)?;
        let hidden_size = bundle.manifest().hidden_size;
        check_contract(session.inputs(), session.outputs(), hidden_size).map_err(|reason| {
            ModelError::Contract {
                path: path.display().to_string(),
                reason,
            }
        })?;
        Ok(Self {
            session,
            hidden_size,
            device,
        })
    }

    /// What the session runs on; the processor where the fallback was taken.
    pub fn device(&self) -> Device {
        self.device
    }
}

/// What a session loads.
#[derive(Debug)]
struct Graph {
    path: PathBuf,
    /// Optimised already, its weights in the processor's form.
    is_prepared: bool,
}

impl Graph {
    fn of(
        environment: &Environment,
        bundle: &Bundle,
        settings: &ModelSettings,
        device: Device,
    ) -> Result<Self, ModelError> {
        let path = bundle.graph_path(device);
        match settings.prepared_folder() {
            Some(folder) if !device.is_gpu() => {
                let write = |to: &Path| prepare(environment, settings, &path, to);
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

    fn level(&self) -> GraphOptimizationLevel {
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

fn builder(
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

impl Model for OnnxModel {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        run_pass(&mut self.session, input, self.hidden_size).map_err(|reason| ModelError::Run {
            batch: input.batch,
            tokens: input.tokens,
            reason,
        })
    }
}

fn run_pass(
    session: &mut Session,
    input: &PassInput,
    hidden_size: usize,
) -> Result<PassOutput, String> {
    let outputs = run_graph(session, input).map_err(|error| error.to_string())?;
    let expected = [
        input.batch * input.masks * input.label_token_ids.len(),
        input.batch * hidden_size,
    ];
    let [label_log_probs, sentence_embedding] = outputs;
    for ((name, _), (values, expected)) in OUTPUTS.iter().zip(
        [&label_log_probs, &sentence_embedding]
            .into_iter()
            .zip(expected),
    ) {
        if values.len() != expected {
            return Err(format!(
                "{name} has {} values instead of {expected}",
                values.len()
            ));
        }
    }
    Ok(PassOutput {
        label_log_probs,
        sentence_embedding,
    })
}

/// Inputs are views of the caller's slices; outputs are copied once, out of the runtime's memory.
fn run_graph(session: &mut Session, input: &PassInput) -> Result<[Vec<f32>; 2], ort::Error> {
    let rows = [input.batch, input.tokens];
    let masks = [input.batch, input.masks];
    let labels = [input.label_token_ids.len()];
    let outputs = session.run(ort::inputs![
        INPUT_IDS => TensorRef::from_array_view((rows, input.input_ids.as_slice()))?,
        ATTENTION_MASK => TensorRef::from_array_view((rows, input.attention_mask.as_slice()))?,
        MASK_POSITIONS => TensorRef::from_array_view((masks, input.mask_positions.as_slice()))?,
        LABEL_TOKEN_IDS => TensorRef::from_array_view((labels, input.label_token_ids.as_slice()))?,
    ])?;
    let extract = |name: &str| -> Result<Vec<f32>, ort::Error> {
        let value = outputs
            .get(name)
            .ok_or_else(|| ort::Error::new(format!("the graph gave no {name}")))?;
        Ok(value.try_extract_tensor::<f32>()?.1.to_vec())
    };
    Ok([extract(LABEL_LOG_PROBS)?, extract(SENTENCE_EMBEDDING)?])
}

fn check_contract(inputs: &[Outlet], outputs: &[Outlet], hidden_size: usize) -> Result<(), String> {
    for (name, rank) in INPUTS {
        check_outlet("input", inputs, name, TensorElementType::Int64, rank)?;
    }
    if let Some(other) = inputs
        .iter()
        .find(|outlet| INPUTS.iter().all(|(name, _)| *name != outlet.name()))
    {
        return Err(format!("the input {} is unknown", other.name()));
    }
    for (name, rank) in OUTPUTS {
        check_outlet("output", outputs, name, TensorElementType::Float32, rank)?;
    }
    let width = outputs
        .iter()
        .find(|outlet| outlet.name() == SENTENCE_EMBEDDING)
        .and_then(|outlet| outlet.dtype().tensor_shape())
        .and_then(|shape| shape.last().copied());
    match width.and_then(|width| usize::try_from(width).ok()) {
        Some(width) if width != hidden_size => Err(format!(
            "{SENTENCE_EMBEDDING} is {width} wide, bundle.toml says {hidden_size}"
        )),
        // A graph may leave the width open; each pass checks it again.
        _ => Ok(()),
    }
}

fn check_outlet(
    kind: &str,
    outlets: &[Outlet],
    name: &str,
    element: TensorElementType,
    rank: usize,
) -> Result<(), String> {
    let outlet = outlets
        .iter()
        .find(|outlet| outlet.name() == name)
        .ok_or_else(|| format!("the {kind} {name} is missing"))?;
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } if *ty == element && shape.len() == rank => Ok(()),
        other => Err(format!(
            "the {kind} {name} is {other:?} instead of {element:?} with {rank} dimensions"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const VOCABULARY: i64 = 21_128;

    fn settings() -> ModelSettings {
        ModelSettings {
            bundle: concat!(env!("CARGO_MANIFEST_DIR"), "/models/compact").to_owned(),
            sessions: 1,
            threads: 1,
            ..ModelSettings::default()
        }
    }

    fn model(settings: &ModelSettings) -> OnnxModel {
        let bundle = settings.open_bundle().unwrap();
        OnnxModel::load_all(&bundle, settings).unwrap().remove(0)
    }

    /// Rows of [CLS] [MASK] [MASK] and `lengths` further tokens, padded to the longest.
    fn pass(lengths: &[usize], label_token_ids: Vec<i64>) -> PassInput {
        let tokens = lengths.iter().max().unwrap() + 3;
        let mut input = PassInput {
            batch: lengths.len(),
            tokens,
            masks: 2,
            label_token_ids,
            ..PassInput::default()
        };
        for length in lengths {
            let row = (0..tokens).map(|at| match at {
                0 => 101,
                1 | 2 => 103,
                at if at < length + 3 => 700 + i64::try_from(at * 37 % 5000).unwrap(),
                _ => 0,
            });
            input.input_ids.extend(row);
            let real = (0..tokens).map(|at| i64::from(at < length + 3));
            input.attention_mask.extend(real);
            input.mask_positions.extend([1, 2]);
        }
        input
    }

    #[test]
    fn a_pass_gives_probabilities_over_the_whole_vocabulary() {
        let mut model = model(&settings());
        let input = pass(&[5, 12], (0..VOCABULARY).collect());
        let output = model.run(&input).unwrap();
        assert_eq!(model.hidden_size(), 256);
        assert_eq!(output.sentence_embedding.len(), 2 * 256);
        let width = usize::try_from(VOCABULARY).unwrap();
        assert_eq!(output.label_log_probs.len(), 2 * 2 * width);
        for position in output.label_log_probs.chunks(width) {
            let sum: f64 = position.iter().map(|log| f64::from(*log).exp()).sum();
            assert!(
                (sum - 1.0).abs() < 1e-3,
                "the probabilities add up to {sum}"
            );
        }
    }

    #[test]
    fn a_row_means_the_same_in_any_session_and_arena() {
        let input = pass(&[20], vec![800, 900, 1000]);
        let expected = model(&settings()).run(&input).unwrap();
        for arena in [true, false] {
            let settings = ModelSettings {
                sessions: 3,
                arena,
                ..settings()
            };
            let bundle = settings.open_bundle().unwrap();
            let models = OnnxModel::load_all(&bundle, &settings).unwrap();
            assert_eq!(models.len(), 3);
            for mut model in models {
                assert_eq!(model.run(&input).unwrap(), expected);
            }
        }
    }

    #[test]
    fn prepared_weights_change_no_answer() {
        let input = pass(&[20, 7], vec![800, 900, 1000]);
        let expected = model(&settings()).run(&input).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let settings = ModelSettings {
            prepared_weights: folder.path().display().to_string(),
            sessions: 2,
            ..settings()
        };
        let bundle = settings.open_bundle().unwrap();
        // Written, then found.
        for _ in 0..2 {
            for mut model in OnnxModel::load_all(&bundle, &settings).unwrap() {
                assert_eq!(model.run(&input).unwrap(), expected);
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_wrong_pass_is_an_error_that_names_its_size() {
        let mut model = model(&settings());
        let mut input = pass(&[4], vec![800]);
        input.input_ids.pop();
        let message = model.run(&input).unwrap_err().to_string();
        assert!(message.contains("1 x 7 tokens"), "{message}");
        // The session is still of use.
        assert!(model.run(&pass(&[4], vec![800])).is_ok());
    }

    #[test]
    fn a_token_outside_the_table_of_words_is_an_error() {
        let mut model = model(&settings());
        let mut input = pass(&[4], vec![800]);
        // A table may have some rows more than the vocabulary has words; no tokenizer gives their numbers.
        input.input_ids[3] = VOCABULARY + 100;
        assert!(matches!(model.run(&input), Err(ModelError::Run { .. })));
    }

    #[test]
    fn an_absent_gpu_is_an_error_unless_the_fallback_is_allowed() {
        // A process holds one library: where the GPU's is fetched too, the tests stay with the other.
        let cpu = concat!(env!("CARGO_MANIFEST_DIR"), "/.deps/onnxruntime");
        let settings = ModelSettings {
            device: "cuda:0".to_owned(),
            runtime_library: Some(cpu)
                .filter(|folder| Path::new(folder).is_dir())
                .unwrap_or_default()
                .to_owned(),
            ..settings()
        };
        let bundle = settings.open_bundle().unwrap();
        match OnnxModel::load_all(&bundle, &settings) {
            // A machine with a GPU has nothing to show here.
            Ok(models) => assert_eq!(models[0].device(), Device::Cuda(0)),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains("the device cuda:0"), "{message}");
                assert!(message.contains("model.fallback"), "{message}");
                let fallback = ModelSettings {
                    fallback: Fallback::Cpu,
                    ..settings
                };
                let models = OnnxModel::load_all(&bundle, &fallback).unwrap();
                assert_eq!(models[0].device(), Device::Cpu);
            }
        }
    }

    /// A copy of the compact bundle whose manifest says something else.
    fn altered_bundle(folder: &Path, from: &str, to: &str) -> Bundle {
        let source = settings().bundle;
        for entry in fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
            }
        }
        let path = folder.join("bundle.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "the manifest has no {from:?}");
        fs::write(&path, text.replace(from, to)).unwrap();
        Bundle::open(folder).unwrap()
    }

    #[test]
    fn a_graph_of_another_width_breaks_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = altered_bundle(folder.path(), "hidden_size = 256", "hidden_size = 128");
        let message = OnnxModel::load_all(&bundle, &settings())
            .unwrap_err()
            .to_string();
        assert!(message.contains("256 wide"), "{message}");
        assert!(message.contains("128"), "{message}");
    }
}
