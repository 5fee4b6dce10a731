//! One file as records: each with its index, its bytes and its age. Must not know the job or who reads.
//!
//! A record that cannot be read is a record too: its raw bytes go on, so that decoding refuses it and
//! it is accounted for.

use std::collections::HashSet;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::FilesError;
use super::cells::CellReader;
use super::input::{Input, Layout, open};
use super::parquet::ParquetRows;
use super::split::{Ends, Raw, Splitter};
use crate::source::timestamp;

/// Bytes that decompressed data is read in.
const BUFFER_BYTES: usize = 64 << 10;

/// What some programs write at the start of a file in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What reading a file needs to know besides the file.
#[derive(Debug, Clone)]
pub(super) struct ReadOptions {
    /// Of longer records one byte more is kept.
    pub(super) max_value_bytes: usize,
    /// JSON pointer to a record's age; empty for none.
    pub(super) timestamp_field: String,
    /// Zone of ages that name none.
    pub(super) time_zone: TimeZone,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileRecord {
    /// Index of the line or row, from zero; the header of a CSV does not count.
    pub(super) index: i64,
    pub(super) value: Vec<u8>,
    pub(super) timestamp_ms: Option<i64>,
    /// Why the bytes are no value.
    pub(super) fault: Option<Box<str>>,
}

/// Reads one file from some record on.
pub(super) struct Records {
    path: PathBuf,
    options: ReadOptions,
    rows: Rows,
    bytes_done: Arc<AtomicU64>,
}

enum Rows {
    Lines {
        splitter: Splitter<BufReader<Box<dyn Read>>>,
        next_index: i64,
    },
    Csv {
        splitter: Splitter<BufReader<Box<dyn Read>>>,
        header: Vec<String>,
        cells: CellReader,
        next_index: i64,
    },
    Parquet {
        rows: Box<ParquetRows>,
        before: u64,
    },
}

/// Bytes of a record, and its fields where they are known or why there are none.
struct Parsed {
    bytes: Vec<u8>,
    fields: Option<Value>,
    fault: Option<Box<str>>,
}

impl Parsed {
    fn of_object(object: Value) -> Self {
        Self {
            bytes: object.to_string().into_bytes(),
            fields: Some(object),
            fault: None,
        }
    }
}

impl Records {
    /// Opens `input` at the record of index `first`; `bytes_done` counts what is read of the file.
    pub(super) fn open(
        input: &Input,
        first: i64,
        options: &ReadOptions,
        bytes_done: &Arc<AtomicU64>,
    ) -> Result<Self, FilesError> {
        let limit = options.max_value_bytes;
        let splitter = |ends| {
            let bytes = open(input, Arc::clone(bytes_done))?;
            Ok::<_, FilesError>(Splitter::new(
                BufReader::with_capacity(BUFFER_BYTES, bytes),
                ends,
                limit,
            ))
        };
        let rows = match input.layout {
            Layout::JsonLines => Rows::Lines {
                splitter: splitter(Ends::Lines)?,
                next_index: 0,
            },
            Layout::Csv { delimiter } => {
                let mut splitter = splitter(Ends::Rows { delimiter })?;
                let header = splitter
                    .next()
                    .map_err(|error| FilesError::read(&input.path, &error))?;
                let mut cells = CellReader::new(delimiter);
                let header = header_names(&header.unwrap_or_default(), &mut cells)
                    .ok_or_else(|| FilesError::NoHeader(input.path.clone()))?;
                if let Some(name) = repeated(&header) {
                    return Err(FilesError::RepeatedColumn {
                        path: input.path.clone(),
                        name: name.to_owned(),
                    });
                }
                Rows::Csv {
                    splitter,
                    header,
                    cells,
                    next_index: 0,
                }
            }
            Layout::Parquet => {
                let rows = Box::new(ParquetRows::open(input, first)?);
                Rows::Parquet { rows, before: 0 }
            }
        };
        let mut records = Self {
            path: input.path.clone(),
            options: options.clone(),
            rows,
            bytes_done: Arc::clone(bytes_done),
        };
        records.skip_to(first)?;
        Ok(records)
    }

    /// The next record; blank lines are none. `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<FileRecord>, FilesError> {
        while let Some((index, content)) = self.next_raw()? {
            let mut parsed = match content {
                Content::Raw(raw) => match self.parse(index, raw)? {
                    Some(parsed) => parsed,
                    None => continue,
                },
                Content::Object(object) => Parsed::of_object(object),
            };
            parsed
                .bytes
                .truncate(self.options.max_value_bytes.saturating_add(1));
            let timestamp_ms = parsed.fields.and_then(|fields| age(&fields, &self.options));
            return Ok(Some(FileRecord {
                index,
                value: parsed.bytes,
                timestamp_ms,
                fault: parsed.fault,
            }));
        }
        Ok(None)
    }

    /// A line's or row's bytes as JSON, and its fields where they can be read; `None` when blank.
    fn parse(&mut self, index: i64, raw: Raw) -> Result<Option<Parsed>, FilesError> {
        let text = raw
            .bytes
            .strip_prefix(BYTE_ORDER_MARK)
            .unwrap_or(&raw.bytes);
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        if let Rows::Csv { header, cells, .. } = &mut self.rows {
            return Ok(Some(match object_of_row(&raw, header, cells) {
                Ok(object) => Parsed::of_object(object),
                Err(fault) => Parsed {
                    bytes: raw.bytes,
                    fields: None,
                    fault: Some(fault),
                },
            }));
        }
        if index == 0 && is_one_value(text) {
            return Err(FilesError::OneJsonValue(self.path.clone()));
        }
        let wanted = !raw.cut && !self.options.timestamp_field.is_empty();
        let fields = wanted.then(|| serde_json::from_slice(text).ok()).flatten();
        Ok(Some(Parsed {
            bytes: raw.bytes,
            fields,
            fault: None,
        }))
    }

    fn next_raw(&mut self) -> Result<Option<(i64, Content)>, FilesError> {
        match &mut self.rows {
            Rows::Lines {
                splitter,
                next_index,
            }
            | Rows::Csv {
                splitter,
                next_index,
                ..
            } => {
                let raw = splitter
                    .next()
                    .map_err(|error| FilesError::read(&self.path, &error))?;
                let index = *next_index;
                *next_index += 1;
                Ok(raw.map(|raw| (index, Content::Raw(raw))))
            }
            Rows::Parquet { rows, before } => {
                let row = rows.next()?;
                let done = rows.bytes_done();
                self.bytes_done
                    .fetch_add(done.saturating_sub(*before), Ordering::Relaxed);
                *before = done;
                Ok(row.map(|(index, object)| (index, Content::Object(object))))
            }
        }
    }

    /// Passes over what an earlier run has done.
    fn skip_to(&mut self, first: i64) -> Result<(), FilesError> {
        while let Rows::Lines { next_index, .. } | Rows::Csv { next_index, .. } = &self.rows {
            if *next_index >= first || self.next_raw()?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

enum Content {
    Raw(Raw),
    Object(Value),
}

/// A file with one JSON array or one object over many lines would be one bad record a line; no record
/// begins with a bracket.
fn is_one_value(first_line: &[u8]) -> bool {
    let first_line = first_line.trim_ascii();
    first_line.starts_with(b"[") || first_line == b"{"
}

/// The names of the columns; those without one are numbered.
fn header_names(raw: &Raw, cells: &mut CellReader) -> Option<Vec<String>> {
    let bytes = raw
        .bytes
        .strip_prefix(BYTE_ORDER_MARK)
        .unwrap_or(&raw.bytes);
    if raw.cut || bytes.iter().all(u8::is_ascii_whitespace) {
        return None;
    }
    let names = cells.cells(bytes)?;
    let named = names
        .iter()
        .enumerate()
        .map(|(index, name)| match name.trim() {
            "" => format!("column_{}", index + 1),
            name => name.to_owned(),
        });
    Some(named.collect())
}

/// The first name that stands there twice.
fn repeated(names: &[String]) -> Option<&str> {
    let mut seen = HashSet::new();
    names
        .iter()
        .map(String::as_str)
        .find(|name| !seen.insert(*name))
}

/// A row as an object of texts, without its empty cells; the error says why it does not fit the header.
fn object_of_row(raw: &Raw, header: &[String], cells: &mut CellReader) -> Result<Value, Box<str>> {
    if raw.cut {
        return Err("the row is longer than decode.max_value_bytes allows".into());
    }
    let cells = cells
        .cells(&raw.bytes)
        .ok_or("the row of the CSV cannot be read: it is not UTF-8, or a quote in it stays open")?;
    if cells.len() != header.len() {
        return Err(format!(
            "the row of the CSV has {} cells, its header {}; put cells that contain the delimiter or \
             line ends in quotes",
            cells.len(),
            header.len()
        )
        .into());
    }
    let filled = header
        .iter()
        .zip(cells)
        .filter(|(_, cell)| !cell.is_empty());
    let object = filled.map(|(name, cell)| (name.clone(), Value::String(cell.to_owned())));
    Ok(Value::Object(object.collect::<Map<_, _>>()))
}

/// A record's age in milliseconds since the epoch, where it says one that can be read.
fn age(record: &Value, options: &ReadOptions) -> Option<i64> {
    if options.timestamp_field.is_empty() {
        return None;
    }
    let value = record.pointer(&options.timestamp_field)?;
    timestamp::of_value(value, &options.time_zone).map(jiff::Timestamp::as_millisecond)
}
