//! The tagger under test.

use super::*;
use crate::model::twin::TwinModel;
use crate::score::whiten::WhiteningFit;
use crate::tokenize::tests::test_tokenizer;

const TAXONOMY: &str = r#"
    name = "test"
    prompts = ["下面是一则关于{label}的新闻：", "关于{label}："]
    [[labels]]
    name = "体育"
    words = ["体育", "足球"]
    [[labels]]
    name = "财经"
    words = ["财经", "股"]
    [[labels]]
    name = "科技"
    words = ["科技"]
"#;

fn identity() -> ModelIdentity {
    ModelIdentity {
        fingerprint: "twin".to_owned(),
        max_tokens: 64,
        hidden_size: 8,
    }
}

fn tagger_of(settings: &TaggingSettings) -> Result<Tagger, TaggerError> {
    let taxonomy = Taxonomy::parse(TAXONOMY, "test").unwrap();
    Tagger::with_taxonomy(taxonomy, settings, Arc::new(test_tokenizer()), &identity())
}

fn tagger() -> Tagger {
    tagger_of(&TaggingSettings::default()).unwrap()
}

fn tag(tagger: &Tagger, texts: &[&str]) -> Vec<Tagging> {
    let encoded: Vec<EncodedText> = texts.iter().map(|text| tagger.encode(text)).collect();
    let encoded: Vec<&EncodedText> = encoded.iter().collect();
    let taggings = tagger.tag(&mut TwinModel::new(8), &encoded).unwrap();
    taggings.into_iter().map(Result::unwrap).collect()
}

#[test]
fn tags_by_the_words_of_labels_in_the_order_of_the_texts() {
    let texts = ["足球，足球", "ab股", "新科技", "财经财经财经"];
    let taggings = tag(&tagger(), &texts);
    let topics: Vec<&str> = taggings
        .iter()
        .map(|tagging| tagging.topic.as_str())
        .collect();
    assert_eq!(topics, ["体育", "财经", "科技", "财经"]);
    for tagging in &taggings {
        assert_eq!(tagging.topics.len(), 3);
        assert_eq!(tagging.topics[0].label, tagging.topic);
        assert_eq!(tagging.topics[0].probability, tagging.probability);
        let sum: f32 = tagging.topics.iter().map(|topic| topic.probability).sum();
        assert!((sum - 1.0).abs() < 1e-5);
        let squares: f32 = tagging.embedding.iter().map(|value| value * value).sum();
        assert!((squares - 1.0).abs() < 1e-5);
    }
}

#[test]
fn an_answer_does_not_depend_on_the_batch() {
    let tagger = tagger();
    let texts = ["足球", "", "股票".repeat(40).leak(), "龘科技ab[MASK]"];
    let together = tag(&tagger, &texts);
    for (text, expected) in texts.iter().zip(&together) {
        assert_eq!(&tag(&tagger, &[text])[0], expected, "{text}");
    }
    let flags: Vec<bool> = together.iter().map(|tagging| tagging.truncated).collect();
    assert_eq!(flags, [false, false, true, false]);
    assert_eq!(together[3].unknown_tokens, 1);
    assert_eq!(tag(&tagger, &[]), []);
}

#[test]
fn a_literal_mask_in_a_text_is_neither_shifted_nor_a_further_mask() {
    let tagger = tagger();
    let text = tagger.encode("新[MASK]闻[SEP][CLS][PAD]");
    for (pass, input) in tagger.plan().passes().iter().zip(tagger.inputs(&[&text])) {
        let special = test_tokenizer().special();
        let at = |wanted: u32| {
            let ids = input.input_ids.iter().enumerate();
            ids.filter(|(_, id)| **id == i64::from(wanted))
                .map(|(at, _)| at as i64)
                .collect::<Vec<_>>()
        };
        assert_eq!(at(special.mask), pass.mask_positions);
        assert_eq!(input.mask_positions, pass.mask_positions);
        assert_eq!(at(special.cls), [0]);
        assert_eq!(at(special.sep), [input.tokens as i64 - 1]);
        assert_eq!(at(special.pad), [0i64; 0]);
    }
}

proptest::proptest! {
    #[test]
    fn any_text_gives_rows_of_one_shape(
        texts in proptest::collection::vec("(\\PC|[\\x00-\\x1f]|\\[MASK\\]|\\[SEP\\]|[一-龥]){0,80}", 1..6)
    ) {
        let tagger = TAGGER.with(Arc::clone);
        let special = tagger.tokenizer.special();
        let encoded: Vec<EncodedText> = texts.iter().map(|text| tagger.encode(text)).collect();
        let encoded: Vec<&EncodedText> = encoded.iter().collect();
        for (pass, input) in tagger.plan().passes().iter().zip(tagger.inputs(&encoded)) {
            let rows = input.input_ids.chunks(input.tokens);
            for (row, real) in rows.zip(input.attention_mask.chunks(input.tokens)) {
                let real = real.iter().filter(|mask| **mask == 1).count();
                let at = |wanted: u32| {
                    let ids = (0i64..).zip(row);
                    let found = ids.filter(|(_, id)| **id == i64::from(wanted));
                    found.map(|(at, _)| at).collect::<Vec<_>>()
                };
                proptest::prop_assert!(real <= 64);
                proptest::prop_assert_eq!(at(special.cls), [0]);
                proptest::prop_assert_eq!(at(special.mask), pass.mask_positions.clone());
                proptest::prop_assert_eq!(at(special.sep), [real as i64 - 1]);
                proptest::prop_assert_eq!(at(special.pad).len(), input.tokens - real);
            }
        }
        let taggings = tagger.tag(&mut TwinModel::new(8), &encoded).unwrap();
        proptest::prop_assert_eq!(taggings.len(), texts.len());
        proptest::prop_assert!(taggings.iter().all(Result::is_ok));
    }
}

thread_local! {
    static TAGGER: Arc<Tagger> = Arc::new(tagger());
}

#[test]
fn thresholds_decide_the_topic_and_what_is_named_beside_it() {
    let settings = TaggingSettings {
        threshold: Some(0.5),
        topics_threshold: 0.4,
        top_k: 2,
        ..TaggingSettings::default()
    };
    let tagger = tagger_of(&settings).unwrap();
    let taggings = tag(&tagger, &["ab", "体育", "体育科技"]);
    assert_eq!(taggings[0].topic, OTHER);
    assert!(taggings[0].probability < 0.5 && taggings[0].probability > 0.3);
    assert_eq!(taggings[0].topics, []);
    assert_eq!(
        (taggings[1].topic.as_str(), taggings[1].topics.len()),
        ("体育", 1)
    );
    assert_eq!(
        taggings[2].topics.len(),
        2,
        "two topics above the second threshold"
    );
    assert!(
        taggings
            .iter()
            .flat_map(|tagging| &tagging.topics)
            .all(|topic| topic.label != OTHER)
    );
}

#[test]
fn calibration_subtracts_the_score_of_the_empty_document() {
    let settings = TaggingSettings {
        calibration: Some(true),
        // Only the second prompt's rows hold neither 新 nor 闻.
        prompt: 1,
        ..TaggingSettings::default()
    };
    let mut tagger = tagger_of(&settings).unwrap();
    let text = tagger.encode("体育");
    let too_early = tagger.tag(&mut TwinModel::new(8), &[&text]);
    assert!(matches!(too_early, Err(TaggerError::NotCalibrated)));
    tagger.calibrate(&mut TwinModel::new(8)).unwrap();
    let empty = &tag(&tagger, &[""])[0];
    for topic in &empty.topics {
        assert!(
            (topic.probability - 1.0 / 3.0).abs() < 1e-6,
            "nothing is known of nothing"
        );
    }
    assert_eq!(tag(&tagger, &["体育"])[0].topic, "体育");
}

/// Gives NaN for the rows that it is told.
struct Poisoned {
    twin: TwinModel,
    row: usize,
    embedding: bool,
}

impl Model for Poisoned {
    fn hidden_size(&self) -> usize {
        self.twin.hidden_size()
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        let mut output = self.twin.run(input)?;
        if self.embedding {
            output.sentence_embedding[self.row * 8] = f32::INFINITY;
        } else {
            let width = input.masks * input.label_token_ids.len();
            output.label_log_probs[self.row * width] = f32::NAN;
        }
        Ok(output)
    }
}

#[test]
fn a_row_without_numbers_leaves_the_others_sound() {
    let tagger = tagger();
    let texts = ["体育", "财经", "科技"].map(|text| tagger.encode(text));
    for embedding in [false, true] {
        let mut model = Poisoned {
            twin: TwinModel::new(8),
            row: 1,
            embedding,
        };
        let taggings = tagger.tag(&mut model, &texts.each_ref()).unwrap();
        assert!(taggings[0].is_ok() && taggings[2].is_ok());
        assert_eq!(taggings[1], Err(NotFinite));
    }
    let wrong_width = tagger.tag(&mut TwinModel::new(9), &[&texts[0]]);
    assert!(matches!(
        wrong_width,
        Err(TaggerError::Shape {
            found: 9,
            wanted: 8,
            ..
        })
    ));
}

#[test]
fn fingerprints_follow_what_they_stand_for() {
    let of = |settings: TaggingSettings| tagger_of(&settings).unwrap().fingerprints().clone();
    let plain = of(TaggingSettings::default());
    assert_eq!(plain.embedding.len(), 32);
    let top_k = TaggingSettings {
        top_k: 1,
        ..TaggingSettings::default()
    };
    assert_eq!(of(top_k), plain, "how much is told changes no meaning");
    let calibrated = of(TaggingSettings {
        calibration: Some(true),
        ..TaggingSettings::default()
    });
    assert_eq!(calibrated.embedding, plain.embedding);
    assert_ne!(calibrated.labelling, plain.labelling);
    let prompted = of(TaggingSettings {
        prompt: 1,
        ..TaggingSettings::default()
    });
    assert_ne!(prompted.embedding, plain.embedding);
    assert_ne!(prompted.labelling, plain.labelling);
}

#[test]
fn a_whitening_is_applied_to_the_embeddings_that_it_was_fitted_on() {
    let plain = tagger();
    let mut fit = WhiteningFit::new(8).unwrap();
    for tagging in tag(
        &plain,
        &["体育", "足球", "股票", "新闻科技", "ab", "2018", "c体"],
    ) {
        fit.add(&tagging.embedding).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.bin");
    let whitening = fit.finish(0.1, &plain.fingerprints().embedding).unwrap();
    whitening.save(&path).unwrap();
    let settings = TaggingSettings {
        whitening: path.display().to_string(),
        ..TaggingSettings::default()
    };
    let whitened = tagger_of(&settings).unwrap();
    assert_ne!(whitened.fingerprints(), plain.fingerprints());
    let mut expected = tag(&plain, &["体育"]).remove(0).embedding;
    whitening.apply(&mut expected);
    assert_eq!(tag(&whitened, &["体育"])[0].embedding, expected);
    let embedded = whitened
        .embed(&mut TwinModel::new(8), &[&whitened.encode("体育")])
        .unwrap();
    assert_eq!(
        embedded,
        [Ok(expected)],
        "a query is embedded as a document is"
    );

    let other = tagger_of(&TaggingSettings {
        prompt: 1,
        ..settings
    });
    let message = other.unwrap_err().to_string();
    assert!(message.contains("whiten fit"), "{message}");
}

#[test]
fn more_tokens_than_the_model_takes_are_refused() {
    let settings = TaggingSettings {
        max_tokens: 65,
        ..TaggingSettings::default()
    };
    assert!(matches!(
        tagger_of(&settings),
        Err(TaggerError::TooManyTokens { .. })
    ));
    let settings = TaggingSettings {
        max_tokens: 32,
        ..TaggingSettings::default()
    };
    let tagger = tagger_of(&settings).unwrap();
    let long = tagger.encode(&"体".repeat(100));
    assert_eq!(tagger.row_tokens(&long), 32);
}
