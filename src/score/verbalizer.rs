//! Which passes a taxonomy needs, what each asks the model for, and how rows are assembled.
//! Knows prompts as token ids; must not know how scores become topics.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::model::PassInput;
use crate::taxonomy::{Prompt, Taxonomy};
use crate::tokenize::{EncodedText, PromptTokenizer, SpecialTokens};

/// The sentence embedding comes from the pass with so many masks, run even without labels.
pub const EMBEDDING_MASKS: usize = 2;
/// Most tokens of one label word: each length costs a pass.
pub const MAX_WORD_TOKENS: usize = 16;
/// Room that must be left for the text in every pass.
pub const MIN_TEXT_TOKENS: usize = 8;

/// A label's word within a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassWord {
    /// Index of the label in the taxonomy.
    pub label: usize,
    /// For each mask, the column of `label_token_ids` that holds the word's token.
    pub columns: Vec<usize>,
}

/// One run of the model over a batch: all words of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Number of masks.
    pub masks: usize,
    /// What each row begins with: `[CLS]`, the prompt and its masks.
    pub head: Vec<u32>,
    /// Positions of the masks within a row.
    pub mask_positions: Vec<i64>,
    /// The distinct vocabulary ids whose log-probabilities are wanted; at least one.
    pub label_token_ids: Vec<i64>,
    /// The words of this length; none in a pass that is run for the embedding alone.
    pub words: Vec<PassWord>,
    /// Room for the text.
    pub text_tokens: usize,
}

/// Everything that a taxonomy and a prompt ask of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerbalizerPlan {
    passes: Vec<Pass>,
    embedding_pass: usize,
    labels: usize,
    special: SpecialTokens,
}

/// A word that the vocabulary does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownWord {
    /// The label.
    pub label: String,
    /// The word.
    pub word: String,
    /// The word as tokens, `[UNK]` among them.
    pub tokens: Vec<String>,
}

/// Two words that the tokenizer cannot tell apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Collision {
    /// Label and word that came first.
    pub first: (String, String),
    /// Label and word with the same tokens.
    pub second: (String, String),
    /// Their tokens.
    pub tokens: Vec<String>,
}

/// How the words of a taxonomy fare with a tokenizer: what `taxonomy check` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PlanReport {
    /// Words outside the vocabulary; they are left out.
    pub out_of_vocabulary: Vec<UnknownWord>,
    /// Words of equal tokens.
    pub collisions: Vec<Collision>,
    /// Words by their number of tokens: each length is one pass.
    pub words_by_tokens: BTreeMap<usize, Vec<String>>,
    /// Passes of the model for each document.
    pub passes: usize,
}

/// Why a taxonomy does not go with a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A prompt that the taxonomy does not have.
    #[error(
        "the taxonomy {taxonomy:?} has {prompts} prompts, number {index} was asked for (they count from 0); change tagging.prompt"
    )]
    NoSuchPrompt {
        /// The taxonomy.
        taxonomy: String,
        /// How many it has.
        prompts: usize,
        /// What was asked for.
        index: usize,
    },
    /// A label of which every word is unknown.
    #[error(
        "no word of the label {label:?} is in the model's vocabulary ({words}); give it a word that is, see `taxonomy check`"
    )]
    UnknownLabel {
        /// The label.
        label: String,
        /// Its words.
        words: String,
    },
    /// Words of different labels that are the same tokens.
    #[error(
        "the words {first_word:?} of {first:?} and {second_word:?} of {second:?} are the same to this model's tokenizer; change one of them, see `taxonomy check`"
    )]
    Collision {
        /// The label that came first.
        first: String,
        /// Its word.
        first_word: String,
        /// The other label.
        second: String,
        /// Its word.
        second_word: String,
    },
    /// A word of too many tokens.
    #[error(
        "the word {word:?} of the label {label:?} has {tokens} tokens, at most {MAX_WORD_TOKENS} are allowed; shorten it"
    )]
    LongWord {
        /// The label.
        label: String,
        /// The word.
        word: String,
        /// Its tokens.
        tokens: usize,
    },
    /// A prompt that fills the row.
    #[error(
        "the prompt {prompt:?} takes {head} of {max_tokens} tokens and leaves no room for a text; shorten it or raise tagging.max_tokens"
    )]
    NoRoom {
        /// The prompt.
        prompt: String,
        /// Tokens it takes.
        head: usize,
        /// Tokens of a row.
        max_tokens: usize,
    },
}

struct Word<'a> {
    label: usize,
    text: &'a str,
    ids: Vec<u32>,
}

impl VerbalizerPlan {
    /// Plans the passes for the prompt number `prompt` of `taxonomy`, rows of at most `max_tokens`.
    /// Words outside the vocabulary are left out and stand in the report.
    ///
    /// # Errors
    /// When a label keeps no word, words of two labels cannot be told apart, or a prompt leaves
    /// no room for a text.
    pub fn new(
        taxonomy: &Taxonomy,
        prompt: usize,
        tokenizer: &PromptTokenizer,
        max_tokens: usize,
    ) -> Result<(Self, PlanReport), PlanError> {
        let template = taxonomy
            .prompts
            .get(prompt)
            .ok_or_else(|| PlanError::NoSuchPrompt {
                taxonomy: taxonomy.name.clone(),
                prompts: taxonomy.prompts.len(),
                index: prompt,
            })?;
        let (words, mut report) = examine(taxonomy, tokenizer);
        refuse(taxonomy, &words, &report)?;
        let mut by_length: BTreeMap<usize, Vec<&Word<'_>>> = BTreeMap::new();
        by_length.entry(EMBEDDING_MASKS).or_default();
        for word in &words {
            by_length.entry(word.ids.len()).or_default().push(word);
        }
        report.passes = by_length.len();
        let embedding_pass = by_length
            .keys()
            .position(|length| *length == EMBEDDING_MASKS);
        let passes: Result<Vec<Pass>, PlanError> = by_length
            .iter()
            .map(|(masks, words)| pass(template, *masks, words, tokenizer, max_tokens))
            .collect();
        let plan = Self {
            passes: passes?,
            embedding_pass: embedding_pass.unwrap_or_default(),
            labels: taxonomy.labels.len(),
            special: tokenizer.special(),
        };
        Ok((plan, report))
    }

    /// How the words of `taxonomy` fare with `tokenizer`, even where no plan can be made.
    pub fn report(taxonomy: &Taxonomy, tokenizer: &PromptTokenizer) -> PlanReport {
        let (words, mut report) = examine(taxonomy, tokenizer);
        let lengths = words.iter().map(|word| word.ids.len());
        let mut lengths: Vec<usize> = lengths.chain([EMBEDDING_MASKS]).collect();
        lengths.sort_unstable();
        lengths.dedup();
        report.passes = lengths.len();
        report
    }

    /// The passes, by number of masks.
    pub fn passes(&self) -> &[Pass] {
        &self.passes
    }

    /// Index of the pass that the embedding comes from.
    pub fn embedding_pass(&self) -> usize {
        self.embedding_pass
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Tokens of a text that any pass has room for; what is beyond is never read.
    pub fn text_limit(&self) -> usize {
        let room = self.passes.iter().map(|pass| pass.text_tokens);
        room.max().unwrap_or_default()
    }

    /// Whether `text` is cut in the pass that the embedding comes from. (A pass with more masks has
    /// less room, one with fewer has more.)
    pub fn truncates(&self, text: &EncodedText) -> bool {
        let embedding = self.passes.get(self.embedding_pass);
        text.truncated || embedding.is_some_and(|pass| text.ids.len() > pass.text_tokens)
    }

    /// Tokens of the longest row that `text` becomes, for planning batches.
    pub fn row_tokens(&self, text: &EncodedText) -> usize {
        let rows = self.passes.iter().map(|pass| pass.row_tokens(text));
        rows.max().unwrap_or_default()
    }

    /// The rows of `texts` for one pass: `[CLS]`, prompt, masks, text, `[SEP]`, padded on the right.
    pub fn input(&self, pass: &Pass, texts: &[&EncodedText]) -> PassInput {
        let longest = texts.iter().map(|text| pass.row_tokens(text)).max();
        let tokens = longest.unwrap_or_default();
        let mut input_ids = Vec::with_capacity(texts.len() * tokens);
        let mut attention_mask = Vec::with_capacity(texts.len() * tokens);
        let mut mask_positions = Vec::with_capacity(texts.len() * pass.masks);
        for (row, text) in texts.iter().enumerate() {
            let end = (row + 1) * tokens;
            let text = text.ids.iter().take(pass.text_tokens);
            let row = pass.head.iter().chain(text).chain([&self.special.sep]);
            input_ids.extend(row.map(|id| i64::from(*id)));
            attention_mask.resize(input_ids.len(), 1);
            input_ids.resize(end, i64::from(self.special.pad));
            attention_mask.resize(end, 0);
            mask_positions.extend_from_slice(&pass.mask_positions);
        }
        PassInput {
            batch: texts.len(),
            tokens,
            masks: pass.masks,
            input_ids,
            attention_mask,
            mask_positions,
            label_token_ids: pass.label_token_ids.clone(),
        }
    }
}

impl Pass {
    /// Tokens of the row that `text` becomes in this pass, padding not counted.
    pub fn row_tokens(&self, text: &EncodedText) -> usize {
        self.head.len() + text.ids.len().min(self.text_tokens) + 1
    }
}

/// Tokenises every word; keeps those that the vocabulary knows.
fn examine<'a>(taxonomy: &'a Taxonomy, tokenizer: &PromptTokenizer) -> (Vec<Word<'a>>, PlanReport) {
    let mut report = PlanReport::default();
    let mut words: Vec<Word<'a>> = Vec::new();
    let mut seen: HashMap<Vec<u32>, (usize, &str)> = HashMap::new();
    let name = |label: usize| taxonomy.labels.get(label).map(|label| label.name.clone());
    for (index, label) in taxonomy.labels.iter().enumerate() {
        for text in &label.words {
            let encoded = tokenizer.encode(text, usize::MAX);
            let ids = encoded.ids;
            let tokens = || ids.iter().filter_map(|id| tokenizer.token(*id)).collect();
            if encoded.unknown_tokens > 0 || ids.is_empty() {
                report.out_of_vocabulary.push(UnknownWord {
                    label: label.name.clone(),
                    word: text.clone(),
                    tokens: tokens(),
                });
                continue;
            }
            if let Some((first, first_text)) = seen.get(&ids) {
                report.collisions.push(Collision {
                    first: (name(*first).unwrap_or_default(), (*first_text).to_owned()),
                    second: (label.name.clone(), text.clone()),
                    tokens: tokens(),
                });
                continue;
            }
            let length = report.words_by_tokens.entry(ids.len()).or_default();
            length.push(text.clone());
            seen.insert(ids.clone(), (index, text));
            words.push(Word {
                label: index,
                text,
                ids,
            });
        }
    }
    (words, report)
}

fn refuse(taxonomy: &Taxonomy, words: &[Word<'_>], report: &PlanReport) -> Result<(), PlanError> {
    // Two words of one label may collide: the label has lost nothing.
    let collision = report
        .collisions
        .iter()
        .find(|both| both.first.0 != both.second.0);
    if let Some(both) = collision {
        return Err(PlanError::Collision {
            first: both.first.0.clone(),
            first_word: both.first.1.clone(),
            second: both.second.0.clone(),
            second_word: both.second.1.clone(),
        });
    }
    let mut kept = vec![false; taxonomy.labels.len()];
    for word in words {
        if let Some(kept) = kept.get_mut(word.label) {
            *kept = true;
        }
        let label = taxonomy.labels.get(word.label);
        if word.ids.len() > MAX_WORD_TOKENS {
            return Err(PlanError::LongWord {
                label: label.map(|label| label.name.clone()).unwrap_or_default(),
                word: word.text.to_owned(),
                tokens: word.ids.len(),
            });
        }
    }
    let lost = taxonomy.labels.iter().zip(kept).find(|(_, kept)| !kept);
    lost.map_or(Ok(()), |(label, _)| {
        Err(PlanError::UnknownLabel {
            label: label.name.clone(),
            words: label.words.join(", "),
        })
    })
}

fn pass(
    prompt: &Prompt,
    masks: usize,
    words: &[&Word<'_>],
    tokenizer: &PromptTokenizer,
    max_tokens: usize,
) -> Result<Pass, PlanError> {
    let special = tokenizer.special();
    let mut head = vec![special.cls];
    head.extend(tokenizer.encode(&prompt.before, usize::MAX).ids);
    let first = head.len();
    head.resize(first + masks, special.mask);
    head.extend(tokenizer.encode(&prompt.after, usize::MAX).ids);
    let text_tokens = max_tokens.saturating_sub(head.len() + 1);
    if text_tokens < MIN_TEXT_TOKENS {
        return Err(PlanError::NoRoom {
            prompt: prompt.to_string(),
            head: head.len() + 1,
            max_tokens,
        });
    }
    let mut columns: HashMap<u32, usize> = HashMap::new();
    let mut label_token_ids: Vec<i64> = Vec::new();
    let mut column = |id: &u32| {
        *columns.entry(*id).or_insert_with(|| {
            label_token_ids.push(i64::from(*id));
            label_token_ids.len() - 1
        })
    };
    let words = words.iter().map(|word| PassWord {
        label: word.label,
        columns: word.ids.iter().map(&mut column).collect(),
    });
    let words = words.collect();
    if label_token_ids.is_empty() {
        // Run for the embedding alone: not every runtime takes a tensor without elements.
        label_token_ids.push(i64::from(special.mask));
    }
    Ok(Pass {
        masks,
        mask_positions: (first..first + masks).map(|at| at as i64).collect(),
        head,
        label_token_ids,
        words,
        text_tokens,
    })
}

#[cfg(test)]
mod tests;
