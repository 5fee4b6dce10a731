//! The plan of passes under test.

use super::*;
use crate::tokenize::tests::test_tokenizer;

fn taxonomy(labels: &str) -> Taxonomy {
    let text = format!("name = \"test\"\nprompts = [\"关于{{label}}的：\"]\n{labels}");
    Taxonomy::parse(&text, "test").unwrap()
}

fn label(name: &str, words: &[&str]) -> String {
    format!("[[labels]]\nname = \"{name}\"\nwords = {words:?}\n")
}

fn plan(
    labels: &[(&str, &[&str])],
    max_tokens: usize,
) -> Result<(VerbalizerPlan, PlanReport), PlanError> {
    let labels: String = labels
        .iter()
        .map(|(name, words)| label(name, words))
        .collect();
    VerbalizerPlan::new(&taxonomy(&labels), 0, &test_tokenizer(), max_tokens)
}

fn ids(text: &str) -> Vec<i64> {
    let ids = test_tokenizer().encode(text, 64).ids;
    ids.into_iter().map(i64::from).collect()
}

#[test]
fn words_of_one_length_share_a_pass() {
    let (plan, report) = plan(&[("甲", &["体育", "足球股"]), ("乙", &["育体", "股"])], 64).unwrap();
    let masks: Vec<usize> = plan.passes().iter().map(|pass| pass.masks).collect();
    assert_eq!(masks, [1, 2, 3]);
    assert_eq!(report.passes, 3);
    assert_eq!(report.words_by_tokens[&2], ["体育", "育体"]);
    let two = &plan.passes()[plan.embedding_pass()];
    assert_eq!(
        two.label_token_ids,
        ids("体育"),
        "each token is asked for once"
    );
    assert_eq!(
        two.words[0],
        PassWord {
            label: 0,
            columns: vec![0, 1]
        }
    );
    assert_eq!(
        two.words[1],
        PassWord {
            label: 1,
            columns: vec![1, 0]
        }
    );
    assert_eq!(two.mask_positions, [3, 4]);
    let special = test_tokenizer().special();
    let mut head = vec![i64::from(special.cls)];
    head.extend(ids("关于"));
    head.extend([i64::from(special.mask); 2]);
    head.extend(ids("的："));
    assert_eq!(
        two.head.iter().map(|id| i64::from(*id)).collect::<Vec<_>>(),
        head
    );
}

#[test]
fn the_pass_with_two_masks_is_always_run() {
    let (plan, _) = plan(&[("甲", &["体"]), ("乙", &["股"])], 64).unwrap();
    let masks: Vec<usize> = plan.passes().iter().map(|pass| pass.masks).collect();
    assert_eq!(masks, [1, 2]);
    let two = &plan.passes()[plan.embedding_pass()];
    assert_eq!(
        (two.masks, two.words.len(), two.label_token_ids.len()),
        (2, 0, 1)
    );
}

#[test]
fn a_row_is_padded_on_the_right_and_cut_within_the_text() {
    let (plan, _) = plan(&[("甲", &["体", "体育股票"])], 18).unwrap();
    let tokenizer = test_tokenizer();
    let short = tokenizer.encode("新闻", 64);
    let long = tokenizer.encode(&"新".repeat(30), plan.text_limit());
    let head = 5;
    for pass in plan.passes() {
        let input = plan.input(pass, &[&short, &long]);
        assert_eq!(
            (input.batch, input.tokens, input.masks),
            (2, 18, pass.masks)
        );
        let (first, second) = input.input_ids.split_at(18);
        let end = head + pass.masks + 2;
        assert_eq!(first[end], i64::from(tokenizer.special().sep));
        assert!(
            first[end + 1..]
                .iter()
                .all(|id| *id == i64::from(tokenizer.special().pad))
        );
        assert_eq!(second[17], i64::from(tokenizer.special().sep));
        assert_eq!(
            second[..head + pass.masks],
            first[..head + pass.masks],
            "the prompt is whole"
        );
        let real: Vec<i64> = input
            .attention_mask
            .chunks(18)
            .map(|row| row.iter().sum())
            .collect();
        assert_eq!(real, [end as i64 + 1, 18]);
        assert!(
            input.attention_mask[..end + 1]
                .iter()
                .all(|mask| *mask == 1)
        );
        assert_eq!(
            input.mask_positions,
            [pass.mask_positions.clone(), pass.mask_positions.clone()].concat()
        );
    }
    assert!(plan.truncates(&long) && !plan.truncates(&short));
    assert_eq!(
        plan.row_tokens(&short),
        head + 4 + 2 + 1,
        "as long as in the longest pass"
    );
    // What fits beside one mask is cut beside two; what fits beside two is not marked, though
    // it is cut beside four.
    let one = tokenizer.encode(&"新".repeat(plan.text_limit()), plan.text_limit());
    assert!(!one.truncated && plan.truncates(&one));
    let two = tokenizer.encode(&"新".repeat(plan.text_limit() - 1), plan.text_limit());
    assert!(!plan.truncates(&two));
}

#[test]
fn tells_words_that_are_unknown_or_the_same() {
    let labels = [
        label("甲", &["体育", "龘"]),
        label("乙", &["股票", "股 票"]),
    ]
    .concat();
    let (plan, report) = VerbalizerPlan::new(&taxonomy(&labels), 0, &test_tokenizer(), 64).unwrap();
    assert_eq!(plan.passes()[0].words.len(), 2, "both left out");
    assert_eq!(report.out_of_vocabulary[0].word, "龘");
    assert_eq!(report.out_of_vocabulary[0].tokens, ["[UNK]"]);
    assert_eq!(report.collisions[0].second.1, "股 票");

    let unknown = super::tests::plan(&[("甲", &["体"]), ("乙", &["龘", "龘体"])], 64).unwrap_err();
    assert!(matches!(&unknown, PlanError::UnknownLabel { label, .. } if label == "乙"));
    assert!(unknown.to_string().contains("龘, 龘体"));
    let same = super::tests::plan(&[("甲", &["股票"]), ("乙", &["股 票"])], 64).unwrap_err();
    assert!(matches!(same, PlanError::Collision { .. }));
    let labels = [label("甲", &["股票"]), label("乙", &["股 票", "龘"])].concat();
    let report = VerbalizerPlan::report(&taxonomy(&labels), &test_tokenizer());
    assert_eq!(
        (report.collisions.len(), report.out_of_vocabulary.len()),
        (1, 1)
    );
}

#[test]
fn refuses_what_leaves_no_room() {
    let long = "体".repeat(MAX_WORD_TOKENS + 1);
    assert!(matches!(
        plan(&[("甲", &[&long])], 64),
        Err(PlanError::LongWord { tokens: 17, .. })
    ));
    assert!(matches!(
        plan(&[("甲", &["体育"])], 15),
        Err(PlanError::NoRoom { head: 8, .. })
    ));
    assert!(plan(&[("甲", &["体育"])], 16).is_ok());
    let taxonomy = taxonomy(&label("甲", &["体育"]));
    let prompt = VerbalizerPlan::new(&taxonomy, 1, &test_tokenizer(), 64).unwrap_err();
    assert!(matches!(
        prompt,
        PlanError::NoSuchPrompt {
            prompts: 1,
            index: 1,
            ..
        }
    ));
}
