//! Text to token ids, as BERT's WordPiece reads it; the only file that names `tokenizers`.
//! Knows the tokenizer of a bundle and its special tokens; must not know taxonomies, batches or models.
//!
//! The library tokenises any text, but it tracks where each byte went and matches special tokens
//! inside documents. Neither is wanted here: `[MASK]` in a document is text. So the text is walked
//! once, characters whose treatment does not depend on their neighbours (Chinese, punctuation, white space)
//! are looked up in a table that the library itself has filled, plain words go to its model, and
//! only what is left (other scripts, combining marks) takes its full path.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::tokenizer::pre_tokenizer::OffsetType;
use tokenizers::{
    Model as _, ModelWrapper, NormalizedString, Normalizer as _, NormalizerWrapper,
    OffsetReferential, PreTokenizedString, PreTokenizer as _, Tokenizer,
};

use crate::digest;

/// Longest stretch without separator, in characters, that the library sees at once. Longer ones
/// are read in pieces of this size, so that no text makes it allocate without bound.
pub const MAX_RUN_CHARS: usize = 4096;
/// Largest `tokenizer.json` that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The table covers the basic multilingual plane.
const TABLE_CHARS: usize = 0x1_0000;
/// The block of Chinese characters; each is a word of its own.
const CHINESE: RangeInclusive<u32> = 0x4E00..=0x9FFF;
/// Where the library is asked at start how it treats each character: Latin, general and Chinese
/// punctuation, kana, full-width forms. The Hangul tone marks 302A-302F are left to the library:
/// they combine with their neighbours.
const PROBED: [RangeInclusive<u32>; 6] = [
    0x0000..=0x024F,
    0x2000..=0x206F,
    0x20A0..=0x20BF,
    0x3000..=0x3029,
    0x3030..=0x30FF,
    0xFF00..=0xFFEF,
];

/// Ids of the tokens that no document may produce, and of the unknown token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `[CLS]`, opens a row.
    pub cls: u32,
    /// `[SEP]`, closes a row.
    pub sep: u32,
    /// `[MASK]`, stands for a token of a label's word.
    pub mask: u32,
    /// `[PAD]`, fills a row up.
    pub pad: u32,
    /// `[UNK]`, stands for a word outside the vocabulary.
    pub unk: u32,
}

/// A text as token ids, without special tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedText {
    /// Ids, at most as many as were asked for.
    pub ids: Vec<u32>,
    /// Whether the text had more tokens than that.
    pub truncated: bool,
    /// How many of `ids` are `[UNK]`.
    pub unknown_tokens: usize,
}

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("cannot read the tokenizer {path}: {reason}; a bundle needs its tokenizer.json")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file is no tokenizer.
    #[error("the tokenizer {origin} cannot be understood: {reason}")]
    Syntax {
        /// The file.
        origin: String,
        /// What the library said.
        reason: String,
    },
    /// A tokenizer of another family.
    #[error(
        "the tokenizer {origin} has a {part} other than BERT's; needed are a BertNormalizer, a BertPreTokenizer and a WordPiece model"
    )]
    Family {
        /// The file.
        origin: String,
        /// Which part differs.
        part: &'static str,
    },
    /// A special token that the vocabulary lacks.
    #[error(
        "the tokenizer {origin} has no token {token}; export the bundle again from a complete checkpoint"
    )]
    MissingToken {
        /// The file.
        origin: String,
        /// The token.
        token: String,
    },
}

/// How a character is treated, whatever stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CharClass {
    /// Depends on its neighbours, or was not asked for: the library decides.
    Other,
    /// Separates words.
    Space,
    /// Vanishes, even within a word.
    Dropped,
    /// A part of a word, after normalisation.
    Letter(char),
    /// A token of its own.
    Single(u32),
}

/// BERT's tokenizer without special tokens, offsets or unbounded work.
#[derive(Debug)]
pub struct PromptTokenizer {
    normalizer: BertNormalizer,
    pre_tokenizer: BertPreTokenizer,
    model: WordPiece,
    special: SpecialTokens,
    vocabulary_size: usize,
    classes: Vec<CharClass>,
    fingerprint: String,
}

impl PromptTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it cannot be read, is of another family than BERT's, or lacks a special token.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let fault = |reason: String| TokenizerError::Read {
            path: path.to_owned(),
            reason,
        };
        let size = fs::metadata(path).map_err(|error| fault(error.to_string()))?;
        if size.len() > MAX_FILE_BYTES {
            return Err(fault(format!("it has more than {MAX_FILE_BYTES} bytes")));
        }
        let bytes = fs::read(path).map_err(|error| fault(error.to_string()))?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of a `tokenizer.json`; `origin` names it in errors.
    ///
    /// # Errors
    /// When it is of another family than BERT's, or lacks a special token.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, TokenizerError> {
        let library = Tokenizer::from_bytes(bytes).map_err(|error| TokenizerError::Syntax {
            origin: origin.to_owned(),
            reason: error.to_string(),
        })?;
        let family = |part| TokenizerError::Family {
            origin: origin.to_owned(),
            part,
        };
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = library.get_normalizer() else {
            return Err(family("normalizer"));
        };
        let Some(PreTokenizerWrapper::BertPreTokenizer(pre_tokenizer)) =
            library.get_pre_tokenizer()
        else {
            return Err(family("pre_tokenizer"));
        };
        let ModelWrapper::WordPiece(model) = library.get_model() else {
            return Err(family("model"));
        };
        let special = special_tokens(&library, model, origin)?;
        let mut tokenizer = Self {
            normalizer: *normalizer,
            pre_tokenizer: *pre_tokenizer,
            model: model.clone(),
            special,
            vocabulary_size: library.get_vocab_size(true),
            classes: vec![CharClass::Other; TABLE_CHARS],
            fingerprint: digest::of_bytes(bytes),
        };
        tokenizer.fill_classes();
        Ok(tokenizer)
    }

    /// The special tokens' ids.
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Number of tokens; every id is below it.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// SHA-256 of the tokenizer's file, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The token of an id, for people to read.
    pub fn token(&self, id: u32) -> Option<String> {
        self.model.id_to_token(id)
    }

    /// Tokenises `text` until it has `limit` ids; what would follow is not read. Special tokens
    /// that stand in `text` are text.
    pub fn encode(&self, text: &str, limit: usize) -> EncodedText {
        let mut walk = Walk {
            tokenizer: self,
            text,
            ids: Vec::with_capacity(limit.min(text.len() / 3 + 8)),
            word: String::new(),
            run: None,
        };
        for (at, character) in text.char_indices() {
            if !walk.step(at, character) {
                continue;
            }
            // One token more than asked for proves that the text is longer.
            if walk.ids.len() > limit {
                break;
            }
        }
        walk.end_run(text.len());
        let mut ids = walk.ids;
        let truncated = ids.len() > limit;
        ids.truncate(limit);
        let unknown_tokens = ids.iter().filter(|id| **id == self.special.unk).count();
        EncodedText {
            ids,
            truncated,
            unknown_tokens,
        }
    }

    fn class(&self, character: char) -> CharClass {
        self.classes
            .get(character as usize)
            .copied()
            .unwrap_or(CharClass::Other)
    }

    fn fill_classes(&mut self) {
        for code in PROBED.into_iter().flatten() {
            self.set_class(code, |tokenizer, character| tokenizer.probe(character));
        }
        if self.normalizer.handle_chinese_chars {
            for code in CHINESE {
                self.set_class(code, |tokenizer, character| {
                    let id = tokenizer
                        .model
                        .token_to_id(character.encode_utf8(&mut [0; 4]));
                    CharClass::Single(id.unwrap_or(tokenizer.special.unk))
                });
            }
        }
    }

    fn set_class(&mut self, code: u32, class: impl Fn(&Self, char) -> CharClass) {
        let class = char::from_u32(code).map(|character| class(self, character));
        if let (Some(class), Some(entry)) = (class, self.classes.get_mut(code as usize)) {
            *entry = class;
        }
    }

    /// Asks the library what becomes of a character between two letters.
    fn probe(&self, character: char) -> CharClass {
        let pieces = self.words(&format!("a{character}b"));
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        match pieces.as_slice() {
            ["ab"] => CharClass::Dropped,
            ["a", "b"] => CharClass::Space,
            ["a", single, "b"] => match self.word_ids(single).as_slice() {
                [id] => CharClass::Single(*id),
                _ => CharClass::Other,
            },
            [word] => {
                let inner = word
                    .strip_prefix('a')
                    .and_then(|word| word.strip_suffix('b'));
                let mut letters = inner.unwrap_or_default().chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) => CharClass::Letter(letter),
                    _ => CharClass::Other,
                }
            }
            _ => CharClass::Other,
        }
    }

    /// The library's full path up to the words.
    fn words(&self, text: &str) -> Vec<String> {
        let mut normalized = NormalizedString::from(text);
        let split = self.normalizer.normalize(&mut normalized).and_then(|()| {
            let mut split = PreTokenizedString::from(normalized);
            self.pre_tokenizer.pre_tokenize(&mut split)?;
            Ok(split)
        });
        match split {
            Ok(split) => split
                .get_splits(OffsetReferential::Normalized, OffsetType::None)
                .into_iter()
                .map(|(word, _, _)| word.to_owned())
                .collect(),
            // BERT's normaliser and splitter have no failing path; if one appears, the text is
            // one unknown word.
            Err(_) => vec![text.to_owned()],
        }
    }

    fn word_ids(&self, word: &str) -> Vec<u32> {
        match self.model.tokenize(word) {
            Ok(tokens) => tokens.into_iter().map(|token| token.id).collect(),
            // Fails only where the vocabulary lacks [UNK], which loading has refused.
            Err(_) => vec![self.special.unk],
        }
    }
}

/// A stretch of characters between separators.
struct Run {
    start: usize,
    chars: usize,
    /// Whether only the library can tell how it splits.
    other: bool,
}

/// One walk over a text.
struct Walk<'a> {
    tokenizer: &'a PromptTokenizer,
    text: &'a str,
    ids: Vec<u32>,
    /// The run's letters, as long as a word can be.
    word: String,
    run: Option<Run>,
}

impl Walk<'_> {
    /// Takes the character at `at`; says whether ids may have been added.
    fn step(&mut self, at: usize, character: char) -> bool {
        match self.tokenizer.class(character) {
            CharClass::Single(id) => {
                self.end_run(at);
                self.ids.push(id);
                true
            }
            CharClass::Space => {
                let ended = self.run.is_some();
                self.end_run(at);
                ended
            }
            CharClass::Dropped => self.extend(at, None, false),
            CharClass::Letter(letter) => self.extend(at, Some(letter), false),
            CharClass::Other => self.extend(at, None, true),
        }
    }

    fn extend(&mut self, at: usize, letter: Option<char>, other: bool) -> bool {
        let run = self.run.get_or_insert(Run {
            start: at,
            chars: 0,
            other: false,
        });
        run.chars += 1;
        run.other |= other;
        // A longer word is unknown whatever follows; four bytes hold any character.
        let longest = 4 * (self.tokenizer.model.max_input_chars_per_word + 1);
        if let Some(letter) = letter
            && self.word.len() < longest
        {
            self.word.push(letter);
        }
        let full = run.other && run.chars >= MAX_RUN_CHARS;
        if full && let Some(next) = self.text.get(at..).and_then(|rest| rest.chars().next()) {
            self.end_run(at + next.len_utf8());
        }
        full
    }

    fn end_run(&mut self, end: usize) {
        let Some(run) = self.run.take() else {
            return;
        };
        if !run.other {
            if !self.word.is_empty() {
                self.ids.extend(self.tokenizer.word_ids(&self.word));
            }
        } else if let Some(raw) = self.text.get(run.start..end) {
            self.library_ids(raw);
        }
        self.word.clear();
    }

    /// `raw` may be long where letters preceded the first character that needs the library.
    fn library_ids(&mut self, mut raw: &str) {
        while !raw.is_empty() {
            let cut = raw.char_indices().nth(MAX_RUN_CHARS);
            let (piece, rest) = raw.split_at(cut.map_or(raw.len(), |(at, _)| at));
            for word in self.tokenizer.words(piece) {
                self.ids.extend(self.tokenizer.word_ids(&word));
            }
            raw = rest;
        }
    }
}

fn special_tokens(
    library: &Tokenizer,
    model: &WordPiece,
    origin: &str,
) -> Result<SpecialTokens, TokenizerError> {
    let id = |token: &str| {
        library
            .token_to_id(token)
            .ok_or_else(|| TokenizerError::MissingToken {
                origin: origin.to_owned(),
                token: token.to_owned(),
            })
    };
    // The model itself, not the tokens added to it, answers for unknown words.
    let unk = model
        .token_to_id(&model.unk_token)
        .ok_or_else(|| TokenizerError::MissingToken {
            origin: origin.to_owned(),
            token: model.unk_token.clone(),
        })?;
    Ok(SpecialTokens {
        cls: id("[CLS]")?,
        sep: id("[SEP]")?,
        mask: id("[MASK]")?,
        pad: id("[PAD]")?,
        unk,
    })
}

#[cfg(test)]
pub(crate) mod tests;
