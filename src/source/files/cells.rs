//! The cells of one CSV row at a time. The only place that names the `csv` crate.
//! Must not know what a column means; `split.rs` says where a row ends.

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;

use csv::{Reader, ReaderBuilder, StringRecord, Terminator};

/// Bytes that the library reads at once.
const BUFFER_BYTES: usize = 8 << 10;

/// Hands rows to one parser of the library: building a parser costs more than parsing a row.
#[derive(Debug)]
pub(super) struct CellReader {
    delimiter: u8,
    row: Rc<RefCell<Row>>,
    reader: Reader<Feed>,
    /// Bytes that the parser has to have read when it is done with the rows so far.
    fed: u64,
    record: StringRecord,
}

#[derive(Debug, Default)]
struct Row {
    bytes: Vec<u8>,
    taken: usize,
    /// The parser asked for more than the row: it is inside an open quote.
    starved: bool,
}

/// The parser's end.
#[derive(Debug)]
struct Feed(Rc<RefCell<Row>>);

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut row = self.0.borrow_mut();
        let rest = row.bytes.get(row.taken..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        row.taken += count;
        row.starved |= count == 0;
        Ok(count)
    }
}

impl CellReader {
    pub(super) fn new(delimiter: u8) -> Self {
        let row = Rc::new(RefCell::new(Row::default()));
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Feed(Rc::clone(&row)));
        Self {
            delimiter,
            row,
            reader,
            fed: 0,
            record: StringRecord::new(),
        }
    }

    /// The cells of a row without its line end; `None` when it is not one row of UTF-8.
    pub(super) fn cells(&mut self, row: &[u8]) -> Option<&StringRecord> {
        {
            let mut fed = self.row.borrow_mut();
            fed.bytes.clear();
            fed.bytes.extend_from_slice(row);
            fed.bytes.push(b'\n');
            fed.taken = 0;
            self.fed += fed.bytes.len() as u64;
        }
        let read = self.reader.read_record(&mut self.record);
        // A quote that stays open, or anything else that leaves the parser inside or behind a row,
        // must not spoil the next one.
        let whole = matches!(read, Ok(true)) && !self.row.borrow().starved;
        let in_step = whole && self.reader.position().byte() == self.fed;
        if !in_step {
            *self = Self::new(self.delimiter);
            return None;
        }
        Some(&self.record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(reader: &mut CellReader, row: &[u8]) -> Option<Vec<String>> {
        let record = reader.cells(row)?;
        Some(record.iter().map(str::to_owned).collect())
    }

    #[test]
    fn a_bad_row_does_not_spoil_the_next() {
        let mut reader = CellReader::new(b',');
        for bad in [
            &b"1,\"open"[..],
            b"\xff,a",
            b"a\nb,c",
            b"",
            b"\"a\"\"",
            b"1,\"open\n\"\"\n",
        ] {
            assert_eq!(
                cells(&mut reader, b"1,\"x,\"\"y\"\"\",\r").unwrap(),
                ["1", "x,\"y\"", "\r"]
            );
            assert_eq!(cells(&mut reader, bad), None, "{bad:?}");
            let long = "z".repeat(3 * BUFFER_BYTES);
            assert_eq!(
                cells(&mut reader, format!("{long},2").as_bytes()).unwrap(),
                [&long, "2"]
            );
        }
    }
}
