//! Sessions of ONNX Runtime: builds them as configured, holds them to the graph contract, runs passes.
//! Knows tensors; knows nothing of documents, labels or batching.

use std::thread;

use ort::environment::Environment;
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use super::bundle::{Bundle, Precision};
use super::device::{Device, DeviceError};
use super::graph::{Graph, builder};
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
mod tests;
