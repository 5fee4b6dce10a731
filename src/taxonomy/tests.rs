//! Taxonomies under test.

use super::*;

const VALID: &str = r#"
    name = "two"
    prompts = ["关于{label}："]
    [[labels]]
    name = "体育"
    words = ["体育", "足球"]
    codes = ["7", "sports", "体育"]
    [[labels]]
    name = "财经"
    words = ["财经"]
"#;

#[track_caller]
fn fault_of(text: &str) -> TaxonomyFault {
    match Taxonomy::parse(text, "mine.toml") {
        Err(TaxonomyError::Invalid { fault, .. }) => fault,
        other => panic!("expected a fault, found {other:?}"),
    }
}

#[test]
fn reads_a_taxonomy_with_its_defaults() {
    let taxonomy = Taxonomy::parse(VALID, "test").unwrap();
    assert_eq!(taxonomy.threshold, 0.0);
    assert_eq!(taxonomy.temperature, 1.0);
    assert!(!taxonomy.calibration);
    assert_eq!(taxonomy.prompts[0].before, "关于");
    assert_eq!(taxonomy.prompts[0].after, "：");
    assert_eq!(taxonomy.prompts[0].to_string(), "关于{label}：");
    for (code, label) in [("7", 0), ("sports", 0), ("体育", 0), ("财经", 1)] {
        assert_eq!(taxonomy.label_of_code(code), Some(label), "{code}");
    }
    assert_eq!(taxonomy.label_of_code("足球"), None, "words are no codes");
}

#[test]
fn names_what_contradicts_itself() {
    let swap = |from: &str, to: &str| fault_of(&VALID.replacen(from, to, 1));
    assert!(matches!(swap("\"two\"", "\" \""), TaxonomyFault::NoName));
    assert!(matches!(
        swap("{label}", ""),
        TaxonomyFault::Placeholder { found: 0, .. }
    ));
    assert!(matches!(
        swap("{label}", "{label}和{label}"),
        TaxonomyFault::Placeholder { found: 2, .. }
    ));
    assert!(matches!(
        swap("[\"关于{label}：\"]", "[]"),
        TaxonomyFault::NoPrompt
    ));
    assert!(matches!(
        swap("关于", &"长".repeat(MAX_PROMPT_CHARS)),
        TaxonomyFault::LongPrompt { .. }
    ));
    assert!(matches!(
        swap("name = \"财经\"", "name = \"other\""),
        TaxonomyFault::ReservedName
    ));
    assert!(matches!(
        swap("name = \"财经\"", "name = \"体育\""),
        TaxonomyFault::DuplicateName(_)
    ));
    assert!(matches!(
        swap("words = [\"财经\"]", "words = [\"足球\"]"),
        TaxonomyFault::DuplicateWord { .. }
    ));
    assert!(matches!(
        swap("\"7\"", "\"财经\""),
        TaxonomyFault::DuplicateCode { .. }
    ));
    assert!(matches!(
        swap("words = [\"财经\"]", "words = []"),
        TaxonomyFault::NoWords(_)
    ));
    assert!(matches!(
        swap("words = [\"财经\"]", "words = [\" \"]"),
        TaxonomyFault::EmptyWord(_)
    ));
    assert!(matches!(
        swap("prompts", "threshold = 1.5\nprompts"),
        TaxonomyFault::Threshold(_)
    ));
    assert!(matches!(
        swap("prompts", "threshold = nan\nprompts"),
        TaxonomyFault::Threshold(_)
    ));
    assert!(matches!(
        swap("prompts", "temperature = 0.0\nprompts"),
        TaxonomyFault::Temperature(_)
    ));
    assert_eq!(
        fault_of("name = \"n\"\nprompts = [\"{label}\"]"),
        TaxonomyFault::NoLabels
    );
}

#[test]
fn an_error_names_file_label_and_what_to_do() {
    let text = VALID.replace("words = [\"财经\"]", "words = [\"足球\"]");
    let message = Taxonomy::parse(&text, "conf/mine.toml")
        .unwrap_err()
        .to_string();
    for part in ["conf/mine.toml", "足球", "体育", "财经", "keep it in one"] {
        assert!(message.contains(part), "{message}");
    }
    let misspelt = VALID.replace("words = [\"财经\"]", "word = [\"财经\"]");
    let message = Taxonomy::parse(&misspelt, "x").unwrap_err().to_string();
    assert!(
        message.contains("word") && message.contains("line 10"),
        "{message}"
    );
}

#[test]
fn ships_the_taxonomies_of_the_data_sets() {
    let load = |name| Taxonomy::load(name, None).unwrap();
    for (name, labels) in [
        ("news", 17),
        ("tnews", 15),
        ("csldcp", 67),
        ("iflytek", 119),
        ("thucnews", 10),
    ] {
        let taxonomy = load(name);
        assert_eq!(taxonomy.name, name);
        assert_eq!(taxonomy.labels.len(), labels, "{name}");
        assert_eq!(taxonomy.prompts.len(), 2, "{name}");
        assert!(!taxonomy.calibration && taxonomy.threshold == 0.0);
    }
    let check = |taxonomy: &Taxonomy, codes: &[&str], label: &str| {
        for code in codes {
            let index = taxonomy.label_of_code(code).unwrap();
            assert_eq!(taxonomy.labels[index].name, label, "{code}");
        }
    };
    check(&load("tnews"), &["116", "news_game", "电竞"], "电竞");
    check(&load("thucnews"), &["6", "politics"], "时政");
    check(&load("csldcp"), &["畜牧学/兽医学"], "畜牧学/兽医学");
    check(&load("iflytek"), &["52", "成人"], "成人");
    check(&load("iflytek"), &["59", "成人教育"], "成人教育");
    check(&load("news"), &["116", "8", "news_game", "game"], "游戏");
}

#[test]
fn news_covers_every_code_of_its_two_data_sets() {
    let news = Taxonomy::load("news", None).unwrap();
    for name in ["tnews", "thucnews"] {
        for label in Taxonomy::load(name, None).unwrap().labels {
            for code in &label.codes {
                let found = news.label_of_code(code).map(|index| &news.labels[index]);
                assert!(
                    found.is_some_and(|found| found.words.contains(&label.name)),
                    "{code}"
                );
            }
        }
    }
}

#[test]
fn finds_files_by_name_and_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    fs::write(&path, VALID).unwrap();
    let by_name = Taxonomy::load("mine", Some(folder.path())).unwrap();
    let by_path = Taxonomy::load(path.to_str().unwrap(), None).unwrap();
    assert_eq!(by_name, by_path);
    assert_eq!(
        Taxonomy::load("tnews", Some(folder.path())).unwrap().name,
        "tnews"
    );

    let unknown = Taxonomy::load("tnew", Some(folder.path())).unwrap_err();
    let message = unknown.to_string();
    assert!(
        message.contains("mine") && message.contains("tnews"),
        "{message}"
    );
    assert!(matches!(
        Taxonomy::load("absent/mine.toml", None),
        Err(TaxonomyError::Read { .. })
    ));
}
