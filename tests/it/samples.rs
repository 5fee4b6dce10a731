//! The demo's documents show what a model has learned only while no model has learned them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Larger files hold weights, not text.
const MAX_FILE_BYTES: u64 = 64 << 20;

fn samples() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/news.jsonl");
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.metadata().unwrap().len() <= MAX_FILE_BYTES {
            found.push(path);
        }
    }
}

/// What models are trained on: text that the training tools hold, and the folder of data sets that
/// they read (`TCBERT_DATA`, where it is set).
fn training_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    files_below(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tools"),
        &mut files,
    );
    if let Some(data) = std::env::var_os("TCBERT_DATA") {
        let before = files.len();
        files_below(Path::new(&data), &mut files);
        assert!(
            files.len() > before,
            "TCBERT_DATA names a folder without files"
        );
    }
    files
}

#[test]
fn no_training_file_holds_a_sample() {
    let samples = samples();
    let mut texts = HashSet::new();
    for sample in &samples {
        for field in ["title", "text"] {
            texts.insert(sample[field].as_str().unwrap());
        }
    }
    assert!(texts.len() >= 600, "titles and bodies are distinct");
    for file in training_files() {
        let Ok(content) = fs::read_to_string(&file) else {
            continue;
        };
        for text in &texts {
            assert!(!content.contains(text), "{} holds {text}", file.display());
        }
    }
}
