//! From log-probabilities of label tokens to topics. Pure arithmetic; must not know tokens,
//! models or names of labels.

use super::verbalizer::PassWord;

/// Raises each label's score to that of its best word in this pass.
///
/// `log_probs` is one row of a pass, `[masks, label_tokens]`; a word's score is the mean over the
/// masks of its tokens' log-probabilities. `scores` holds one value a label, `-inf` at first.
pub(super) fn raise_scores(
    scores: &mut [f32],
    words: &[PassWord],
    log_probs: &[f32],
    label_tokens: usize,
) {
    for word in words {
        let rows = log_probs.chunks_exact(label_tokens);
        let tokens = rows
            .zip(&word.columns)
            .map(|(row, column)| row.get(*column));
        let sum: f32 = tokens.map(|value| value.copied().unwrap_or(f32::NAN)).sum();
        let score = sum / word.columns.len() as f32;
        if let Some(best) = scores.get_mut(word.label) {
            // A NaN must not be lost in a comparison: the caller refuses the row.
            if score.is_nan() || score > *best {
                *best = score;
            }
        }
    }
}

/// Softmax of the scores divided by `temperature`; `None` unless every score is finite.
pub(super) fn probabilities(scores: &[f32], temperature: f64) -> Option<Vec<f32>> {
    if !scores.iter().all(|score| score.is_finite()) {
        return None;
    }
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = scores
        .iter()
        .map(|score| ((f64::from(*score) - f64::from(best)) / temperature).exp());
    let weights: Vec<f64> = weights.collect();
    let total: f64 = weights.iter().sum();
    Some(
        weights
            .into_iter()
            .map(|weight| (weight / total) as f32)
            .collect(),
    )
}

/// The indices of the `count` most probable labels (0: all), best first; of equals the one that
/// stands first in the taxonomy.
pub(super) fn best_labels(probabilities: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    let probability = |label: &usize| probabilities.get(*label).copied().unwrap_or_default();
    // A stable sort keeps the order of equals.
    order.sort_by(|first, second| probability(second).total_cmp(&probability(first)));
    if count > 0 {
        order.truncate(count);
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(label: usize, columns: &[usize]) -> PassWord {
        PassWord {
            label,
            columns: columns.to_vec(),
        }
    }

    #[test]
    fn a_score_is_the_mean_over_the_masks_of_the_best_word() {
        let log_probs = [-1.0, -2.0, -4.0, /* second mask */ -3.0, -1.0, -8.0];
        let words = [word(0, &[0, 1]), word(1, &[2, 2]), word(1, &[1, 0])];
        let mut scores = [f32::NEG_INFINITY; 2];
        raise_scores(&mut scores, &words, &log_probs, 3);
        assert_eq!(
            scores,
            [-1.0, -2.5],
            "the second label's second word is better"
        );
        // A pass of another length raises, never lowers.
        raise_scores(
            &mut scores,
            &[word(0, &[0]), word(1, &[1])],
            &[-9.0, -0.5],
            2,
        );
        assert_eq!(scores, [-1.0, -0.5]);
    }

    #[test]
    fn a_value_that_is_no_number_gives_no_answer() {
        let mut scores = [f32::NEG_INFINITY; 2];
        let words = [word(0, &[0]), word(1, &[1])];
        raise_scores(&mut scores, &words, &[f32::NAN, -1.0], 2);
        assert_eq!(probabilities(&scores, 1.0), None);
        assert_eq!(probabilities(&[f32::NEG_INFINITY, -1.0], 1.0), None);
        let mut short = [f32::NEG_INFINITY];
        raise_scores(&mut short, &[word(0, &[5])], &[-1.0], 1);
        assert_eq!(
            probabilities(&short, 1.0),
            None,
            "a column that is not there"
        );
    }

    #[test]
    fn temperature_flattens_and_ties_keep_the_taxonomys_order() {
        let sharp = probabilities(&[-1.0, -2.0], 1.0).unwrap();
        assert!((sharp[0] - 0.731_058_6).abs() < 1e-6);
        let flat = probabilities(&[-1.0, -2.0], 2.0).unwrap();
        assert!((flat[0] - 0.622_459_3).abs() < 1e-6);
        assert_eq!(best_labels(&[0.25, 0.3, 0.25, 0.2], 3), [1, 0, 2]);
        assert_eq!(best_labels(&[0.5, 0.5], 0), [0, 1]);
        assert_eq!(best_labels(&[1.0], 9), [0]);
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_rank_as_scores(
            scores in prop::collection::vec(-1e4f32..0.0, 1..40),
            temperature in 0.01f64..100.0,
        ) {
            let probabilities = probabilities(&scores, temperature).unwrap();
            prop_assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-4);
            let best = best_labels(&probabilities, 1)[0];
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert!(scores[best] >= highest - 1e-3 * temperature as f32);
        }
    }
}
