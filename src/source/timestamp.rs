//! Times as data and command lines write them: the one rule for publication, age and bounds of a job.
//! Pure: the zone is passed in, no clock is read.

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::fmt::rfc2822;
use jiff::fmt::temporal::Pieces;
use jiff::tz::{Offset, TimeZone};
use serde_json::{Number, Value};

/// Numbers below this are seconds (as seconds, the year 5138; as milliseconds, March 1973).
const FIRST_MILLISECONDS: f64 = 1e11;

/// Numbers from here on are neither seconds nor milliseconds of a plausible year.
const PAST_MILLISECONDS: f64 = 1e14;

/// Longest text that is tried as a time.
const LONGEST_TIME_BYTES: usize = 64;

/// The zone that `name` names: `UTC`, an offset (`+08:00`, `-0330`, `+8`) or an IANA name.
pub(crate) fn zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" || name == "Z" {
        return Some(TimeZone::UTC);
    }
    if name.starts_with(['+', '-']) {
        return offset(name).map(TimeZone::fixed);
    }
    TimeZone::get(name).ok()
}

fn offset(name: &str) -> Option<Offset> {
    let sign = if name.starts_with('-') { -1 } else { 1 };
    let digits = name.get(1..)?;
    let (hours, minutes) = match digits.split_once(':') {
        Some(parts) => parts,
        None if digits.len() == 4 => digits.split_at_checked(2)?,
        None => (digits, "0"),
    };
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<i32>().ok()).flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

/// A time written as text: RFC 3339, a date with or without a time of day (in the zone that it names,
/// otherwise in `zone`), RFC 2822 as feeds write it, or digits since the epoch.
pub(crate) fn parse(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let text = text.trim();
    if text.len() > LONGEST_TIME_BYTES {
        return None;
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let dashed = with_dashes(text);
    if let Ok(pieces) = Pieces::parse(&dashed) {
        return from_pieces(&pieces, zone);
    }
    if text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
    {
        return text
            .parse::<Number>()
            .ok()
            .and_then(|number| from_epoch(&number));
    }
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// A time in the value of a JSON field: text or a number.
pub(crate) fn of_value(value: &Value, zone: &TimeZone) -> Option<Timestamp> {
    match value {
        Value::String(text) => parse(text, zone),
        Value::Number(number) => from_epoch(number),
        _ => None,
    }
}

/// `2026/01/31` as `2026-01-31`; the name of a zone in brackets keeps its slash.
fn with_dashes(text: &str) -> String {
    let (time, zone) = text.split_at(text.find('[').unwrap_or(text.len()));
    time.replace('/', "-") + zone
}

/// An offset that is written says which moment is meant, then a zone that is written; a zone that is
/// not known makes it no time, because another one would give another moment.
fn from_pieces(pieces: &Pieces<'_>, zone: &TimeZone) -> Option<Timestamp> {
    let time = pieces.time().unwrap_or(Time::midnight());
    let local = pieces.date().to_datetime(time);
    if let Some(offset) = pieces.to_numeric_offset() {
        return offset.to_timestamp(local).ok();
    }
    let named = pieces.to_time_zone().ok()?;
    named.as_ref().unwrap_or(zone).to_timestamp(local).ok()
}

/// Seconds or milliseconds since 1970, told apart by their size; fractions are kept to the
/// millisecond.
pub(crate) fn from_epoch(number: &Number) -> Option<Timestamp> {
    let value = number.as_f64()?;
    if !value.is_finite() || value.abs() >= PAST_MILLISECONDS {
        return None;
    }
    let in_seconds = value.abs() < FIRST_MILLISECONDS;
    if let Some(whole) = number.as_i64() {
        let parsed = if in_seconds {
            Timestamp::from_second(whole)
        } else {
            Timestamp::from_millisecond(whole)
        };
        return parsed.ok();
    }
    let milliseconds = if in_seconds { value * 1000.0 } else { value };
    // Below 1e14 in size, so the cast loses the fraction only.
    Timestamp::from_millisecond(milliseconds.round() as i64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> Option<String> {
        parse(text, &TimeZone::UTC).map(|time| time.to_string())
    }

    #[test]
    fn texts_that_are_times() {
        for (text, expected) in [
            (
                "2026-01-31T08:00:00Z",
                "2026-01-31T00:00:00Z".replace("00:00:00", "08:00:00"),
            ),
            (
                "2026-01-31T08:00:00+08:00",
                "2026-01-31T00:00:00Z".to_owned(),
            ),
            (
                "2026-01-31 08:00:00+08:00",
                "2026-01-31T00:00:00Z".to_owned(),
            ),
            (
                "2026-01-31T08:00:00.250Z",
                "2026-01-31T08:00:00.25Z".to_owned(),
            ),
            ("2026-01-31 08:00:00", "2026-01-31T08:00:00Z".to_owned()),
            (" 2026-01-31 08:00 ", "2026-01-31T08:00:00Z".to_owned()),
            ("2026/01/31 08:00:00", "2026-01-31T08:00:00Z".to_owned()),
            ("2026-01-31", "2026-01-31T00:00:00Z".to_owned()),
            ("1769846400", "2026-01-31T08:00:00Z".to_owned()),
            ("1769846400000", "2026-01-31T08:00:00Z".to_owned()),
            (
                "Sat, 31 Jan 2026 08:00:00 +0800",
                "2026-01-31T00:00:00Z".to_owned(),
            ),
        ] {
            assert_eq!(utc(text).as_deref(), Some(expected.as_str()), "{text}");
        }
    }

    #[test]
    fn texts_that_are_none() {
        for text in [
            "",
            "yesterday",
            "2026-13-01",
            "2026-01-32 00:00:00",
            "--",
            "1e999",
            "NaN",
            "99999999999999999999",
            "2026-01-31T25:00:00Z",
            "31.01.2026",
            "去年",
            &"9".repeat(500),
        ] {
            assert_eq!(utc(text), None, "{text}");
        }
    }

    #[test]
    fn a_zone_or_offset_that_is_written_is_kept() {
        let tokyo = zone("+09:00").unwrap();
        for text in [
            "2026-01-31T08:00:00[Asia/Shanghai]",
            "2026-01-31 08:00[Asia/Shanghai]",
            "2026/01/31 08:00:00[Asia/Shanghai]",
            "2026-01-31T08:00:00[+08:00]",
            "2026-01-31T08:00:00+08:00[Asia/Shanghai]",
            "2026/01/31 08:00:00+08:00",
            "2026/01/31T00:00:00Z",
            "2026-01-31 09:00:00",
            "2026-01-31T09:00:00[u-ca=gregory]",
        ] {
            let time = parse(text, &tokyo).map(|time| time.to_string());
            assert_eq!(time.as_deref(), Some("2026-01-31T00:00:00Z"), "{text}");
        }
        let midnight = parse("2026-01-31[Asia/Shanghai]", &tokyo).unwrap();
        assert_eq!(midnight.to_string(), "2026-01-30T16:00:00Z");
        for text in [
            "2026-01-31T08:00:00[Mars/Olympus]",
            "2026-01-31T08:00:00[",
            "2026-01-31T08:00:00[Asia/Shanghai",
        ] {
            assert_eq!(parse(text, &tokyo), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_seconds_or_milliseconds_by_size() {
        let time = |text: &str| {
            let number: Number = serde_json::from_str(text).unwrap();
            from_epoch(&number).map(|time| time.to_string())
        };
        assert_eq!(time("0").as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(time("-86400").as_deref(), Some("1969-12-31T00:00:00Z"));
        assert_eq!(
            time("1769846400.5").as_deref(),
            Some("2026-01-31T08:00:00.5Z")
        );
        assert_eq!(
            time("1769846400123").as_deref(),
            Some("2026-01-31T08:00:00.123Z")
        );
        assert_eq!(
            time("1769846400123456"),
            None,
            "microseconds are refused, not misread"
        );
        assert_eq!(time("18446744073709551615"), None);
    }

    #[test]
    fn a_time_without_zone_is_read_in_the_configured_one() {
        let shanghai = zone("+08:00").unwrap();
        let time = parse("2026-01-31 08:00:00", &shanghai).unwrap();
        assert_eq!(time.to_string(), "2026-01-31T00:00:00Z");
        let half = zone("-0330").unwrap();
        let time = parse("2026-01-31 08:00:00", &half).unwrap();
        assert_eq!(time.to_string(), "2026-01-31T11:30:00Z");
        for wrong in ["", "+", "+25", "+08:61", "Mars/Olympus", "+-8", "+8:"] {
            assert!(zone(wrong).is_none(), "{wrong}");
        }
    }
}
