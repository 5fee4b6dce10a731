//! What a document gets does not depend on the company it is in: alone, in any batch, padded or not.

use tcbert_worker::assemble::Engine;
use tcbert_worker::model::{Bundle, Model, ModelSettings, OnnxModel, PassInput};
use tcbert_worker::score::Tagging;
use tcbert_worker::settings::{Origins, Settings};
use tcbert_worker::tokenize::EncodedText;

const SAMPLES: &str = include_str!("../../samples/news.jsonl");

/// Each row of int8 has its own scale; the order of the sums before it may still move a value over a rounding step.
const INT8_SAME_LABEL: f64 = 0.99;
const INT8_COSINE: f64 = 0.99;
/// fp32 differs only in the order of its sums.
const FP32_LOG_PROBABILITY: f32 = 1e-4;

fn texts() -> Vec<String> {
    let field = |value: &serde_json::Value, key: &str| value[key].as_str().unwrap_or("").to_owned();
    SAMPLES
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|value| format!("{}\n{}", field(&value, "title"), field(&value, "text")))
        .collect()
}

fn engine() -> Engine {
    let variables = [
        ("TCBERT__MODEL__SESSIONS", "1"),
        ("TCBERT__MODEL__THREADS", "1"),
    ];
    let variables = variables.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let settings = Settings::load(&Origins {
        file: None,
        variables: variables.into(),
        ..Origins::default()
    })
    .unwrap();
    Engine::load(&settings).unwrap()
}

/// Tags texts in batches of `rows`, longest first, and gives the taggings in the order of the texts.
fn tag(engine: &mut Engine, encoded: &[EncodedText], rows: usize) -> Vec<Tagging> {
    let mut order: Vec<usize> = (0..encoded.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(encoded[*at].ids.len()));
    let (tagger, models) = engine.parts();
    let mut taggings: Vec<Option<Tagging>> = vec![None; encoded.len()];
    for batch in order.chunks(rows) {
        let texts: Vec<_> = batch.iter().map(|at| &encoded[*at]).collect();
        let tagged = tagger.tag(models[0].as_mut(), &texts).unwrap();
        for (at, tagging) in batch.iter().zip(tagged) {
            taggings[*at] = Some(tagging.unwrap());
        }
    }
    taggings.into_iter().map(Option::unwrap).collect()
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

#[test]
fn the_compact_model_answers_alike_in_any_batch() {
    let mut engine = engine();
    let texts = texts();
    let encoded: Vec<_> = texts
        .iter()
        .map(|text| engine.tagger().encode(text))
        .collect();
    let alone = tag(&mut engine, &encoded, 1);
    for rows in [7, 32] {
        let together = tag(&mut engine, &encoded, rows);
        let pairs = || alone.iter().zip(&together);
        let same = pairs()
            .filter(|(one, other)| one.topic == other.topic)
            .count();
        let share = same as f64 / alone.len() as f64;
        let worst = pairs()
            .map(|(one, other)| cosine(&one.embedding, &other.embedding))
            .fold(1.0, f64::min);
        println!("batches of {rows}: {share:.4} keep their label, smallest cosine {worst:.5}");
        assert!(
            share >= INT8_SAME_LABEL,
            "{share} of the labels are the same in batches of {rows}"
        );
        assert!(
            worst >= INT8_COSINE,
            "the cosine falls to {worst} in batches of {rows}"
        );
    }
}

/// Rows of [CLS] [MASK] [MASK] text [SEP], padded to the longest.
fn pass(lengths: &[usize]) -> PassInput {
    let tokens = lengths.iter().max().unwrap() + 4;
    let mut input = PassInput {
        batch: lengths.len(),
        tokens,
        masks: 2,
        label_token_ids: (0..50).collect(),
        ..PassInput::default()
    };
    for length in lengths {
        let end = length + 3;
        // Any tokens do: the small model is random.
        input.input_ids.extend((0..tokens).map(|at| {
            if at > end {
                0
            } else {
                (7 * at % 60) as i64 + 5
            }
        }));
        input
            .attention_mask
            .extend((0..tokens).map(|at| i64::from(at <= end)));
        input.mask_positions.extend([1, 2]);
    }
    input
}

#[test]
fn an_fp32_model_gives_the_same_numbers_in_any_batch() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/tiny");
    let bundle = Bundle::open(std::path::Path::new(folder)).unwrap();
    let settings = ModelSettings {
        sessions: 1,
        threads: 1,
        ..ModelSettings::default()
    };
    let mut model = OnnxModel::load_all(&bundle, &settings).unwrap().remove(0);
    let lengths = [3, 20, 9, 14, 1];
    let together = model.run(&pass(&lengths)).unwrap();
    let width = together.label_log_probs.len() / lengths.len();
    for (row, length) in lengths.iter().enumerate() {
        let alone = model.run(&pass(&[*length])).unwrap();
        let inside = &together.label_log_probs[row * width..(row + 1) * width];
        let worst = alone
            .label_log_probs
            .iter()
            .zip(inside)
            .map(|(one, other)| (one - other).abs())
            .fold(0.0, f32::max);
        assert!(
            worst <= FP32_LOG_PROBABILITY,
            "row {row} differs by {worst}"
        );
    }
}
