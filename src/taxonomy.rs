//! A taxonomy: the prompts, the labels and the words that stand for them, read from TOML and checked.
//! Pure but for the reading of its file; must not know tokens, models or scores.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Topic of a document for which no label is probable enough; no label may be called so.
pub const OTHER: &str = "other";
/// Where a prompt holds the label's word.
pub const PLACEHOLDER: &str = "{label}";
/// Largest taxonomy file that is read.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Most labels of a taxonomy.
pub const MAX_LABELS: usize = 10_000;
/// Longest prompt, in characters.
pub const MAX_PROMPT_CHARS: usize = 200;

/// The taxonomies that the program brings along.
const BUILT_IN: [(&str, &str); 5] = [
    ("news", include_str!("../config/taxonomies/news.toml")),
    ("tnews", include_str!("../config/taxonomies/tnews.toml")),
    ("csldcp", include_str!("../config/taxonomies/csldcp.toml")),
    ("iflytek", include_str!("../config/taxonomies/iflytek.toml")),
    (
        "thucnews",
        include_str!("../config/taxonomies/thucnews.toml"),
    ),
];

/// A text around the place where the label's word goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What stands before the label's word.
    pub before: String,
    /// What stands after it, before the document.
    pub after: String,
}

impl Prompt {
    /// Splits a prompt at its one `{label}`; gives the number of placeholders found otherwise.
    fn parse(text: &str) -> Result<Self, usize> {
        let parts: Vec<&str> = text.split(PLACEHOLDER).collect();
        match parts.as_slice() {
            [before, after] => Ok(Self {
                before: (*before).to_owned(),
                after: (*after).to_owned(),
            }),
            _ => Err(parts.len().saturating_sub(1)),
        }
    }
}

impl fmt::Display for Prompt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{PLACEHOLDER}{}", self.before, self.after)
    }
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// What the topic is called in results.
    pub name: String,
    /// The words that stand for it in a prompt; the best one counts.
    pub words: Vec<String>,
    /// How data files call it: number, English name, description. Its name counts too.
    #[serde(default)]
    pub codes: Vec<String>,
}

/// A checked taxonomy: at least one prompt and one label, all names, words and codes distinct.
#[derive(Debug, Clone, PartialEq)]
pub struct Taxonomy {
    /// The taxonomy's name.
    pub name: String,
    /// At least one; the first is used unless configured.
    pub prompts: Vec<Prompt>,
    /// Below this probability the topic is [`OTHER`]; 0 means never.
    pub threshold: f64,
    /// Divides the labels' scores before they become probabilities.
    pub temperature: f64,
    /// Whether a label's score on an empty document is subtracted from its score.
    pub calibration: bool,
    /// The topics, in the order of the file.
    pub labels: Vec<Label>,
    codes: HashMap<String, usize>,
}

/// Why a taxonomy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TaxonomyError {
    /// The file that was named cannot be read.
    #[error("cannot read the taxonomy {path}: {reason}; check tagging.taxonomy")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Neither built in nor in the configured folder.
    #[error(
        "there is no taxonomy named {name:?} (known are {known}); give one of these, or the path of a file that ends with .toml, as tagging.taxonomy"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Not TOML, or not the fields of a taxonomy.
    #[error("the taxonomy {origin} cannot be understood: {reason}")]
    Syntax {
        /// The file, or the name of the built-in taxonomy.
        origin: String,
        /// What the parser said, with the line.
        reason: String,
    },
    /// Well-formed, but it contradicts itself.
    #[error("the taxonomy {origin}: {fault}")]
    Invalid {
        /// The file, or the name of the built-in taxonomy.
        origin: String,
        /// What is wrong and what to do.
        fault: TaxonomyFault,
    },
}

/// What contradicts itself in a taxonomy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TaxonomyFault {
    /// The name is empty.
    #[error("name is empty; give it one")]
    NoName,
    /// There is no prompt.
    #[error("prompts is empty; give at least one, with {PLACEHOLDER} where the label's word goes")]
    NoPrompt,
    /// A prompt without its one place for the label.
    #[error("the prompt {prompt:?} holds {PLACEHOLDER} {found} times; it must stand there once")]
    Placeholder {
        /// The prompt.
        prompt: String,
        /// How many placeholders it holds.
        found: usize,
    },
    /// A prompt so long that it would leave no room for the text.
    #[error("the prompt {prompt:?} has {chars} characters; at most {MAX_PROMPT_CHARS} are allowed")]
    LongPrompt {
        /// The prompt.
        prompt: String,
        /// Its characters.
        chars: usize,
    },
    /// There is no label.
    #[error("it has no labels; give at least one [[labels]] with name and words")]
    NoLabels,
    /// More than [`MAX_LABELS`].
    #[error("it has {0} labels; at most {MAX_LABELS} are allowed")]
    TooManyLabels(usize),
    /// A label without a name.
    #[error("label number {0} has an empty name; give it one")]
    EmptyLabelName(usize),
    /// A label called `other`.
    #[error(
        "no label may be called {OTHER:?}, which is the topic of documents below the threshold; rename it"
    )]
    ReservedName,
    /// A label without words.
    #[error("the label {0:?} has no words; give it at least one")]
    NoWords(String),
    /// A word of nothing.
    #[error("the label {0:?} has an empty word; remove it")]
    EmptyWord(String),
    /// Two labels of one name.
    #[error("two labels are called {0:?}; rename or merge them")]
    DuplicateName(String),
    /// A word twice.
    #[error("the word {word:?} stands for both {first:?} and {second:?}; keep it in one of them")]
    DuplicateWord {
        /// The word.
        word: String,
        /// The label that had it first.
        first: String,
        /// The label that has it too.
        second: String,
    },
    /// A code twice.
    #[error("the code {code:?} stands for both {first:?} and {second:?}; keep it in one of them")]
    DuplicateCode {
        /// The code.
        code: String,
        /// The label that had it first.
        first: String,
        /// The label that has it too.
        second: String,
    },
    /// Threshold outside its range.
    #[error("threshold is {0}; allowed is a number from 0 (never {OTHER:?}) to 1")]
    Threshold(f64),
    /// Temperature that cannot divide.
    #[error("temperature is {0}; allowed is a number above 0 and at most 1000")]
    Temperature(f64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaxonomyFile {
    name: String,
    prompts: Vec<String>,
    #[serde(default)]
    threshold: f64,
    #[serde(default = "default_temperature")]
    temperature: f64,
    #[serde(default)]
    calibration: bool,
    #[serde(default)]
    labels: Vec<Label>,
}

fn default_temperature() -> f64 {
    1.0
}

impl Taxonomy {
    /// Finds a taxonomy: `named` is a path where it holds a separator or ends with `.toml`;
    /// otherwise a name, looked for in `folder` (where one is configured) and among those built in.
    ///
    /// # Errors
    /// When there is no such taxonomy, or it is not a valid one.
    pub fn load(named: &str, folder: Option<&Path>) -> Result<Self, TaxonomyError> {
        if named.contains(['/', '\\']) || named.ends_with(".toml") {
            return Self::from_file(Path::new(named));
        }
        if let Some(folder) = folder {
            let path = folder.join(format!("{named}.toml"));
            if path.exists() {
                return Self::from_file(&path);
            }
        }
        match BUILT_IN.iter().find(|(name, _)| *name == named) {
            Some((name, text)) => Self::parse(text, name),
            None => Err(TaxonomyError::Unknown {
                name: named.to_owned(),
                known: known_names(folder).join(", "),
            }),
        }
    }

    /// Reads a taxonomy file.
    ///
    /// # Errors
    /// When it cannot be read or is not a valid taxonomy.
    pub fn from_file(path: &Path) -> Result<Self, TaxonomyError> {
        let fault = |reason: String| TaxonomyError::Read {
            path: path.to_owned(),
            reason,
        };
        let bytes = fs::metadata(path)
            .map_err(|error| fault(error.to_string()))?
            .len();
        if bytes > MAX_FILE_BYTES {
            return Err(fault(format!(
                "it has {bytes} bytes, at most {MAX_FILE_BYTES} are read"
            )));
        }
        let text = fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a taxonomy from `text`; `origin` names it in errors.
    ///
    /// # Errors
    /// When it is not TOML, has other fields or contradicts itself.
    pub fn parse(text: &str, origin: &str) -> Result<Self, TaxonomyError> {
        let file: TaxonomyFile = toml::from_str(text).map_err(|error| TaxonomyError::Syntax {
            origin: origin.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        check(file).map_err(|fault| TaxonomyError::Invalid {
            origin: origin.to_owned(),
            fault,
        })
    }

    /// The label that a data file calls `code`: its name, or one of its codes.
    pub fn label_of_code(&self, code: &str) -> Option<usize> {
        self.codes.get(code).copied()
    }
}

/// The taxonomies that can be named: those of `folder` and those built in.
pub fn known_names(folder: Option<&Path>) -> Vec<String> {
    let mut names: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).into()).collect();
    let files = folder.and_then(|folder| fs::read_dir(folder).ok());
    for path in files
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.path())
    {
        let is_taxonomy = path.extension().is_some_and(|end| end == "toml");
        if let (true, Some(stem)) = (is_taxonomy, path.file_stem()) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    names.dedup();
    names
}

fn check(file: TaxonomyFile) -> Result<Taxonomy, TaxonomyFault> {
    if file.name.trim().is_empty() {
        return Err(TaxonomyFault::NoName);
    }
    if !(0.0..=1.0).contains(&file.threshold) {
        return Err(TaxonomyFault::Threshold(file.threshold));
    }
    if !(file.temperature > 0.0 && file.temperature <= 1000.0) {
        return Err(TaxonomyFault::Temperature(file.temperature));
    }
    let prompts = check_prompts(&file.prompts)?;
    check_labels(&file.labels)?;
    let codes = check_codes(&file.labels)?;
    Ok(Taxonomy {
        name: file.name,
        prompts,
        threshold: file.threshold,
        temperature: file.temperature,
        calibration: file.calibration,
        labels: file.labels,
        codes,
    })
}

fn check_prompts(prompts: &[String]) -> Result<Vec<Prompt>, TaxonomyFault> {
    if prompts.is_empty() {
        return Err(TaxonomyFault::NoPrompt);
    }
    let check_one = |prompt: &String| {
        let chars = prompt.chars().count();
        if chars > MAX_PROMPT_CHARS {
            return Err(TaxonomyFault::LongPrompt {
                prompt: prompt.clone(),
                chars,
            });
        }
        Prompt::parse(prompt).map_err(|found| TaxonomyFault::Placeholder {
            prompt: prompt.clone(),
            found,
        })
    };
    prompts.iter().map(check_one).collect()
}

fn check_labels(labels: &[Label]) -> Result<(), TaxonomyFault> {
    if labels.is_empty() {
        return Err(TaxonomyFault::NoLabels);
    }
    if labels.len() > MAX_LABELS {
        return Err(TaxonomyFault::TooManyLabels(labels.len()));
    }
    let mut words: HashMap<&str, &str> = HashMap::new();
    for (index, label) in labels.iter().enumerate() {
        if label.name.trim().is_empty() {
            return Err(TaxonomyFault::EmptyLabelName(index + 1));
        }
        if label.name == OTHER {
            return Err(TaxonomyFault::ReservedName);
        }
        if label.words.is_empty() {
            return Err(TaxonomyFault::NoWords(label.name.clone()));
        }
        for word in &label.words {
            if word.trim().is_empty() {
                return Err(TaxonomyFault::EmptyWord(label.name.clone()));
            }
            if let Some(first) = words.insert(word, &label.name) {
                return Err(TaxonomyFault::DuplicateWord {
                    word: word.clone(),
                    first: first.to_owned(),
                    second: label.name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Codes and names share one space, so that a data file may use either.
fn check_codes(labels: &[Label]) -> Result<HashMap<String, usize>, TaxonomyFault> {
    let mut codes = HashMap::new();
    for (index, label) in labels.iter().enumerate() {
        if codes.insert(label.name.clone(), index).is_some() {
            return Err(TaxonomyFault::DuplicateName(label.name.clone()));
        }
    }
    for (index, label) in labels.iter().enumerate() {
        // A label may repeat its own name as a code; every other repetition is a mistake.
        for code in label.codes.iter().filter(|code| **code != label.name) {
            if let Some(first) = codes.insert(code.clone(), index) {
                let first = labels.get(first).map(|label| label.name.clone());
                return Err(TaxonomyFault::DuplicateCode {
                    code: code.clone(),
                    first: first.unwrap_or_default(),
                    second: label.name.clone(),
                });
            }
        }
    }
    Ok(codes)
}

#[cfg(test)]
mod tests;
