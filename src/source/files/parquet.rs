//! The rows of a Parquet file as JSON objects. The only module that names the `parquet` crate.
//! Must not know what a field means.

mod times;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::basic::Compression;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::FilesError;
use super::input::Input;
use times::Times;

/// Rows decoded at once.
const BATCH_ROWS: usize = 256;

/// The rows of one file.
pub(super) struct ParquetRows {
    input: Input,
    rows: RowIter<'static>,
    /// What the row reader does not tell of times; `None` where there are none.
    times: Option<Times>,
    next_row: i64,
    all_rows: i64,
}

impl ParquetRows {
    /// Opens a file at row `first`; row groups before it are not read.
    pub(super) fn open(input: &Input, first: i64) -> Result<Self, FilesError> {
        guarded(input, || {
            let file =
                || File::open(&input.path).map_err(|error| FilesError::read(&input.path, &error));
            let damaged = |error: parquet::errors::ParquetError| damaged(input, &error);
            let whole = SerializedFileReader::new(file()?).map_err(damaged)?;
            let metadata = whole.metadata();
            if let Some(reason) = unreadable_column(metadata) {
                return Err(FilesError::Damaged {
                    path: input.path.clone(),
                    reason,
                });
            }
            let (mut skipped_groups, mut skipped_rows, mut all_rows) = (0, 0_i64, 0_i64);
            for group in metadata.row_groups() {
                all_rows = all_rows.saturating_add(group.num_rows());
                if all_rows <= first {
                    skipped_groups += 1;
                    skipped_rows = all_rows;
                }
            }
            let times = Times::of(metadata.file_metadata().schema());
            let options = ReadOptionsBuilder::new()
                .with_predicate(Box::new(move |_, index| index >= skipped_groups))
                .build();
            let reader =
                SerializedFileReader::new_with_options(file()?, options).map_err(damaged)?;
            let rows = RowIter::from_file_into(Box::new(reader)).with_batch_size(BATCH_ROWS);
            let mut opened = Self {
                input: input.clone(),
                rows,
                times,
                next_row: skipped_rows,
                all_rows,
            };
            while opened.next_row < first && opened.read()?.is_some() {}
            Ok(opened)
        })
    }

    /// The next row and its index.
    pub(super) fn next(&mut self) -> Result<Option<(i64, Value)>, FilesError> {
        let input = self.input.clone();
        guarded(&input, || {
            let index = self.next_row;
            let Some(row) = self.read()? else {
                return Ok(None);
            };
            Ok(Some((index, object(&row, self.times.as_ref()))))
        })
    }

    /// How many of the file's bytes the rows read so far stand for.
    pub(super) fn bytes_done(&self) -> u64 {
        let done = u128::from(self.next_row.unsigned_abs()) * u128::from(self.input.bytes);
        let share = done / u128::from(self.all_rows.unsigned_abs().max(1));
        u64::try_from(share).unwrap_or(self.input.bytes)
    }

    fn read(&mut self) -> Result<Option<Row>, FilesError> {
        match self.rows.next() {
            None => Ok(None),
            Some(Ok(row)) => {
                self.next_row += 1;
                Ok(Some(row))
            }
            Some(Err(error)) => Err(damaged(&self.input, &error)),
        }
    }
}

/// The library panics on files that are damaged in some ways, and on types it does not know.
fn guarded<T>(
    input: &Input,
    read: impl FnOnce() -> Result<T, FilesError>,
) -> Result<T, FilesError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(FilesError::Damaged {
            path: input.path.clone(),
            reason: "it is damaged, or has a column of a type that cannot be read".to_owned(),
        })
    })
}

/// Says which column is compressed in a way that this program was not built for.
fn unreadable_column(metadata: &ParquetMetaData) -> Option<String> {
    let mut columns = metadata
        .row_groups()
        .iter()
        .flat_map(RowGroupMetaData::columns);
    columns.find_map(|column| {
        let method = match column.compression() {
            Compression::BROTLI(_) => "Brotli",
            Compression::LZO => "LZO",
            _ => return None,
        };
        Some(format!(
            "its column {} is compressed with {method}; write the file with zstd, snappy, gzip, lz4 or without \
             compression",
            column.column_path()
        ))
    })
}

fn damaged(input: &Input, error: &parquet::errors::ParquetError) -> FilesError {
    FilesError::Damaged {
        path: input.path.clone(),
        reason: error.to_string(),
    }
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn object(row: &Row, times: Option<&Times>) -> Value {
    let columns = row.get_column_iter().map(|(name, field)| {
        let times = times.and_then(|times| times.inside(name));
        (name.clone(), json(field, times))
    });
    Value::Object(columns.collect())
}

/// A column's value; `times` is what its schema says of times in it.
fn json(field: &Field, times: Option<&Times>) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => times
            .and_then(|times| times.read(*value))
            .unwrap_or_else(|| Value::from(*value)),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => float(f64::from(*value)),
        Field::Float(value) => float(f64::from(*value)),
        Field::Double(value) => float(*value),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => Value::String(match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.to_owned(),
            Err(_) => STANDARD.encode(bytes.data()),
        }),
        Field::TimestampMillis(value) => times
            .and_then(|times| times.read(*value))
            .unwrap_or_else(|| times::milliseconds(*value)),
        Field::TimestampMicros(value) => times
            .and_then(|times| times.read(*value))
            .unwrap_or_else(|| times::microseconds(*value)),
        Field::Group(row) => object(row, times),
        Field::ListInternal(list) => {
            let elements = list.elements().iter();
            Value::Array(elements.map(|element| json(element, times)).collect())
        }
        Field::MapInternal(map) => Value::Object(entries(map.entries(), times)),
        // Dates, times of day and decimals have one way of being written.
        Field::Decimal(_) | Field::Date(_) | Field::TimeMillis(_) | Field::TimeMicros(_) => {
            Value::String(field.to_string())
        }
    }
}

fn entries(entries: &[(Field, Field)], times: Option<&Times>) -> Map<String, Value> {
    let (keys, values) = times.map_or((None, None), Times::entries);
    entries
        .iter()
        .map(|(key, value)| {
            let name = match json(key, keys) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            (name, json(value, values))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::BrotliLevel;
    use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData};
    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::*;

    #[test]
    fn a_column_of_unknown_compression_is_named() {
        let schema = parse_message_type("message m { required binary title (UTF8); }").unwrap();
        let schema = Arc::new(SchemaDescriptor::new(Arc::new(schema)));
        let compressed = |compression| {
            let column = ColumnChunkMetaData::builder(schema.column(0))
                .set_compression(compression)
                .build()
                .unwrap();
            let group = RowGroupMetaData::builder(Arc::clone(&schema))
                .set_column_metadata(vec![column])
                .build()
                .unwrap();
            let file = FileMetaData::new(1, 1, None, None, Arc::clone(&schema), None);
            unreadable_column(&ParquetMetaData::new(file, vec![group]))
        };
        assert_eq!(compressed(Compression::SNAPPY), None);
        let reason = compressed(Compression::BROTLI(BrotliLevel::default())).unwrap();
        assert!(
            reason.contains("column \"title\"") && reason.contains("Brotli"),
            "{reason}"
        );
    }
}
