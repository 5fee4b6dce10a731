//! Labelled data in the formats that the data sets come in. Pure but for reading the file.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::taxonomy::Taxonomy;

/// Fields that hold the text, in the order in which they are looked for.
const TEXT_FIELDS: [&str; 3] = ["sentence", "content", "text"];

/// Fields that may hold the label; the first whose value the taxonomy knows counts.
const LABEL_FIELDS: [&str; 5] = ["label", "label_desc", "label_des", "topic", "category"];

/// A text and the index of its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Example {
    pub(super) text: String,
    pub(super) label: usize,
}

/// Why a data file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DataError {
    #[error("the data file {} cannot be read: {reason}", file.display())]
    Unreadable { file: PathBuf, reason: String },
    #[error("{} line {line}: {reason}", file.display())]
    Row {
        file: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("the data file {} holds no documents", .0.display())]
    Empty(PathBuf),
}

/// Reads all examples of a file, in their order.
pub(super) fn read_examples(file: &Path, taxonomy: &Taxonomy) -> Result<Vec<Example>, DataError> {
    let unreadable = |reason: String| DataError::Unreadable {
        file: file.to_owned(),
        reason,
    };
    let bytes = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| unreadable(format!("it is not UTF-8 ({error})")))?;
    let text = text.trim_start_matches('\u{feff}');
    let row = |line: usize, reason: String| DataError::Row {
        file: file.to_owned(),
        line,
        reason,
    };

    let examples: Vec<Example> = if text.trim_start().starts_with('[') {
        let objects: Vec<Map<String, Value>> = serde_json::from_str(text)
            .map_err(|error| unreadable(format!("it is no JSON array of objects ({error})")))?;
        objects
            .iter()
            .enumerate()
            .map(|(index, object)| {
                from_object(object, taxonomy).map_err(|reason| row(index + 1, reason))
            })
            .collect::<Result<_, _>>()?
    } else {
        text.lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| from_line(line, taxonomy).map_err(|reason| row(index + 1, reason)))
            .collect::<Result<_, _>>()?
    };
    if examples.is_empty() {
        Err(DataError::Empty(file.to_owned()))
    } else {
        Ok(examples)
    }
}

fn from_line(line: &str, taxonomy: &Taxonomy) -> Result<Example, String> {
    if line.trim_start().starts_with('{') {
        let object =
            serde_json::from_str(line).map_err(|error| format!("no JSON object: {error}"))?;
        return from_object(&object, taxonomy);
    }
    let (text, label) = line
        .rsplit_once('\t')
        .ok_or("neither a JSON object nor a text, a tab and a label")?;
    let label = taxonomy
        .label_of_code(label.trim())
        .ok_or_else(|| unknown(&[label.trim().to_owned()], taxonomy))?;
    Ok(Example {
        text: text.to_owned(),
        label,
    })
}

fn from_object(object: &Map<String, Value>, taxonomy: &Taxonomy) -> Result<Example, String> {
    let field = |name: &str| object.get(name).and_then(Value::as_str);
    let body = TEXT_FIELDS.iter().find_map(|name| field(name));
    let text = match (field("title"), body) {
        (Some(title), Some(body)) => format!("{title}\n{body}"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => {
            return Err(format!(
                "none of the fields title, {} holds a text",
                TEXT_FIELDS.join(", ")
            ));
        }
    };
    let candidates: Vec<String> = LABEL_FIELDS
        .iter()
        .filter_map(|name| match object.get(*name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
        .collect();
    if candidates.is_empty() {
        return Err(format!(
            "none of the fields {} holds a label",
            LABEL_FIELDS.join(", ")
        ));
    }
    let label = candidates
        .iter()
        .find_map(|candidate| taxonomy.label_of_code(candidate))
        .ok_or_else(|| unknown(&candidates, taxonomy))?;
    Ok(Example { text, label })
}

fn unknown(candidates: &[String], taxonomy: &Taxonomy) -> String {
    format!(
        "the taxonomy {:?} knows no label by the name or code {}; is it the right taxonomy for this file?",
        taxonomy.name,
        candidates.join(" or ")
    )
}
