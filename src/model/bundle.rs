//! A model bundle: the folder with `bundle.toml`, the graph and the tokenizer, verified before use.
//! Knows files and hashes; must not know ONNX Runtime.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::device::Device;
use super::verification::Verification;
use crate::digest;

/// The graph contract that this worker speaks.
pub(crate) const CONTRACT: &str = "tcbert-graph/1";
const MANIFEST_FILE: &str = "bundle.toml";
const GRAPH_FILE: &str = "model.onnx";
/// The same network without padding, which CUDA alone can run; optional.
const PACKED_GRAPH_FILE: &str = "model.packed.onnx";
const TOKENIZER_FILE: &str = "tokenizer.json";
/// A manifest is a page of text; anything larger is not one.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// No BERT is wider; a larger number would ask for absurd buffers.
const MAX_HIDDEN_SIZE: usize = 65_536;
const MAX_TOKENS: usize = 65_536;
const MAX_VOCABULARY: usize = 16_777_216;

/// Number format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// 16-bit floating point.
    Fp16,
    /// 8-bit integers.
    Int8,
}

impl Precision {
    /// As it is written in `bundle.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        }
    }
}

/// What `bundle.toml` says. Keys that this version does not know are left alone.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    /// The graph contract, such as `tcbert-graph/1`.
    pub contract: String,
    /// Name of the bundle.
    pub name: String,
    /// Architecture of the checkpoint, such as `BertForMaskedLM`.
    pub architecture: String,
    /// Where the weights come from.
    pub source: String,
    /// Revision of the source.
    pub revision: String,
    /// Licence of the weights.
    pub license: String,
    /// Width of the last hidden state.
    pub hidden_size: usize,
    /// Most tokens a row may have.
    pub max_tokens: usize,
    /// Entries of the vocabulary.
    pub vocabulary_size: usize,
    /// Number format of the weights.
    pub precision: Precision,
    /// Size and hash of each file, by its name within the folder.
    pub files: BTreeMap<String, FileEntry>,
    /// Whether the export was compared with the checkpoint it came from.
    #[serde(default)]
    pub verification: Verification,
    /// The shapes that TensorRT is to prepare for.
    pub tensorrt: Option<TensorRtProfile>,
}

/// Shapes of the graph's inputs, each as `input:rows x columns` (without spaces) and separated by commas, in the
/// notation of ONNX Runtime's TensorRT provider.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TensorRtProfile {
    /// The smallest.
    pub smallest: String,
    /// Those that the engine is tuned for.
    pub best: String,
    /// The largest.
    pub largest: String,
}

/// Size and hash of one file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FileEntry {
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// A bundle whose every file has been checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
    fingerprint: String,
}

impl Bundle {
    /// Reads `bundle.toml` in `folder` and checks size and SHA-256 of every file that it names.
    ///
    /// # Errors
    /// When the folder, the manifest or a file is missing, is malformed or differs.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        if !folder.is_dir() {
            return Err(BundleError::NoFolder(folder.to_owned()));
        }
        let manifest = read_manifest(folder)?;
        for (name, entry) in &manifest.files {
            verify_file(folder, name, entry)?;
        }
        let fingerprint = fingerprint(&manifest);
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
            fingerprint,
        })
    }

    /// What `bundle.toml` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file of the graph that is best for a device.
    pub fn graph_path(&self, device: Device) -> PathBuf {
        let packed = matches!(device, Device::Cuda(_))
            && self.manifest.files.contains_key(PACKED_GRAPH_FILE);
        self.folder.join(if packed {
            PACKED_GRAPH_FILE
        } else {
            GRAPH_FILE
        })
    }

    /// Bytes of the graph with its weights.
    pub(super) fn graph_bytes(&self) -> u64 {
        let parts = self.manifest.files.iter();
        parts
            .filter(|(name, _)| name.starts_with(GRAPH_FILE))
            .map(|(_, entry)| entry.bytes)
            .sum()
    }

    /// The tokenizer's file.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.folder.join(TOKENIZER_FILE)
    }

    /// Changes whenever the graph, its weights or the tokenizer change: 64 hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Why the bundle's answers may not be those of its checkpoint; `None` where they matched.
    pub fn doubt(&self) -> Option<String> {
        self.manifest.verification.doubt()
    }
}

fn read_manifest(folder: &Path) -> Result<Manifest, BundleError> {
    let path = folder.join(MANIFEST_FILE);
    let file = File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BundleError::NoManifest(folder.to_owned()),
        _ => BundleError::unreadable(&path, source),
    })?;
    let mut text = String::new();
    file.take(MAX_MANIFEST_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| BundleError::unreadable(&path, source))?;
    check_contract(&path, &text)?;
    let manifest: Manifest = toml::from_str(&text)
        .map_err(|error| BundleError::malformed(&path, error.to_string().trim_end()))?;
    check_manifest(&path, &manifest)?;
    Ok(manifest)
}

/// The contract is read before the rest: another contract may well have other keys.
fn check_contract(path: &Path, text: &str) -> Result<(), BundleError> {
    #[derive(Deserialize)]
    struct ContractOnly {
        contract: String,
    }
    let found = toml::from_str::<ContractOnly>(text)
        .map_err(|error| BundleError::malformed(path, error.to_string().trim_end()))?
        .contract;
    if found == CONTRACT {
        return Ok(());
    }
    Err(BundleError::OtherContract {
        path: path.to_owned(),
        found,
    })
}

fn check_manifest(path: &Path, manifest: &Manifest) -> Result<(), BundleError> {
    let bounds = [
        ("hidden_size", manifest.hidden_size, MAX_HIDDEN_SIZE),
        ("max_tokens", manifest.max_tokens, MAX_TOKENS),
        ("vocabulary_size", manifest.vocabulary_size, MAX_VOCABULARY),
    ];
    for (key, value, highest) in bounds {
        if !(1..=highest).contains(&value) {
            let reason = format!("{key} = {value} is not a number from 1 to {highest}");
            return Err(BundleError::malformed(path, &reason));
        }
    }
    for required in [GRAPH_FILE, TOKENIZER_FILE] {
        if !manifest.files.contains_key(required) {
            let reason = format!("[files.\"{required}\"] is missing");
            return Err(BundleError::malformed(path, &reason));
        }
    }
    // A name is looked up below the folder and must not lead out of it.
    for name in manifest.files.keys() {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            let reason = format!("[files.\"{name}\"] is not a plain file name");
            return Err(BundleError::malformed(path, &reason));
        }
    }
    Ok(())
}

fn verify_file(folder: &Path, name: &str, entry: &FileEntry) -> Result<(), BundleError> {
    let path = folder.join(name);
    let file = File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BundleError::FileMissing { path: path.clone() },
        _ => BundleError::unreadable(&path, source),
    })?;
    let found = file
        .metadata()
        .map_err(|source| BundleError::unreadable(&path, source))?
        .len();
    // The size first: it needs no reading and tells a truncated file from an altered one.
    if found != entry.bytes {
        return Err(BundleError::OtherSize {
            path,
            expected: entry.bytes,
            found,
        });
    }
    let sha256 =
        digest::of_reader(file).map_err(|source| BundleError::unreadable(&path, source))?;
    if !sha256.eq_ignore_ascii_case(&entry.sha256) {
        return Err(BundleError::OtherHash {
            path,
            expected: entry.sha256.clone(),
            found: sha256,
        });
    }
    Ok(())
}

/// Every file of a bundle bears on its answers: the graph, its weights and the tokenizer.
fn fingerprint(manifest: &Manifest) -> String {
    let mut text = CONTRACT.to_owned();
    for (name, entry) in &manifest.files {
        text += &format!("\n{name} {}", entry.sha256.to_ascii_lowercase());
    }
    digest::of_bytes(text.as_bytes())
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The folder does not exist.
    #[error(
        "the model bundle {} is not a folder; set model.bundle to a folder made by `make model`",
        .0.display()
    )]
    NoFolder(PathBuf),
    /// The folder has no manifest.
    #[error(
        "{} holds no bundle.toml; set model.bundle to a folder made by `make model`",
        .0.display()
    )]
    NoManifest(PathBuf),
    /// The manifest cannot be understood.
    #[error("{} is malformed: {reason}", .path.display())]
    Malformed {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The manifest speaks another contract.
    #[error(
        "{} is of contract {found:?}, this worker reads {CONTRACT:?}; export the checkpoint again with `make model`",
        .path.display()
    )]
    OtherContract {
        /// The manifest.
        path: PathBuf,
        /// The contract that it names.
        found: String,
    },
    /// A file that the manifest names does not exist.
    #[error("{} is named by bundle.toml and missing; fetch or export the bundle again", .path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
    },
    /// A file has another size: truncated, or not the file that was exported.
    #[error(
        "{} has {found} bytes, bundle.toml says {expected}; fetch or export the bundle again",
        .path.display()
    )]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Bytes that the manifest states.
        expected: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// A file has been altered.
    #[error(
        "{} has SHA-256 {found}, bundle.toml says {expected}; fetch or export the bundle again",
        .path.display()
    )]
    OtherHash {
        /// The file.
        path: PathBuf,
        /// Hash that the manifest states.
        expected: String,
        /// Hash that the file has.
        found: String,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BundleError {
    fn malformed(path: &Path, reason: &str) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
