//! Which text of a document the model reads, and how much of it at most.
//! Pure; tokenising, which cuts to the model's own length, comes later.

use serde::{Deserialize, Serialize};

use crate::document::Document;

/// Which parts of a document the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextRule {
    /// The title, the separator, the body.
    #[default]
    TitleAndBody,
    /// The title; the body where there is no title.
    Title,
    /// The body; the title where there is no body.
    Body,
}

/// How the text for the model is composed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSettings {
    /// Which parts.
    pub rule: TextRule,
    /// What stands between title and body.
    pub separator: String,
    /// Characters at most; the rest is cut, so that a text of a megabyte does not cost its tokenising.
    pub max_chars: usize,
}

/// The text for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelText {
    /// At most [`TextSettings::max_chars`] characters.
    pub text: String,
    /// Whether something was cut off the end.
    pub cut: bool,
}

/// The text of `document` that the model reads; blank parts are left out.
pub fn compose_text(document: &Document, settings: &TextSettings) -> ModelText {
    let title = document.title.trim();
    let body = document.text.trim();
    let parts = match settings.rule {
        TextRule::Title if !title.is_empty() => ["", "", title],
        TextRule::Body if !body.is_empty() => ["", "", body],
        _ if title.is_empty() => ["", "", body],
        _ if body.is_empty() => ["", "", title],
        TextRule::Title | TextRule::Body | TextRule::TitleAndBody => {
            [title, settings.separator.as_str(), body]
        }
    };
    let mut room = settings.max_chars;
    let mut cut = false;
    let mut text = String::new();
    for part in parts {
        let kept = match part.char_indices().nth(room) {
            Some((end, _)) => {
                cut = true;
                part.get(..end).unwrap_or_default()
            }
            None => part,
        };
        room -= kept.chars().count().min(room);
        text.push_str(kept);
    }
    ModelText { text, cut }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::DocumentId;

    fn compose(title: &str, text: &str, rule: TextRule, max_chars: usize) -> (String, bool) {
        let document = Document {
            id: DocumentId::new("a").unwrap(),
            title: title.to_owned(),
            text: text.to_owned(),
            published_at: None,
            source: None,
            language: None,
            attributes: serde_json::Map::new(),
            left_in_record: 0,
        };
        let settings = TextSettings {
            rule,
            separator: "。".to_owned(),
            max_chars,
        };
        let composed = compose_text(&document, &settings);
        (composed.text, composed.cut)
    }

    #[test]
    fn each_rule_takes_its_part_and_falls_back() {
        use TextRule::{Body, Title, TitleAndBody};
        for (title, text, rule, expected) in [
            ("标题", "正文", TitleAndBody, "标题。正文"),
            (" 标题 ", "", TitleAndBody, "标题"),
            ("  ", "正文", TitleAndBody, "正文"),
            ("标题", "正文", Title, "标题"),
            ("", "正文", Title, "正文"),
            ("标题", "正文", Body, "正文"),
            ("标题", "\u{3000}\n", Body, "标题"),
        ] {
            assert_eq!(
                compose(title, text, rule, 100),
                (expected.to_owned(), false)
            );
        }
    }

    #[test]
    fn the_cut_falls_between_characters_and_is_marked() {
        let compose = |max| compose("标题", "正🙂文", TextRule::TitleAndBody, max);
        assert_eq!(compose(6), ("标题。正🙂文".to_owned(), false));
        assert_eq!(compose(5), ("标题。正🙂".to_owned(), true));
        assert_eq!(compose(3), ("标题。".to_owned(), true));
        assert_eq!(compose(2), ("标题".to_owned(), true));
        assert_eq!(compose(1), ("标".to_owned(), true));
    }

    proptest! {
        #[test]
        fn never_longer_than_allowed_and_marked_exactly_when_cut(
            title in "\\PC{0,20}", text in "\\PC{0,20}", max in 1_usize..50,
        ) {
            let (short, cut) = compose(&title, &text, TextRule::TitleAndBody, max);
            let (whole, _) = compose(&title, &text, TextRule::TitleAndBody, 10_000);
            prop_assert!(short.chars().count() <= max);
            prop_assert!(whole.starts_with(&short));
            prop_assert_eq!(cut, whole.chars().count() > max);
        }
    }
}
