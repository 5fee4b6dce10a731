//! Whitening under test.

use super::*;

/// Vectors whose four values depend on each other, from a fixed seed.
fn sample(count: usize) -> Vec<Vec<f32>> {
    let mut state = 11u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut vector = || {
        let [a, b, c, d] = [(); 4].map(|()| next());
        let mut vector = vec![1.0 + a, 0.9 + a + 0.3 * b, 0.2 * c + b, a - c + 0.1 * d];
        normalise(&mut vector);
        vector
    };
    (0..count).map(|_| vector()).collect()
}

fn fit(vectors: &[Vec<f32>]) -> WhiteningFit {
    let mut fit = WhiteningFit::new(4).unwrap();
    for vector in vectors {
        fit.add(vector).unwrap();
    }
    fit
}

/// The whitened vector before it is brought to length one.
fn unscaled(whitening: &Whitening, vector: &[f32]) -> Vec<f64> {
    let centred = vector
        .iter()
        .zip(&whitening.mean)
        .map(|(value, mean)| f64::from(value - mean));
    let centred: Vec<f64> = centred.collect();
    let row = |row: usize| {
        let weights = &whitening.matrix[triangle(row)..triangle(row + 1)];
        weights
            .iter()
            .zip(&centred)
            .map(|(weight, value)| f64::from(*weight) * value)
            .sum()
    };
    (0..vector.len()).map(row).collect()
}

#[test]
fn a_whitened_sample_has_zero_mean_and_unit_covariance() {
    let vectors = sample(500);
    let whitening = fit(&vectors).finish(0.0, "e").unwrap();
    let white: Vec<Vec<f64>> = vectors
        .iter()
        .map(|vector| unscaled(&whitening, vector))
        .collect();
    for first in 0..4 {
        let mean = white.iter().map(|vector| vector[first]).sum::<f64>() / 500.0;
        assert!(mean.abs() < 1e-3, "{mean}");
        for second in 0..4 {
            let products = white.iter().map(|vector| vector[first] * vector[second]);
            let covariance = products.sum::<f64>() / 500.0;
            let expected = f64::from(u8::from(first == second));
            assert!(
                (covariance - expected).abs() < 1e-2,
                "{first} {second}: {covariance}"
            );
        }
    }
    let mut applied = vectors[3].clone();
    whitening.apply(&mut applied);
    let length = white[3]
        .iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt();
    for (applied, white) in applied.iter().zip(&white[3]) {
        assert!((f64::from(*applied) - white / length).abs() < 1e-4);
    }
}

#[test]
fn a_file_comes_back_as_it_was_and_damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whitening.bin");
    let whitening = fit(&sample(50))
        .finish(0.2, "embedding-fingerprint")
        .unwrap();
    whitening.save(&path).unwrap();
    assert_eq!(Whitening::load(&path).unwrap(), whitening);
    assert_eq!(whitening.fingerprint().len(), 64);
    assert_eq!((whitening.documents(), whitening.shrinkage()), (50, 0.2));
    assert!(whitening.check_origin("embedding-fingerprint").is_ok());
    assert!(whitening.check_origin("another").is_err());

    let bytes = fs::read(&path).unwrap();
    for at in [0, 9, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(Whitening::from_bytes(&damaged).is_err(), "byte {at}");
    }
    for length in [0, 31, 40, bytes.len() - 1] {
        assert!(
            Whitening::from_bytes(&bytes[..length]).is_err(),
            "{length} bytes"
        );
    }
    assert!(matches!(
        Whitening::load(&folder.path().join("absent")),
        Err(WhiteningError::File { .. })
    ));
}

#[test]
fn a_sample_that_does_not_vary_needs_shrinkage() {
    let flat: Vec<Vec<f32>> = (0..40)
        .map(|turn| vec![(turn as f32).cos(), (turn as f32).sin(), 0.0, 0.0])
        .collect();
    assert!(matches!(
        fit(&flat).finish(0.0, "e"),
        Err(WhiteningError::Sample { documents: 40, .. })
    ));
    assert!(fit(&flat).finish(0.1, "e").is_ok());
    assert!(fit(&flat[..1]).finish(0.5, "e").is_err(), "one document");
    assert!(
        fit(&vec![vec![1.0, 0.0, 0.0, 0.0]; 9])
            .finish(0.5, "e")
            .is_err(),
        "all the same"
    );
    assert!(WhiteningFit::new(4).unwrap().add(&[1.0]).is_err());
    assert!(WhiteningFit::new(0).is_err() && WhiteningFit::new(MAX_DIMENSIONS + 1).is_err());
}

#[test]
fn full_shrinkage_keeps_every_angle_but_the_mean() {
    let vectors = sample(30);
    let whitening = fit(&vectors).finish(1.0, "e").unwrap();
    let mut applied = vectors[0].clone();
    whitening.apply(&mut applied);
    let mut centred: Vec<f32> = vectors[0]
        .iter()
        .zip(&whitening.mean)
        .map(|(value, mean)| value - mean)
        .collect();
    normalise(&mut centred);
    for (applied, centred) in applied.iter().zip(&centred) {
        assert!((applied - centred).abs() < 1e-4);
    }
}
