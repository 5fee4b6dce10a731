//! The fit of a whitening: sums over a sample, and the inverse of the factor of its covariance. Pure.

use super::{MAX_DIMENSIONS, Whitening, WhiteningError, triangle};

/// Gathers a sample, one embedding at a time, in memory of the square of its width.
#[derive(Debug, Clone)]
pub struct WhiteningFit {
    dimensions: usize,
    documents: u64,
    sum: Vec<f64>,
    /// Lower triangle of the sum of outer products, row by row.
    products: Vec<f64>,
}

impl WhiteningFit {
    /// An empty sample of embeddings of `dimensions` values.
    ///
    /// # Errors
    /// When they are wider than [`MAX_DIMENSIONS`], or empty.
    pub fn new(dimensions: usize) -> Result<Self, WhiteningError> {
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(WhiteningError::Dimensions {
                found: dimensions,
                wanted: MAX_DIMENSIONS,
            });
        }
        Ok(Self {
            dimensions,
            documents: 0,
            sum: vec![0.0; dimensions],
            products: vec![0.0; triangle(dimensions)],
        })
    }

    /// Adds an embedding of length one.
    ///
    /// # Errors
    /// When it has another width.
    pub fn add(&mut self, embedding: &[f32]) -> Result<(), WhiteningError> {
        if embedding.len() != self.dimensions {
            return Err(WhiteningError::Dimensions {
                found: embedding.len(),
                wanted: self.dimensions,
            });
        }
        self.documents += 1;
        for (sum, value) in self.sum.iter_mut().zip(embedding) {
            *sum += f64::from(*value);
        }
        let mut products = self.products.iter_mut();
        for (row, first) in embedding.iter().enumerate() {
            let seconds = embedding.iter().take(row + 1);
            for (second, product) in seconds.zip(products.by_ref()) {
                *product += f64::from(*first) * f64::from(*second);
            }
        }
        Ok(())
    }

    /// Fits the whitening of embeddings whose fingerprint is `embeddings`. `shrinkage`, from 0 to 1, is how far
    /// the covariance is drawn towards equal variance in all directions.
    ///
    /// # Errors
    /// When the sample does not vary in every direction and `shrinkage` does not make up for it.
    pub fn finish(&self, shrinkage: f64, embeddings: &str) -> Result<Whitening, WhiteningError> {
        let fault = || WhiteningError::Sample {
            documents: self.documents,
            dimensions: self.dimensions,
        };
        if self.documents < 2 {
            return Err(fault());
        }
        let count = self.documents as f64;
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / count).collect();
        let mut covariance = self.products.clone();
        let mut entries = covariance.iter_mut();
        for (row, first) in mean.iter().enumerate() {
            for (second, entry) in mean.iter().take(row + 1).zip(entries.by_ref()) {
                *entry = *entry / count - first * second;
            }
        }
        let diagonal = |row: usize| triangle(row) + row;
        let variances = (0..self.dimensions).filter_map(|row| covariance.get(diagonal(row)));
        let variance = variances.sum::<f64>() / self.dimensions as f64;
        covariance
            .iter_mut()
            .for_each(|entry| *entry *= 1.0 - shrinkage);
        for row in 0..self.dimensions {
            if let Some(entry) = covariance.get_mut(diagonal(row)) {
                *entry += shrinkage * variance;
            }
        }
        // Variance that is mere rounding must not be blown up to one.
        let floor = (variance * 1e-9).max(f64::MIN_POSITIVE);
        let factor = cholesky(covariance, self.dimensions, floor).ok_or_else(fault)?;
        let inverse = invert(&factor, self.dimensions);
        Ok(Whitening::new(
            mean.iter().map(|value| *value as f32).collect(),
            inverse.iter().map(|value| *value as f32).collect(),
            self.documents,
            shrinkage,
            embeddings,
        ))
    }
}

/// The lower triangular `L` of `matrix = L Lt`, both as lower triangles row by row; `None` where a
/// pivot is below `floor`.
fn cholesky(mut matrix: Vec<f64>, dimensions: usize, floor: f64) -> Option<Vec<f64>> {
    for row in 0..dimensions {
        let (above, current) = matrix.split_at_mut(triangle(row));
        let current = current.get_mut(..=row)?;
        for column in 0..row {
            let start = triangle(column);
            let other = above.get(start..=start + column)?;
            let (head, tail) = current.split_at_mut(column);
            let dot: f64 = head
                .iter()
                .zip(other)
                .map(|(first, second)| first * second)
                .sum();
            let entry = tail.first_mut()?;
            *entry = (*entry - dot) / other.last()?;
        }
        let (pivot, head) = current.split_last_mut()?;
        *pivot -= head.iter().map(|value| value * value).sum::<f64>();
        if pivot.is_nan() || *pivot < floor {
            return None;
        }
        *pivot = pivot.sqrt();
    }
    Some(matrix)
}

/// The inverse of a lower triangular matrix with a positive diagonal, row by row: row `i` of the
/// inverse is `(e_i - sum over k < i of L_ik times row k) / L_ii`.
fn invert(factor: &[f64], dimensions: usize) -> Vec<f64> {
    let mut inverse: Vec<f64> = Vec::with_capacity(triangle(dimensions));
    for row in 0..dimensions {
        let weights = factor
            .get(triangle(row)..triangle(row + 1))
            .unwrap_or_default();
        let Some((pivot, weights)) = weights.split_last() else {
            break;
        };
        let mut next = vec![0.0; row + 1];
        for (above, weight) in weights.iter().enumerate() {
            let values = inverse.get(triangle(above)..triangle(above + 1));
            for (entry, value) in next.iter_mut().zip(values.unwrap_or_default()) {
                *entry -= weight * value;
            }
        }
        if let Some(last) = next.last_mut() {
            *last = 1.0;
        }
        inverse.extend(next.iter().map(|entry| entry / pivot));
    }
    inverse
}
