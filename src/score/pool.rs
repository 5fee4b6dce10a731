//! Sentence embeddings brought to length one. Pure.

/// Divides `vector` by its length. A vector of zeros stays one: it has no direction, and its
/// cosine with anything counts as zero.
pub fn normalise(vector: &mut [f32]) {
    // In double precision the squares neither overflow nor vanish.
    let squares = vector.iter().map(|value| f64::from(*value).powi(2));
    let length = squares.sum::<f64>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
        normalise(&mut vector);
        vector
    }

    #[test]
    fn has_a_defined_answer_for_every_finite_vector() {
        assert_eq!(normalised(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalised(vec![0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalised(vec![0.0, -1e-40]), [0.0, -1.0]);
        assert_eq!(normalised(vec![f32::MAX, 0.0]), [1.0, 0.0]);
    }

    proptest! {
        #[test]
        fn is_of_length_one(vector in prop::collection::vec(-1e30f32..1e30, 1..64)) {
            prop_assume!(vector.iter().any(|value| *value != 0.0));
            let squares = normalised(vector).iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            prop_assert!((squares - 1.0).abs() < 1e-5);
        }
    }
}
