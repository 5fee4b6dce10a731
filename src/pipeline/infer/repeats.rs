//! Answers kept for texts that come again: syndicated news is the same text under many ids. Bounded
//! by a number of texts; what has not come again for longest goes first.
//! Must not know documents, only token ids and what the model said of them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::store::point::Answer;
use crate::tokenize::EncodedText;

/// A cryptographic hash: whoever writes documents must not be able to borrow another text's answer.
type TextHash = [u8; 32];

/// Answers of recent texts, shared by all threads.
pub(in crate::pipeline) struct Repeats {
    answers: Option<Mutex<LruCache<TextHash, Arc<Answer>>>>,
}

impl Repeats {
    /// Keeps the answers of `texts` texts; of none where it is 0.
    pub(in crate::pipeline) fn new(texts: usize) -> Self {
        Self {
            answers: NonZeroUsize::new(texts).map(|texts| Mutex::new(LruCache::new(texts))),
        }
    }

    /// What the model said when this text last came.
    pub(in crate::pipeline) fn find(&self, text: &EncodedText) -> Option<Arc<Answer>> {
        let answers = self.answers.as_ref()?;
        let hash = hash(text);
        answers.lock().get(&hash).cloned()
    }

    /// Keeps what the model said of a text.
    pub(in crate::pipeline) fn keep(&self, text: &EncodedText, answer: &Arc<Answer>) {
        if let Some(answers) = &self.answers {
            let hash = hash(text);
            // What it displaces is freed after the lock.
            let _displaced = answers.lock().push(hash, answer.clone());
        }
    }
}

/// The model sees the ids and nothing else; what was cut off bears on the tagging as well.
fn hash(text: &EncodedText) -> TextHash {
    let mut hasher = Sha256::new();
    hasher.update([u8::from(text.truncated)]);
    for id in &text.ids {
        hasher.update(id.to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ids: &[u32]) -> EncodedText {
        EncodedText {
            ids: ids.to_vec(),
            ..EncodedText::default()
        }
    }

    fn answer(topic: &str) -> Arc<Answer> {
        Arc::new(Answer {
            topic: topic.to_owned(),
            probability: 0.5,
            topics: Vec::new(),
            embedding: vec![1.0],
        })
    }

    #[test]
    fn a_text_that_comes_again_is_known_and_others_are_not() {
        let repeats = Repeats::new(2);
        repeats.keep(&text(&[1, 2]), &answer("a"));
        assert_eq!(repeats.find(&text(&[1, 2])).unwrap().topic, "a");
        assert!(repeats.find(&text(&[2, 1])).is_none());
        let cut = EncodedText {
            truncated: true,
            ..text(&[1, 2])
        };
        assert!(repeats.find(&cut).is_none());
    }

    #[test]
    fn the_text_that_has_not_come_for_longest_goes_first() {
        let repeats = Repeats::new(2);
        repeats.keep(&text(&[1]), &answer("a"));
        repeats.keep(&text(&[2]), &answer("b"));
        assert!(repeats.find(&text(&[1])).is_some());
        repeats.keep(&text(&[3]), &answer("c"));
        assert!(repeats.find(&text(&[2])).is_none());
        assert!(repeats.find(&text(&[1])).is_some());
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_to_be_kept() {
        let repeats = Repeats::new(0);
        repeats.keep(&text(&[1]), &answer("a"));
        assert!(repeats.find(&text(&[1])).is_none());
    }
}
