//! A deterministic mutation fuzzer over everything that strangers write: records, events, texts,
//! configuration, dead-letter headers, files. Owns mutation, feedback and time; the modules below
//! say what has to hold.
//!
//! Seeds stand in `tests/corpus/TARGET/`. Each target runs for `TCBERT_FUZZ_SECONDS` (5 unless set) from
//! the seed `TCBERT_FUZZ_SEED` (fixed unless set). An input that breaks a rule is written to
//! `target/fuzz/` and named; moved into the corpus it is tried first from then on.

mod dead_letters;
mod decoding;
mod files;
mod prompts;
mod settings;
mod worker;

use std::any::Any;
use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds of one target unless `TCBERT_FUZZ_SECONDS` says otherwise.
const DEFAULT_SECONDS: f64 = 5.0;

/// Inputs kept because they behaved in a new way.
const MOST_KEPT: usize = 2_000;

/// Longest mutated input in bytes.
const LONGEST_INPUT: usize = 16 << 10;

/// What one input did, for feedback: an input with a new feature is kept and mutated further.
pub(crate) type Feature = String;

/// Runs `check` over the corpus of `target` and its mutations until the time is over. `words` are
/// spliced in: the syntax of what is fuzzed.
pub(crate) fn fuzz(target: &str, words: &[&str], mut check: impl FnMut(&[u8]) -> Feature) {
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "no seeds for {target}");
    let mut random = Random(from_environment("TCBERT_FUZZ_SEED").unwrap_or(1.0) as u64);
    let seconds = from_environment("TCBERT_FUZZ_SECONDS").unwrap_or(DEFAULT_SECONDS);
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut features = HashSet::new();
    let mut kept = Vec::new();
    let mut runs = 0_u64;
    for input in corpus {
        runs += 1;
        features.insert(try_input(target, &input, &mut check));
        kept.push(input);
    }
    while Instant::now() < end {
        let input = mutate(&kept, words, &mut random);
        runs += 1;
        let feature = try_input(target, &input, &mut check);
        if kept.len() < MOST_KEPT && features.insert(feature) {
            kept.push(input);
        }
    }
    eprintln!(
        "{target}: {runs} inputs, {} behaviours, no finding",
        features.len()
    );
    assert!(features.len() > 1, "the seeds of {target} all do the same");
}

fn try_input(target: &str, input: &[u8], check: &mut impl FnMut(&[u8]) -> Feature) -> Feature {
    match catch_unwind(AssertUnwindSafe(|| check(input))) {
        Ok(feature) => feature,
        Err(panic) => {
            let path = keep_finding(target, input);
            panic!(
                "{target}: {} with the input {}",
                message(&*panic),
                path.display()
            );
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

fn keep_finding(target: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = folder.join(format!("{target}-{hash:016x}"));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, input))
        .unwrap();
    path
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn from_environment(name: &str) -> Option<f64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
    )
}

/// SplitMix64: small, and the same on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn mutate(kept: &[Vec<u8>], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut input = random.choose(kept).clone();
    for _ in 0..=random.below(5) {
        let at = random.below(input.len() + 1);
        let end = (at + 1 + random.below(16)).min(input.len());
        match random.below(9) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => {
                input[at] = *random.choose(&[0, 0x0a, 0x22, 0x5c, 0x7f, 0x80, 0xc3, 0xe6, 0xff]);
            }
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let bytes: Vec<u8> = (0..random.below(8)).map(|_| random.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            5 => {
                let part = input[at..end].to_vec();
                let times = 1 + random.below(40);
                input.splice(at..at, part.repeat(times));
            }
            6 => {
                let other = random.choose(kept);
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                let word = random.choose(words).as_bytes();
                let replaced = if random.below(2) == 0 {
                    at..at
                } else {
                    at..end
                };
                input.splice(replaced, word.iter().copied());
            }
        }
    }
    input.truncate(LONGEST_INPUT);
    input
}

#[test]
fn the_fuzzer_finds_what_is_hidden_behind_two_steps() {
    let found = catch_unwind(|| {
        fuzz("decode", &["needle", "hay"], |input| {
            let text = String::from_utf8_lossy(input);
            assert!(
                !(text.contains("hayneedle") && text.contains("needlehay")),
                "found"
            );
            format!("{}{}", text.contains("needle"), text.contains("hayneedle"))
        });
    });
    let message = message(&*found.unwrap_err());
    let path = message.rsplit(' ').next().unwrap();
    let input = fs::read(path).unwrap();
    assert!(String::from_utf8_lossy(&input).contains("hayneedle"));
    fs::remove_file(path).unwrap();
}
