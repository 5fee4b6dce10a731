//! Prompt splicing: whatever a text holds, a row has exactly its own special tokens, at their places.

use std::path::Path;
use std::sync::Arc;

use tcbert_worker::score::VerbalizerPlan;
use tcbert_worker::taxonomy::Taxonomy;
use tcbert_worker::tokenize::PromptTokenizer;

use super::fuzz;

const WORDS: [&str; 24] = [
    "[MASK]",
    "[SEP]",
    "[CLS]",
    "[PAD]",
    "[UNK]",
    "[unused1]",
    "##财",
    "{label}",
    "下面是一则关于",
    "的新闻：",
    "\u{0}",
    "\u{feff}",
    "\u{200b}",
    "\u{fffd}",
    "\u{202e}",
    "é",
    "e\u{301}",
    "ß",
    "İ",
    "𠀀",
    "👨‍👩‍👧",
    "한국어",
    "ｆｕｌｌ",
    "\u{3000}",
];

/// Rows are as long as the model's shortest maximum here, so that texts get cut.
const MAX_TOKENS: usize = 64;

#[test]
fn texts_in_prompts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("models/compact/tokenizer.json");
    let tokenizer = Arc::new(PromptTokenizer::from_file(&file).unwrap());
    let special = tokenizer.special();
    let plans: Vec<_> = ["news", "csldcp"]
        .iter()
        .map(|name| {
            let taxonomy = Taxonomy::load(name, None).unwrap();
            VerbalizerPlan::new(&taxonomy, 0, &tokenizer, MAX_TOKENS)
                .unwrap()
                .0
        })
        .collect();
    fuzz("prompt", &WORDS, |input| {
        let text = String::from_utf8_lossy(input);
        let mut feature = String::new();
        for plan in &plans {
            let encoded = tokenizer.encode(&text, plan.text_limit());
            let short = tokenizer.encode("短", plan.text_limit());
            for id in &encoded.ids {
                assert!((*id as usize) < tokenizer.vocabulary_size());
                let is_special = [special.cls, special.sep, special.mask, special.pad].contains(id);
                assert!(!is_special, "a special token out of {text:?}");
            }
            for pass in plan.passes() {
                let rows = plan.input(pass, &[&encoded, &short]);
                assert!(rows.tokens <= MAX_TOKENS);
                assert_eq!(rows.input_ids.len(), 2 * rows.tokens);
                assert_eq!(rows.attention_mask.len(), 2 * rows.tokens);
                let row = |row: usize| &rows.input_ids[row * rows.tokens..(row + 1) * rows.tokens];
                for index in 0..2 {
                    let ids = row(index);
                    let at = |id: u32| -> Vec<i64> {
                        let found = ids
                            .iter()
                            .enumerate()
                            .filter(|(_, other)| **other == i64::from(id));
                        found.map(|(position, _)| position as i64).collect()
                    };
                    let masks = &rows.mask_positions[index * rows.masks..(index + 1) * rows.masks];
                    assert_eq!(
                        at(special.mask),
                        masks,
                        "the masks of the prompt and no other"
                    );
                    assert_eq!(at(special.cls), [0]);
                    let mask = &rows.attention_mask[index * rows.tokens..(index + 1) * rows.tokens];
                    let real: i64 = mask.iter().sum();
                    assert_eq!(
                        at(special.sep),
                        [real - 1],
                        "one separator, at the end of the text"
                    );
                    assert!(at(special.pad).iter().all(|position| *position >= real));
                }
                // The prompt and its masks are never cut or shifted by a text.
                assert_eq!(
                    rows.mask_positions[..rows.masks],
                    rows.mask_positions[rows.masks..]
                );
                let prompt = pass.mask_positions.last().copied().unwrap_or_default() as usize;
                assert_eq!(row(0)[..=prompt], row(1)[..=prompt]);
            }
            feature += &format!(
                "{} {} {} ",
                encoded.ids.len().min(24),
                encoded.truncated,
                encoded.unknown_tokens.min(3)
            );
        }
        feature
    });
}
