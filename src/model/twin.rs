//! A model without a runtime: a deterministic function of the token ids, for tests and for
//! measuring what is not the model.

use std::collections::HashMap;

use super::{Model, ModelError, PassInput, PassOutput};

/// Words of the vocabulary that it pretends to have.
const VOCABULARY: f32 = 21_128.0;
/// How much each occurrence of a token in the row adds to its logit.
const WEIGHT: f32 = 4.0;

/// Predicts, for every mask, the tokens that occur in the row; embeds a row as the mean of
/// pseudo-random vectors of its tokens. A text that holds a label's word gets that label.
#[derive(Debug, Clone)]
pub struct TwinModel {
    hidden_size: usize,
}

impl TwinModel {
    /// A twin whose embeddings have `hidden_size` values.
    pub fn new(hidden_size: usize) -> Self {
        Self { hidden_size }
    }
}

impl Model for TwinModel {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        let mut output = PassOutput::default();
        let rows = input.input_ids.chunks_exact(input.tokens.max(1));
        let masks = input.attention_mask.chunks_exact(input.tokens.max(1));
        for (ids, mask) in rows.zip(masks) {
            let real = ids.iter().zip(mask).filter(|(_, mask)| **mask == 1);
            let ids: Vec<i64> = real.map(|(id, _)| *id).collect();
            let mut counts: HashMap<i64, f32> = HashMap::new();
            for id in &ids {
                *counts.entry(*id).or_default() += 1.0;
            }
            // Twenty occurrences say as much as any number; beyond, the exponential overflows.
            let logit = |id: &i64| WEIGHT * counts.get(id).copied().unwrap_or(0.0).min(20.0);
            let seen: f32 = counts.keys().map(|id| logit(id).exp() - 1.0).sum();
            let normaliser = (VOCABULARY + seen).ln();
            for _ in 0..input.masks {
                let log_probs = input
                    .label_token_ids
                    .iter()
                    .map(|id| logit(id) - normaliser);
                output.label_log_probs.extend(log_probs);
            }
            output
                .sentence_embedding
                .extend((0..self.hidden_size).map(|column| {
                    let sum: f32 = ids.iter().map(|id| noise(*id, column)).sum();
                    sum / ids.len().max(1) as f32
                }));
        }
        Ok(output)
    }
}

/// A fixed value between -1 and 1 for each token and column.
fn noise(id: i64, column: usize) -> f32 {
    // The finaliser of splitmix64.
    let mut bits = (id as u64) << 20 ^ column as u64;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}
