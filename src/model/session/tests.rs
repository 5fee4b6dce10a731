//! Sessions loaded from the bundle in the tree: what they answer, alone and beside each other, and what they refuse.

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
fn a_graph_that_cannot_be_loaded_is_not_blamed_on_the_folder_of_prepared_weights() {
    let copy = tempfile::tempdir().unwrap();
    let bundle = altered_bundle(copy.path(), "hidden_size", "hidden_size");
    fs::write(bundle.graph_path(Device::Cpu), "no graph").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = ModelSettings {
        prepared_weights: folder.path().display().to_string(),
        ..settings()
    };
    let error = OnnxModel::load_all(&bundle, &settings).unwrap_err();
    assert!(matches!(error, ModelError::Load { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
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
