//! Digests of what a name or an answer depends on, as hexadecimal digits. Must not know what is hashed.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The SHA-256 of `bytes` in 64 hexadecimal digits.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The SHA-256 of all that `source` has to read, in 64 hexadecimal digits.
///
/// # Errors
///
/// What reading `source` gives.
pub(crate) fn of_reader(mut source: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0_u8; CHUNK_BYTES];
    loop {
        let read = source.read(&mut chunk)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(hex::encode(hasher.finalize()));
        };
        hasher.update(bytes);
    }
}

/// The first `digits` of at most 64 digits of a SHA-256 over parts with their lengths, so that no two
/// lists of parts read the same.
pub(crate) fn of_parts<P: AsRef<[u8]>>(
    parts: impl IntoIterator<Item = P>,
    digits: usize,
) -> String {
    let mut digest = hex::encode(hash_of_parts(parts));
    digest.truncate(digits);
    digest
}

/// The first `bits` of at most 63 bits of the same SHA-256, as a number.
pub(crate) fn number_of_parts<P: AsRef<[u8]>>(
    parts: impl IntoIterator<Item = P>,
    bits: u32,
) -> i64 {
    let mut first = [0_u8; size_of::<u64>()];
    for (byte, hashed) in first.iter_mut().zip(hash_of_parts(parts)) {
        *byte = hashed;
    }
    let number = u64::from_be_bytes(first) >> (u64::BITS - bits.clamp(1, u64::BITS - 1));
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn hash_of_parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_published_one() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of_bytes(b""), empty);
        assert_eq!(of_reader(io::empty()).unwrap(), empty);
    }

    #[test]
    fn a_long_reader_is_read_to_its_end() {
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 1).map(|i| i as u8).collect();
        assert_eq!(of_reader(bytes.as_slice()).unwrap(), of_bytes(&bytes));
    }

    #[test]
    fn where_a_part_ends_is_part_of_the_digest() {
        assert_ne!(of_parts(["ab", "c"], 16), of_parts(["a", "bc"], 16));
        assert_ne!(of_parts(["ab", ""], 16), of_parts(["ab"], 16));
        assert_eq!(of_parts(["ab"], 16).len(), 16);
    }

    #[test]
    fn the_number_is_the_beginning_of_the_digits() {
        let digits = i64::from_str_radix(&of_parts(["ab"], 13), 16).unwrap();
        assert_eq!(number_of_parts(["ab"], 52), digits);
        assert_eq!(number_of_parts(["ab"], 53) >> 1, digits);
    }
}
