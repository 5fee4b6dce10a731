//! Splits bytes into lines or into the rows of a CSV, each bounded in memory.
//! Must not know what a record means.

use std::io::{self, BufRead};

/// One record's bytes, without its line end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Raw {
    /// At most one byte more than the bound, so that a longer record is known by its size.
    pub(super) bytes: Vec<u8>,
    /// Whether the record was longer than that, and the rest left out.
    pub(super) cut: bool,
}

/// Where records end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// At each line feed.
    Lines,
    /// At each line feed outside quotes.
    Rows { delimiter: u8 },
}

/// Reads records of at most `limit` bytes; of longer ones `limit + 1` bytes are kept.
#[derive(Debug)]
pub(super) struct Splitter<R> {
    reader: R,
    ends: Ends,
    limit: usize,
}

/// Where the scan of a CSV row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside quotes: the end of the field or half of an escaped quote.
    QuoteSeen,
}

impl<R: BufRead> Splitter<R> {
    pub(super) fn new(reader: R, ends: Ends, limit: usize) -> Self {
        Self {
            reader,
            ends,
            limit,
        }
    }

    /// The next record; `None` at the end of the bytes.
    pub(super) fn next(&mut self) -> io::Result<Option<Raw>> {
        let mut raw = Raw::default();
        let mut quoting = Quoting::FieldStart;
        let mut read_any = false;
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                return Ok(read_any.then_some(raw));
            }
            read_any = true;
            let end = match self.ends {
                Ends::Lines => chunk.iter().position(|byte| *byte == b'\n'),
                Ends::Rows { delimiter } => row_end(chunk, delimiter, &mut quoting),
            };
            let (taken, used) = end.map_or((chunk.len(), chunk.len()), |end| (end, end + 1));
            let room = (self.limit + 1).saturating_sub(raw.bytes.len());
            raw.cut |= taken > room;
            raw.bytes
                .extend_from_slice(chunk.get(..taken.min(room)).unwrap_or_default());
            self.reader.consume(used);
            if end.is_some() {
                if !raw.cut && raw.bytes.last() == Some(&b'\r') {
                    raw.bytes.pop();
                }
                return Ok(Some(raw));
            }
        }
    }
}

/// The index of the line feed that ends the row, if it stands in this chunk.
fn row_end(chunk: &[u8], delimiter: u8, quoting: &mut Quoting) -> Option<usize> {
    for (index, byte) in chunk.iter().enumerate() {
        *quoting = match (*quoting, *byte) {
            (Quoting::Quoted, b'"') => Quoting::QuoteSeen,
            (Quoting::Quoted, _) => Quoting::Quoted,
            (_, b'\n') => return Some(index),
            (_, byte) if byte == delimiter => Quoting::FieldStart,
            (Quoting::FieldStart | Quoting::QuoteSeen, b'"') => Quoting::Quoted,
            _ => Quoting::Plain,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(bytes: &[u8], ends: Ends, limit: usize, buffer: usize) -> Vec<Raw> {
        let reader = io::BufReader::with_capacity(buffer, bytes);
        let mut splitter = Splitter::new(reader, ends, limit);
        std::iter::from_fn(|| splitter.next().unwrap()).collect()
    }

    fn texts(bytes: &str, ends: Ends) -> Vec<String> {
        let whole = split(bytes.as_bytes(), ends, 1000, 4096);
        assert_eq!(
            whole,
            split(bytes.as_bytes(), ends, 1000, 1),
            "chunks change nothing"
        );
        whole
            .into_iter()
            .map(|raw| String::from_utf8(raw.bytes).unwrap())
            .collect()
    }

    const ROWS: Ends = Ends::Rows { delimiter: b',' };

    #[test]
    fn lines_end_at_line_feeds() {
        assert_eq!(texts("a\r\n\nb", Ends::Lines), ["a", "", "b"]);
        assert_eq!(texts("a\n", Ends::Lines), ["a"]);
        assert_eq!(texts("", Ends::Lines), Vec::<String>::new());
        assert_eq!(texts("\"a\nb\"", Ends::Lines), ["\"a", "b\""]);
    }

    #[test]
    fn rows_end_outside_quotes() {
        assert_eq!(texts("a,\"b\nc\"\r\nd,e", ROWS), ["a,\"b\nc\"", "d,e"]);
        assert_eq!(
            texts("\"say \"\"no\"\"\nnow\",1\n2", ROWS),
            ["\"say \"\"no\"\"\nnow\",1", "2"]
        );
        assert_eq!(
            texts("5\" disk,a\nb", ROWS),
            ["5\" disk,a", "b"],
            "a quote inside a plain field"
        );
    }

    #[test]
    fn a_long_record_is_cut_and_the_next_is_whole() {
        let bytes = [&[b'a'; 5000][..], b"\nnext\n"].concat();
        for buffer in [1, 7, 8192] {
            let records = split(&bytes, Ends::Lines, 10, buffer);
            assert_eq!(
                records[0],
                Raw {
                    bytes: vec![b'a'; 11],
                    cut: true
                }
            );
            assert_eq!(
                records[1],
                Raw {
                    bytes: b"next".to_vec(),
                    cut: false
                }
            );
        }
        let edge = split(b"0123456789\n01234567890\n", Ends::Lines, 10, 64);
        assert_eq!(
            edge.iter()
                .map(|raw| (raw.bytes.len(), raw.cut))
                .collect::<Vec<_>>(),
            [(10, false), (11, false)]
        );
    }

    proptest! {
        #[test]
        fn rows_are_those_of_the_csv_library(
            rows in prop::collection::vec(prop::collection::vec("[a-c\",\n 标]{0,6}", 2..4), 1..8),
            buffer in 1_usize..40,
        ) {
            let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
            for row in &rows {
                writer.write_record(row).unwrap();
            }
            let bytes = writer.into_inner().unwrap();
            let split = split(&bytes, ROWS, 1000, buffer);
            let parsed: Vec<Vec<String>> = split
                .iter()
                .map(|raw| {
                    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&raw.bytes[..]);
                    let record = reader.records().next().unwrap().unwrap();
                    record.iter().map(str::to_owned).collect()
                })
                .collect();
            prop_assert_eq!(parsed, rows);
        }
    }
}
