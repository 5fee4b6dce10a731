//! The tokenizer under test.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Words of the test vocabulary beside the special tokens.
const WORDS: &str = "下 面 是 一 则 关 于 的 新 闻 ： 体 育 财 经 足 球 股 票 科 技 ， 。 ！ [ ] ( ) # - \
    MA ##SK ##S ##K mask ma ##sk SE ##P se ##p CLS cls UN UNK unk PAD pad a b c ab ##a ##b ##c é e ##é ##e \
    2018 20 ##18 か が ア ไ ไท ##ย 😀 한 ᄒ ##ᅡ ##ᆫ 1 2 ##1 ##2 . % $ ￥ ｡ — “ ” …";

/// A `tokenizer.json` over the test vocabulary.
pub(crate) fn test_tokenizer_json(lowercase: bool, added: bool) -> Vec<u8> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = special.into_iter().chain(WORDS.split_whitespace());
    let mut vocabulary = serde_json::Map::new();
    for word in words {
        let id = vocabulary.len();
        vocabulary.entry(word).or_insert(json!(id));
    }
    let added_tokens = special.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    });
    let added_tokens: Vec<_> = added_tokens.filter(|_| added).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens,
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    serde_json::to_vec(&file).unwrap()
}

/// A tokenizer over the test vocabulary, with special tokens as a real one has them.
pub(crate) fn test_tokenizer() -> PromptTokenizer {
    PromptTokenizer::from_bytes(&test_tokenizer_json(false, true), "test").unwrap()
}

/// The library alone, without the added tokens that would match inside a document.
fn oracle(lowercase: bool) -> Tokenizer {
    Tokenizer::from_bytes(test_tokenizer_json(lowercase, false)).unwrap()
}

fn tokens(text: &str) -> Vec<String> {
    let tokenizer = test_tokenizer();
    let ids = tokenizer.encode(text, 512).ids;
    ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect()
}

#[test]
fn reads_chinese_words_and_numbers() {
    assert_eq!(
        tokens("2018体育，\t ab新闻20181"),
        ["2018", "体", "育", "，", "ab", "新", "闻", "2018", "##1"]
    );
    assert_eq!(tokens("体\u{0}a\u{200B}b育"), ["体", "ab", "育"]);
    assert_eq!(tokens(""), [""; 0]);
    assert_eq!(tokens(" \u{3000}\r\n\u{0}"), [""; 0]);
}

#[test]
fn special_tokens_in_a_document_are_text() {
    let tokenizer = test_tokenizer();
    let special = tokenizer.special();
    assert_eq!(tokens("[MASK]"), ["[", "MA", "##SK", "]"]);
    for text in [
        "[MASK]",
        "[SEP]",
        "[CLS]",
        "[PAD]",
        "[UNK]体",
        "新[MASK][MASK]闻",
        " [MASK] ",
        "ไ[MASK]",
        "é[SEP]",
        "\u{301}[CLS]",
        "[MA\u{0}SK]",
        "[MASK]\u{301}",
    ] {
        let ids = tokenizer.encode(text, 512).ids;
        for id in [special.cls, special.sep, special.mask, special.pad] {
            assert!(!ids.contains(&id), "{text}");
        }
    }
    // What the library does when it is not told otherwise: the reason for this test.
    let library = Tokenizer::from_bytes(test_tokenizer_json(false, true)).unwrap();
    let ids = library.encode_fast("[MASK]", false).unwrap();
    assert_eq!(ids.get_ids(), [special.mask]);
}

#[test]
fn marks_what_did_not_fit_and_counts_unknown_words() {
    let tokenizer = test_tokenizer();
    let encode = |text: &str, limit| tokenizer.encode(text, limit);
    assert!(!encode("体育", 2).truncated);
    assert!(
        !encode("体育 \u{3000}\u{0}", 2).truncated,
        "nothing was cut"
    );
    assert!(encode("体育新", 2).truncated);
    assert!(encode("体育ab", 2).truncated);
    assert!(encode("体育ไ", 2).truncated);
    assert_eq!(encode("体育新", 2).ids.len(), 2);
    assert_eq!(encode("育", 0).ids, [0; 0]);
    let unknown = encode("龘体Zebra育", 9);
    assert_eq!((unknown.unknown_tokens, unknown.ids.len()), (2, 4));
    assert_eq!(encode("体育龘", 2).unknown_tokens, 0, "it was cut off");
}

#[test]
fn a_megabyte_of_anything_is_bounded() {
    let tokenizer = test_tokenizer();
    let megabyte = |part: &str| part.repeat((1 << 20) / part.len());
    for (part, least) in [
        ("体", 510),
        (" ", 0),
        ("\u{0}", 0),
        ("a", 1),
        ("ไ", 1),
        ("😀", 1),
        ("\u{301}", 0),
    ] {
        let started = std::time::Instant::now();
        let encoded = tokenizer.encode(&megabyte(part), 510);
        assert!(
            encoded.ids.len() >= least && encoded.ids.len() <= 510,
            "{part}"
        );
        assert!(
            started.elapsed().as_secs() < 5,
            "{part:?} took {:?}",
            started.elapsed()
        );
    }
    assert_eq!(
        tokenizer.encode(&megabyte("a"), 510),
        EncodedText {
            ids: vec![tokenizer.special().unk],
            truncated: false,
            unknown_tokens: 1
        },
        "one word of a million letters is one unknown word"
    );
}

#[test]
fn refuses_another_family_and_missing_tokens() {
    let json = String::from_utf8(test_tokenizer_json(false, true)).unwrap();
    let load = |json: &str| PromptTokenizer::from_bytes(json.as_bytes(), "x.json").unwrap_err();
    let other = json.replace(
        "{\"type\":\"BertPreTokenizer\"}",
        "{\"type\":\"Whitespace\"}",
    );
    assert!(matches!(
        load(&other),
        TokenizerError::Family {
            part: "pre_tokenizer",
            ..
        }
    ));
    let other = json.replace("[MASK]", "[MUSK]");
    assert!(load(&other).to_string().contains("no token [MASK]"));
    assert!(matches!(load("{}"), TokenizerError::Syntax { .. }));
    let absent = PromptTokenizer::from_file(Path::new("absent/tokenizer.json")).unwrap_err();
    assert!(matches!(absent, TokenizerError::Read { .. }));
}

/// Strings in which scripts, marks, controls and special tokens meet without separators.
fn hostile() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[一-龥]{1,4}",
        "[a-cA-C]{1,6}",
        "[0-9]{1,4}",
        "\\PC{1,3}",
        "[\u{0}-\u{20}]{1,2}",
        Just("[MASK]".to_owned()),
        Just("é".to_owned()),
        Just("e\u{301}".to_owned()),
        Just("İ".to_owned()),
        Just("か\u{3099}が".to_owned()),
        Just("\u{302E}\u{302F}".to_owned()),
        Just("ﬁΣς".to_owned()),
        Just("\u{200B}\u{FEFF}\u{FFFD}".to_owned()),
        Just("ไทย".to_owned()),
        Just("한국".to_owned()),
        Just("😀".to_owned()),
        Just("豈𠀀".to_owned()),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn reads_every_text_as_the_library_does(text in hostile()) {
        for lowercase in [false, true] {
            let ours = PROMPT_TOKENIZERS.with(|both| both[usize::from(lowercase)].encode(&text, 4096).ids);
            let theirs = ORACLES.with(|both| both[usize::from(lowercase)].encode_fast(text.as_str(), false).unwrap().get_ids().to_vec());
            prop_assert_eq!(ours, theirs, "{:?}", &text);
        }
    }

    #[test]
    fn a_limit_cuts_and_changes_nothing_else(text in hostile(), limit in 0usize..20) {
        PROMPT_TOKENIZERS.with(|both| {
            let whole = both[0].encode(&text, 4096);
            let cut = both[0].encode(&text, limit);
            prop_assert_eq!(&cut.ids[..], &whole.ids[..limit.min(whole.ids.len())]);
            prop_assert_eq!(cut.truncated, whole.ids.len() > limit);
            Ok(())
        })?;
    }
}

thread_local! {
    static PROMPT_TOKENIZERS: [PromptTokenizer; 2] = [false, true].map(|lowercase| {
        PromptTokenizer::from_bytes(&test_tokenizer_json(lowercase, true), "test").unwrap()
    });
    static ORACLES: [Tokenizer; 2] = [false, true].map(oracle);
}
