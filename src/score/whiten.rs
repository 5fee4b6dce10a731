//! Whitening of embeddings: fitted on a sample, kept in a file, applied to each vector.
//! Pure but for its file; must not know where a sample comes from.
//!
//! With the covariance `C = L Lt` of the sample, `W` is the inverse of `L`. The usual choice made of
//! eigenvectors differs from it by a rotation, which changes no cosine and no distance; the
//! triangular one needs no eigenvalues and half the multiplications.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::pool::normalise;

/// What a whitening file begins with; the last character is the version of its layout.
const MAGIC: &[u8; 8] = b"TCBWHIT1";
/// Widest embedding that can be whitened; bounds the memory of a fit to 128 MiB.
pub const MAX_DIMENSIONS: usize = 4096;
/// Bytes of the fixed part: magic, dimensions, documents, shrinkage, length of the fingerprint.
const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 4;
/// Bytes of the hash that closes the file.
const HASH_BYTES: usize = 32;

/// Why embeddings cannot be whitened.
#[derive(Debug, thiserror::Error)]
pub enum WhiteningError {
    /// A file that cannot be read or written.
    #[error("cannot use the whitening file {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that is none, or is damaged.
    #[error("{path} is not a whole whitening file: {reason}; fit it again with `whiten fit`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Fitted on other embeddings than it is to be applied to.
    #[error(
        "the whitening was fitted on embeddings {fitted} and cannot serve embeddings {wanted}: model, tokenizer or prompt changed; fit it again with `whiten fit`"
    )]
    OtherEmbeddings {
        /// Fingerprint of the embeddings of the fit.
        fitted: String,
        /// Fingerprint of the embeddings to whiten.
        wanted: String,
    },
    /// A vector of another width.
    #[error("an embedding has {found} dimensions, the whitening has {wanted}")]
    Dimensions {
        /// Width of the vector.
        found: usize,
        /// Width of the whitening.
        wanted: usize,
    },
    /// A sample that has no covariance to invert.
    #[error(
        "{documents} documents of {dimensions} dimensions do not vary enough to be whitened; use more and more varied documents, or a larger shrinkage"
    )]
    Sample {
        /// Vectors of the sample.
        documents: u64,
        /// Width of the vectors.
        dimensions: usize,
    },
}

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

/// A mean and a lower triangular matrix that give embeddings zero mean and unit covariance.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    mean: Vec<f32>,
    /// Lower triangle, row by row.
    matrix: Vec<f32>,
    documents: u64,
    shrinkage: f64,
    embeddings: String,
    fingerprint: String,
}

impl Whitening {
    fn new(
        mean: Vec<f32>,
        matrix: Vec<f32>,
        documents: u64,
        shrinkage: f64,
        embeddings: &str,
    ) -> Self {
        let mut whitening = Self {
            mean,
            matrix,
            documents,
            shrinkage,
            embeddings: embeddings.to_owned(),
            fingerprint: String::new(),
        };
        whitening.fingerprint = hex(&Sha256::digest(whitening.body()));
        whitening
    }

    /// Width of the vectors.
    pub fn dimensions(&self) -> usize {
        self.mean.len()
    }

    /// Size of the sample that it was fitted on.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// The shrinkage that it was fitted with.
    pub fn shrinkage(&self) -> f64 {
        self.shrinkage
    }

    /// Fingerprint of the embeddings that it was fitted on.
    pub fn embeddings(&self) -> &str {
        &self.embeddings
    }

    /// SHA-256 of mean, matrix and origin, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whitens an embedding of length one, of [`Whitening::dimensions`] values, and brings it to
    /// length one again.
    pub fn apply(&self, embedding: &mut [f32]) {
        debug_assert_eq!(embedding.len(), self.dimensions());
        let centred = embedding
            .iter()
            .zip(&self.mean)
            .map(|(value, mean)| value - mean);
        let centred: Vec<f32> = centred.collect();
        let mut rest = self.matrix.as_slice();
        for (row, value) in embedding.iter_mut().enumerate() {
            let (weights, next) = rest.split_at((row + 1).min(rest.len()));
            rest = next;
            *value = weights
                .iter()
                .zip(&centred)
                .map(|(weight, value)| weight * value)
                .sum();
        }
        normalise(embedding);
    }

    /// Refuses embeddings with another fingerprint than those of the fit.
    ///
    /// # Errors
    /// When model, tokenizer or prompt differ.
    pub fn check_origin(&self, embeddings: &str) -> Result<(), WhiteningError> {
        if self.embeddings == embeddings {
            return Ok(());
        }
        Err(WhiteningError::OtherEmbeddings {
            fitted: self.embeddings.clone(),
            wanted: embeddings.to_owned(),
        })
    }

    /// Writes the file, in one step: it is whole or not there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), WhiteningError> {
        let fault = |reason: String| WhiteningError::File {
            path: path.to_owned(),
            reason,
        };
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let body = self.body();
        let write = || {
            // Whoever runs the worker reads it: readable as far as the process's mask lets it be.
            let mut file = tempfile::Builder::new()
                .permissions(fs::Permissions::from_mode(0o666))
                .tempfile_in(folder.unwrap_or(Path::new(".")))?;
            file.write_all(&body)?;
            file.write_all(&Sha256::digest(&body))?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)
        };
        write()
            .map(drop)
            .map_err(|error: std::io::Error| fault(error.to_string()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or none.
    pub fn load(path: &Path) -> Result<Self, WhiteningError> {
        let fault = |error: std::io::Error| WhiteningError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let longest = HEADER_BYTES + 1024 + 4 * (MAX_DIMENSIONS + triangle(MAX_DIMENSIONS));
        let bytes = fs::metadata(path).map_err(fault)?.len();
        let damaged = |reason| WhiteningError::Damaged {
            path: path.to_owned(),
            reason,
        };
        if bytes > (longest + HASH_BYTES) as u64 {
            return Err(damaged("it is too long"));
        }
        Self::from_bytes(&fs::read(path).map_err(fault)?).map_err(damaged)
    }

    fn body(&self) -> Vec<u8> {
        let mut body = MAGIC.to_vec();
        body.extend((self.mean.len() as u32).to_le_bytes());
        body.extend(self.documents.to_le_bytes());
        body.extend(self.shrinkage.to_le_bytes());
        body.extend((self.embeddings.len() as u32).to_le_bytes());
        body.extend(self.embeddings.as_bytes());
        for value in self.mean.iter().chain(&self.matrix) {
            body.extend(value.to_le_bytes());
        }
        body
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let cut = bytes
            .len()
            .checked_sub(HASH_BYTES)
            .ok_or("it is too short")?;
        let (body, hash) = bytes.split_at(cut);
        if !body.starts_with(MAGIC) {
            return Err("it does not begin as one");
        }
        if Sha256::digest(body).as_slice() != hash {
            return Err("its content does not match its hash");
        }
        let mut reader = Reader(body.get(MAGIC.len()..).unwrap_or_default());
        let dimensions = u32::from_le_bytes(reader.array()?) as usize;
        let documents = u64::from_le_bytes(reader.array()?);
        let shrinkage = f64::from_le_bytes(reader.array()?);
        let length = u32::from_le_bytes(reader.array()?) as usize;
        let embeddings = std::str::from_utf8(reader.take(length)?);
        let embeddings = embeddings.map_err(|_| "its origin is no text")?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err("its width is out of bounds");
        }
        let mean = reader.floats(dimensions)?;
        let matrix = reader.floats(triangle(dimensions))?;
        if !reader.0.is_empty() {
            return Err("it is too long");
        }
        Ok(Self::new(mean, matrix, documents, shrinkage, embeddings))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it is too short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        self.take(N)?.try_into().map_err(|_| "it is too short")
    }

    fn floats(&mut self, count: usize) -> Result<Vec<f32>, &'static str> {
        (0..count)
            .map(|_| self.array().map(f32::from_le_bytes))
            .collect()
    }
}

/// Entries of a lower triangle of `rows` rows, which is where the next row begins.
fn triangle(rows: usize) -> usize {
    rows * (rows + 1) / 2
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
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
}
