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
use crate::{digest, durable};

mod fit;

pub use fit::WhiteningFit;

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
        whitening.fingerprint = digest::of_bytes(&whitening.body());
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
            durable::persist(file, path)
        };
        write().map_err(|error: std::io::Error| fault(error.to_string()))
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

#[cfg(test)]
mod tests;
