//! What the text stages cost without a model: tokenising, planning batches, scoring.
//! `cargo bench --bench text`; needs the bundled model's tokenizer.

// What cannot be set up cannot be measured.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tcbert_worker::batch::{BatchItem, BatchPlanner, BatchSettings};
use tcbert_worker::model::PassOutput;
use tcbert_worker::score::{ModelIdentity, Tagger, TaggingSettings};
use tcbert_worker::tokenize::{EncodedText, PromptTokenizer};
use tokenizers::Tokenizer;

const DOCUMENTS: u64 = 1000;
const HIDDEN_SIZE: usize = 256;

/// Pseudo-random numbers from a fixed seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }
}

/// A headline of 15 to 30 characters: mostly Chinese, some numbers, Latin words and punctuation.
fn title(seeded: &mut Seeded) -> String {
    const OTHER: [&str; 8] = ["2018", "iPhone", "，", "：", "NBA", "5", "！", "“"];
    (0..15 + seeded.below(16))
        .map(|_| match seeded.below(12) {
            0 => OTHER[seeded.below(OTHER.len())].to_owned(),
            // The commonest 2,000 characters stand all over this block.
            _ => char::from_u32(0x4E00 + seeded.below(0x3000) as u32)
                .unwrap_or('一')
                .to_string(),
        })
        .collect()
}

fn titles() -> Vec<String> {
    let mut seeded = Seeded(1);
    (0..DOCUMENTS).map(|_| title(&mut seeded)).collect()
}

fn tokenizer_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/compact/tokenizer.json")
}

fn tagger(taxonomy: &str) -> Tagger {
    let tokenizer = PromptTokenizer::from_file(&tokenizer_path());
    let tokenizer = Arc::new(tokenizer.expect("the bundle's tokenizer"));
    let settings = TaggingSettings {
        taxonomy: taxonomy.to_owned(),
        ..TaggingSettings::default()
    };
    let model = ModelIdentity {
        fingerprint: "bench".to_owned(),
        max_tokens: 512,
        hidden_size: HIDDEN_SIZE,
    };
    Tagger::new(&settings, tokenizer, &model).expect("a taxonomy that goes with the bundle")
}

fn tokenise(criterion: &mut Criterion) {
    let tagger = tagger("news");
    let titles = titles();
    let article: String = titles.concat();
    let mut group = criterion.benchmark_group("tokenise");
    group.throughput(Throughput::Elements(DOCUMENTS));
    group.bench_function("titles", |bencher| {
        bencher.iter(|| {
            for title in &titles {
                black_box(tagger.encode(title));
            }
        });
    });
    // What it replaces: the library's own path, which also matches special tokens in the text.
    let library = Tokenizer::from_file(tokenizer_path()).expect("the bundle's tokenizer");
    group.bench_function("titles, by the library alone", |bencher| {
        bencher.iter(|| {
            for title in &titles {
                black_box(library.encode_fast(title.as_str(), false).map(drop)).ok();
            }
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("load", |bencher| {
        bencher.iter(|| black_box(PromptTokenizer::from_file(&tokenizer_path())));
    });
    group.bench_function("one article, cut at 512 tokens", |bencher| {
        bencher.iter(|| black_box(tagger.encode(&article)));
    });
    group.finish();
}

struct Item(usize, u64);

impl BatchItem for Item {
    fn tokens(&self) -> usize {
        self.0
    }

    fn key_hash(&self) -> u64 {
        self.1
    }
}

fn plan(criterion: &mut Criterion) {
    let mut seeded = Seeded(2);
    let lengths: Vec<usize> = (0..DOCUMENTS * 10)
        .map(|_| 20 + seeded.below(490))
        .collect();
    let mut group = criterion.benchmark_group("plan");
    group.throughput(Throughput::Elements(DOCUMENTS * 10));
    group.bench_function("mixed", |bencher| {
        bencher.iter(|| {
            let now = Instant::now();
            let mut planner = BatchPlanner::new(&BatchSettings::default());
            for (number, tokens) in lengths.iter().enumerate() {
                if planner.is_full() {
                    black_box(planner.next_batch(now, false));
                }
                let _ = planner.push(Item(*tokens, number as u64), now);
            }
            while let Some(batch) = planner.next_batch(now, true) {
                black_box(batch);
            }
        });
    });
    group.finish();
}

fn score(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("score");
    for taxonomy in ["news", "iflytek"] {
        let tagger = tagger(taxonomy);
        let texts: Vec<EncodedText> = titles().iter().map(|text| tagger.encode(text)).collect();
        let texts: Vec<&EncodedText> = texts.iter().take(64).collect();
        let mut seeded = Seeded(3);
        let mut values = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| -(seeded.below(1000) as f32) / 50.0 - 0.01)
                .collect()
        };
        let outputs = tagger.inputs(&texts).into_iter().map(|input| PassOutput {
            label_log_probs: values(input.batch * input.masks * input.label_token_ids.len()),
            sentence_embedding: values(input.batch * HIDDEN_SIZE),
        });
        let outputs: Vec<PassOutput> = outputs.collect();
        group.throughput(Throughput::Elements(texts.len() as u64));
        group.bench_function(format!("{taxonomy}, rows of 64"), |bencher| {
            bencher.iter(|| black_box(tagger.inputs(&texts)));
        });
        group.bench_function(
            format!("{taxonomy}, topics and embeddings of 64"),
            |bencher| {
                bencher.iter(|| black_box(tagger.score(&texts, &outputs)));
            },
        );
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = tokenise, plan, score
}
criterion_main!(benches);
