//! Times in a Parquet schema, nested ones too, and how they are written as text: with a `Z` where the
//! column is adjusted to UTC, without a zone where it is not, so that the configured one applies.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use parquet::basic::{ConvertedType, LogicalType, Repetition, TimeUnit};
use parquet::schema::types::Type;
use serde_json::Value;

/// How many of a column's whole numbers make a second.
type Ticks = i64;

const MILLISECONDS: Ticks = 1_000;
const MICROSECONDS: Ticks = 1_000_000;
const NANOSECONDS: Ticks = 1_000_000_000;

/// What is known of the times in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Times {
    /// Its whole numbers, or those of its lists, are times.
    Here { ticks: Ticks, in_utc: bool },
    /// Columns in it, or in the elements of its lists.
    Inside(HashMap<String, Times>),
    /// The keys and values of a map.
    Entries(Option<Box<Times>>, Option<Box<Times>>),
}

impl Times {
    /// The times in `column`; `None` where it has none.
    pub(super) fn of(column: &Type) -> Option<Self> {
        let info = column.get_basic_info();
        if column.is_primitive() {
            let Some(LogicalType::Timestamp(kind)) = info.logical_type_ref() else {
                return None;
            };
            return Some(Self::Here {
                ticks: match kind.unit {
                    TimeUnit::MILLIS => MILLISECONDS,
                    TimeUnit::MICROS => MICROSECONDS,
                    TimeUnit::NANOS => NANOSECONDS,
                },
                in_utc: kind.is_adjusted_to_u_t_c,
            });
        }
        let children = column.get_fields();
        match (info.converted_type(), children) {
            (ConvertedType::LIST, [repeated]) if is_element(repeated) => Self::of(repeated),
            (ConvertedType::LIST, [repeated]) => Self::of(repeated.get_fields().first()?),
            (ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE, [entry]) => {
                let mut parts = entry.get_fields().iter();
                let mut times = || parts.next().and_then(|part| Self::of(part)).map(Box::new);
                match (times(), times()) {
                    (None, None) => None,
                    (keys, values) => Some(Self::Entries(keys, values)),
                }
            }
            _ => {
                let inside = children.iter().filter_map(|child| {
                    let times = Self::of(child)?;
                    Some((child.name().to_owned(), times))
                });
                let inside: HashMap<_, _> = inside.collect();
                (!inside.is_empty()).then_some(Self::Inside(inside))
            }
        }
    }

    /// What is known of the column `name` in this one.
    pub(super) fn inside(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Inside(columns) => columns.get(name),
            Self::Here { .. } | Self::Entries(..) => None,
        }
    }

    /// What is known of a map's keys and values.
    pub(super) fn entries(&self) -> (Option<&Self>, Option<&Self>) {
        match self {
            Self::Entries(keys, values) => (keys.as_deref(), values.as_deref()),
            Self::Here { .. } | Self::Inside(_) => (None, None),
        }
    }

    /// A whole number of this column as a time; `None` where the column holds none.
    pub(super) fn read(&self, value: i64) -> Option<Value> {
        match self {
            Self::Here { ticks, in_utc } => Some(time(value, *ticks, *in_utc)),
            Self::Inside(_) | Self::Entries(..) => None,
        }
    }
}

/// Whether a list's only child is its element and not a layer around it; the backward compatibility
/// rules of the format, as the row reader applies them.
fn is_element(repeated: &Type) -> bool {
    if repeated.is_primitive() {
        return true;
    }
    let children = repeated.get_fields();
    let is_repeated = |child: &Type| {
        let info = child.get_basic_info();
        info.has_repetition() && info.repetition() == Repetition::REPEATED
    };
    let is_layer = repeated.get_basic_info().converted_type() == ConvertedType::LIST
        || matches!(children, [only] if is_repeated(only));
    let name = repeated.name();
    !is_layer && (children.len() > 1 || name == "array" || name.ends_with("_tuple"))
}

/// Milliseconds of a column that says no more, which is adjusted to UTC.
pub(super) fn milliseconds(value: i64) -> Value {
    time(value, MILLISECONDS, true)
}

/// Microseconds likewise.
pub(super) fn microseconds(value: i64) -> Value {
    time(value, MICROSECONDS, true)
}

fn time(value: i64, ticks: Ticks, in_utc: bool) -> Value {
    let nanoseconds = i128::from(value) * i128::from(NANOSECONDS / ticks);
    // Outside of what a calendar holds the number itself says more than nothing.
    let Ok(time) = Timestamp::from_nanosecond(nanoseconds) else {
        return Value::from(value);
    };
    Value::String(if in_utc {
        time.to_string()
    } else {
        TimeZone::UTC.to_datetime(time).to_string()
    })
}

#[cfg(test)]
mod tests {
    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn times(schema: &str) -> HashMap<String, Times> {
        let schema = parse_message_type(schema).unwrap();
        match Times::of(&schema) {
            Some(Times::Inside(columns)) => columns,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn times_are_found_wherever_they_stand() {
        let found = times(
            "message m {
                required int64 plain;
                required int64 utc (TIMESTAMP(MILLIS,true));
                required int64 local (TIMESTAMP(NANOS,false));
                optional group nested { required int64 at (TIMESTAMP(MICROS,false)); }
                optional group list (LIST) {
                    repeated group list { optional int64 element (TIMESTAMP(MILLIS,false)); }
                }
                optional group old (LIST) {
                    repeated group array { required int64 at (TIMESTAMP(MILLIS,false)); }
                }
                optional group map (MAP) {
                    repeated group key_value {
                        required binary key (UTF8);
                        optional int64 value (TIMESTAMP(MILLIS,false));
                    }
                }
            }",
        );
        let here = |ticks, in_utc| Times::Here { ticks, in_utc };
        assert_eq!(found.get("plain"), None);
        assert_eq!(found["utc"], here(MILLISECONDS, true));
        assert_eq!(found["local"], here(NANOSECONDS, false));
        assert_eq!(
            found["nested"].inside("at"),
            Some(&here(MICROSECONDS, false))
        );
        assert_eq!(found["list"], here(MILLISECONDS, false));
        assert_eq!(found["old"].inside("at"), Some(&here(MILLISECONDS, false)));
        assert_eq!(
            found["map"].entries(),
            (None, Some(&here(MILLISECONDS, false)))
        );
    }

    #[test]
    fn only_what_is_adjusted_to_utc_gets_a_zone() {
        let at = 1_769_846_400_250;
        assert_eq!(time(at, MILLISECONDS, true), "2026-01-31T08:00:00.25Z");
        assert_eq!(time(at, MILLISECONDS, false), "2026-01-31T08:00:00.25");
        assert_eq!(milliseconds(0), "1970-01-01T00:00:00Z");
        assert_eq!(microseconds(1_000_000), "1970-01-01T00:00:01Z");
        assert_eq!(time(i64::MAX, 1_000, true), i64::MAX);
    }
}
