//! The model stage: token ids in, log-probabilities of label tokens and sentence embeddings out.
//! Knows tensors and sessions; knows nothing of documents, labels or stores.
//!
//! `bundle.rs` verifies the folder that a model comes in, `runtime.rs` finds ONNX Runtime,
//! `verification.rs` holds how its export was checked,
//! `prepared.rs` keeps weights in the processor's form, `graph.rs` says what a session loads, `device.rs` names what
//! a session runs on, `providers.rs` sets that up in ONNX Runtime, `session.rs` runs passes, `settings.rs` holds the
//! section `model`. Only this folder names `ort`.

mod bundle;
mod device;
mod graph;
mod prepared;
mod providers;
mod roots;

mod runtime;
mod session;
mod settings;
mod verification;

pub use bundle::{Bundle, BundleError, Manifest, Precision};
pub use device::{Device, DeviceError};
pub(crate) use roots::search_roots;
pub use runtime::RuntimeError;
pub use session::OnnxModel;
pub use settings::{Fallback, ModelSettings};
pub use verification::Verification;

pub mod twin;

/// One padded batch for one pass; every row has the same number of masks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassInput {
    /// Rows.
    pub batch: usize,
    /// Tokens of each row, padding included.
    pub tokens: usize,
    /// Masks of each row.
    pub masks: usize,
    /// `[batch, tokens]`, padded on the right with the tokenizer's padding id.
    pub input_ids: Vec<i64>,
    /// `[batch, tokens]`, 1 for real tokens, 0 for padding.
    pub attention_mask: Vec<i64>,
    /// `[batch, masks]`, positions of the masks within their row.
    pub mask_positions: Vec<i64>,
    /// `[label_tokens]`, the vocabulary ids whose log-probabilities are wanted.
    pub label_token_ids: Vec<i64>,
}

/// What a pass gives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassOutput {
    /// `[batch, masks, label_tokens]`, natural logarithms of probabilities over the whole vocabulary.
    pub label_log_probs: Vec<f32>,
    /// `[batch, hidden]`, mean of the last hidden state over the attention mask, not normalised.
    pub sentence_embedding: Vec<f32>,
}

/// A model that runs passes; one instance per inference thread.
pub trait Model: Send {
    /// Width of the sentence embedding.
    fn hidden_size(&self) -> usize;

    /// Runs one pass.
    ///
    /// # Errors
    /// When the runtime fails or its output has another shape than the graph contract says.
    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError>;
}

/// Why the model stage failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder of the model is not what its `bundle.toml` says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// ONNX Runtime is missing, too old or already loaded from elsewhere.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The configured device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The runtime cannot load the graph.
    #[error("ONNX Runtime cannot load {path}: {reason}")]
    Load {
        /// The graph's file.
        path: String,
        /// What the runtime said.
        reason: String,
    },
    /// Weights cannot be kept in the processor's form.
    #[error(
        "the folder {folder} (model.prepared_weights) cannot be used: {reason}; it has to be writable and takes twice the \
         size of the weights; empty, weights are prepared at every start"
    )]
    Prepared {
        /// The folder.
        folder: String,
        /// Why not.
        reason: String,
    },
    /// The graph has other inputs or outputs than the contract.
    #[error(
        "{path} does not follow the graph contract {contract}: {reason}; export the checkpoint again with `make model`",
        contract = bundle::CONTRACT
    )]
    Contract {
        /// The graph's file.
        path: String,
        /// What differs.
        reason: String,
    },
    /// A pass failed.
    #[error("the model failed on a batch of {batch} x {tokens} tokens: {reason}")]
    Run {
        /// Rows of the batch.
        batch: usize,
        /// Tokens of a row.
        tokens: usize,
        /// What the runtime said.
        reason: String,
    },
}
