//! Accuracy, precision, recall and F1 of predicted labels. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// How well one label was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct LabelScore {
    /// Label name.
    pub(super) label: String,
    /// Documents that have it.
    pub(super) documents: usize,
    /// Right ones among those predicted; 0 where none was predicted.
    pub(super) precision: f64,
    /// Right ones among those that have it; 0 where none has it.
    pub(super) recall: f64,
    /// Harmonic mean of both.
    pub(super) f1: f64,
}

/// How well all labels were found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scores {
    /// Right documents among all.
    pub(super) accuracy: f64,
    /// Mean F1 of the labels that occur, in the data or among the predictions.
    pub(super) macro_f1: f64,
    /// Labels that occur, in the taxonomy's order.
    pub(super) labels: Vec<LabelScore>,
    mistakes: BTreeMap<(String, String), usize>,
}

impl Scores {
    /// Compares `(true, predicted)` label indices; `None` is a prediction that is no label (`other`).
    pub(super) fn of(
        pairs: impl Iterator<Item = (usize, Option<usize>)>,
        names: &[String],
    ) -> Self {
        let name = |index: usize| names.get(index).cloned().unwrap_or_default();
        let (mut has, mut predicted, mut right) = (
            vec![0; names.len()],
            vec![0; names.len()],
            vec![0; names.len()],
        );
        let add = |counts: &mut Vec<usize>, index: usize| {
            if let Some(count) = counts.get_mut(index) {
                *count += 1;
            }
        };
        let mut mistakes = BTreeMap::new();
        let mut documents = 0_usize;
        for (truth, guess) in pairs {
            documents += 1;
            add(&mut has, truth);
            if let Some(guess) = guess {
                add(&mut predicted, guess);
            }
            if guess == Some(truth) {
                add(&mut right, truth);
            } else {
                let taken_for = guess.map_or_else(|| "other".to_owned(), name);
                *mistakes.entry((name(truth), taken_for)).or_default() += 1;
            }
        }
        let labels: Vec<LabelScore> = names
            .iter()
            .zip(has.iter().zip(predicted.iter().zip(&right)))
            .filter(|(_, (has, (predicted, _)))| **has + **predicted > 0)
            .map(|(name, (has, (predicted, right)))| LabelScore {
                label: name.clone(),
                documents: *has,
                precision: ratio(*right, *predicted),
                recall: ratio(*right, *has),
                f1: ratio(2 * right, has + predicted),
            })
            .collect();
        Self {
            accuracy: ratio(right.iter().sum(), documents),
            macro_f1: labels.iter().map(|label| label.f1).sum::<f64>() / labels.len().max(1) as f64,
            labels,
            mistakes,
        }
    }

    /// What `label` was most often taken for, as text.
    pub(super) fn confusions(&self, label: &str, most: usize) -> String {
        let mut taken: Vec<(&str, usize)> = self
            .mistakes
            .iter()
            .filter(|((truth, _), _)| truth == label)
            .map(|((_, guess), count)| (guess.as_str(), *count))
            .collect();
        taken.sort_by_key(|(guess, count)| (std::cmp::Reverse(*count), *guess));
        let parts: Vec<String> = taken
            .into_iter()
            .take(most)
            .map(|(guess, count)| format!("{guess} {count}"))
            .collect();
        parts.join(", ")
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["甲", "乙", "丙"].map(str::to_owned).to_vec()
    }

    #[test]
    fn agrees_with_a_table_computed_by_hand() {
        let pairs = [
            (0, Some(0)),
            (0, Some(1)),
            (1, Some(1)),
            (1, Some(1)),
            (1, None),
        ];
        let scores = Scores::of(pairs.into_iter(), &names());
        assert!((scores.accuracy - 0.6).abs() < 1e-12);
        // 甲: precision 1, recall 1/2; 乙: precision 2/3, recall 2/3; 丙 occurs nowhere.
        let expected = f64::midpoint(2.0 / 3.0, 2.0 / 3.0);
        assert!((scores.macro_f1 - expected).abs() < 1e-12);
        assert_eq!(scores.labels.len(), 2);
        assert_eq!(scores.confusions("甲", 5), "乙 1");
        assert_eq!(scores.confusions("乙", 5), "other 1");
    }

    #[test]
    fn a_label_that_is_only_predicted_counts_as_zero() {
        let scores = Scores::of([(0, Some(2))].into_iter(), &names());
        assert_eq!(scores.labels.len(), 2);
        assert!(scores.macro_f1.abs() < 1e-12);
    }

    #[test]
    fn no_documents_are_no_division_by_zero() {
        let scores = Scores::of(std::iter::empty(), &names());
        assert!(scores.accuracy.abs() < 1e-12 && scores.macro_f1.abs() < 1e-12);
    }
}
