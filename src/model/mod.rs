//! The model stage: token ids in, log-probabilities of label tokens and sentence embeddings out.
//! Knows tensors and sessions; knows nothing of documents, labels or stores.

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
    /// A bundle, library or device that cannot be used as configured.
    #[error("{0}")]
    Setup(String),
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
