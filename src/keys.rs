//! Configuration keys: `section!` declares name, type, default, range and documentation of each once. The
//! settings structs, `config/default.toml` and `docs/configuration.md` follow from it.
//! Must not know where a value came from.

use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value outside what its key allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The key below the stage's own section, such as `linger_ms`.
    pub key: String,
    /// The value as the user would recognise it; never a secret.
    pub value: String,
    /// What is allowed instead, as the end of the sentence "allowed is ...".
    pub allowed: String,
}

impl Violation {
    /// A violation of `key`, whose `value` is not what `allowed` says.
    pub fn new(key: &str, value: impl Display, allowed: impl Display) -> Self {
        Self {
            key: key.to_owned(),
            value: value.to_string(),
            allowed: allowed.to_string(),
        }
    }
}

/// What `section!` makes of a declaration.
pub trait Declared: DeserializeOwned + Default {
    /// Name of the section, such as `kafka` or `decode.fields`.
    const NAME: &'static str;

    /// Every key with its documentation, default and range.
    fn section() -> Section;

    /// The numbers outside their ranges.
    fn out_of_range(&self) -> Vec<Violation>;
}

/// A section of the configuration as its stage declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// What it configures.
    pub doc: String,
    /// Its keys, in the order of their declaration.
    pub keys: Vec<Key>,
}

/// One key of a section.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Its name below the section.
    pub name: &'static str,
    /// What it does, with its unit; a line that begins with `- ` stands alone.
    pub doc: String,
    /// `None` for a key that is left out by default.
    pub default: Option<toml::Value>,
    /// A value of a key that is left out by default.
    pub example: Option<toml::Value>,
    /// The least and the greatest value of a number.
    pub range: Option<(String, String)>,
}

/// What a key's number is, where it is set.
pub trait Number<T> {
    /// `None` where the key is left out.
    fn number(&self) -> Option<T>;
}

impl<T: Copy> Number<T> for T {
    fn number(&self) -> Option<T> {
        Some(*self)
    }
}

impl<T: Copy> Number<T> for Option<T> {
    fn number(&self) -> Option<T> {
        *self
    }
}

/// The violation of a number that is set and not within `range`.
#[doc(hidden)]
pub fn check_range<T: PartialOrd + Display>(
    key: &str,
    value: &impl Number<T>,
    range: &RangeInclusive<T>,
) -> Option<Violation> {
    // `contains` is false for NaN as well, which no key accepts.
    let number = value.number().filter(|number| !range.contains(number))?;
    let (low, high) = bounds_of(value, range);
    let allowed = format!("a number from {low} to {high}");
    Some(Violation::new(key, number, allowed))
}

/// The ends of a range for the numbers of a key.
#[doc(hidden)]
pub fn bounds_of<T: Display>(_: &impl Number<T>, range: &RangeInclusive<T>) -> (String, String) {
    (range.start().to_string(), range.end().to_string())
}

/// The values of a section; keys that are left out are not among them.
#[doc(hidden)]
pub fn values_of(section: &(impl Serialize + Debug)) -> toml::Table {
    match toml::Value::try_from(section) {
        Ok(toml::Value::Table(values)) => values,
        // A struct of values always is a table.
        _ => toml::Table::new(),
    }
}

/// The lines of a documentation comment, without the blank that each begins with.
#[doc(hidden)]
pub fn doc_of(lines: &[&str]) -> String {
    let bare = lines
        .iter()
        .map(|line| line.strip_prefix(' ').unwrap_or(line));
    bare.collect::<Vec<_>>().join("\n")
}

/// Declares a section: `key: Type = default, example VALUE, in LEAST..=GREATEST;`, documented by its comment.
/// `example` is for a key that is left out by default, `in` for numbers. Makes the struct with its defaults, and
/// [`Declared`] for it.
macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        $(#[derive($($derive:ident),*)])?
        $vis:vis struct $name:ident in $section:literal {
            $(
                $(#[doc = $key_doc:literal])*
                $key:ident: $type:ty = $default:expr $(, example $example:expr)? $(, in $range:expr)?;
            )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize $(, $($derive),*)?)]
        #[serde(default, deny_unknown_fields)]
        $vis struct $name {
            $(
                $(#[doc = $key_doc])*
                $vis $key: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $crate::keys::Declared for $name {
            const NAME: &'static str = $section;

            fn section() -> $crate::keys::Section {
                let declared = Self::default();
                let defaults = $crate::keys::values_of(&declared);
                $crate::keys::Section {
                    name: $section,
                    doc: $crate::keys::doc_of(&[$($doc),*]),
                    keys: vec![$(
                        $crate::keys::Key {
                            name: stringify!($key),
                            doc: $crate::keys::doc_of(&[$($key_doc),*]),
                            default: defaults.get(stringify!($key)).cloned(),
                            example: None$(.or(Some(toml::Value::from($example))))?,
                            range: None$(.or(Some($crate::keys::bounds_of(&declared.$key, &($range)))))?,
                        },
                    )*],
                }
            }

            fn out_of_range(&self) -> Vec<$crate::keys::Violation> {
                let checked: Vec<Option<$crate::keys::Violation>> = vec![$($(
                    $crate::keys::check_range(stringify!($key), &self.$key, &($range)),
                )?)*];
                checked.into_iter().flatten().collect()
            }
        }
    };
}
pub(crate) use section;

/// An address without what stands before its `@`: a user and a password are nobody else's business.
pub fn without_user(address: &str) -> String {
    let Some((user, host)) = address.rsplit_once('@') else {
        return address.to_owned();
    };
    let scheme = user.find("://").map_or("", |end| &user[..end + 3]);
    format!("{scheme}(secret)@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    section! {
        /// How things are done.
        /// Well.
        struct Sample in "sample" {
            /// Things at once.
            things: usize = 4, in 1..=8;
            /// Share of them.
            share: Option<f64> = None, example 0.5, in 0.0..=1.0;
            /// Who does them.
            name: String = "me".to_owned();
        }
    }

    #[test]
    fn a_section_says_what_was_declared() {
        let section = Sample::section();
        assert_eq!(
            (section.name, section.doc.as_str()),
            ("sample", "How things are done.\nWell.")
        );
        let [things, share, name] = &section.keys[..] else {
            panic!("{section:?}");
        };
        assert_eq!(things.default, Some(toml::Value::from(4)));
        assert_eq!(things.range, Some(("1".to_owned(), "8".to_owned())));
        assert_eq!((&share.default, &share.example), (&None, &Some(0.5.into())));
        assert_eq!((name.name, &name.range), ("name", &None));
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let keys = |sample: &Sample| -> Vec<String> {
            let violations = sample.out_of_range().into_iter();
            violations.map(|violation| violation.key).collect()
        };
        assert_eq!(keys(&Sample::default()), Vec::<String>::new());
        let wrong = Sample {
            things: 9,
            share: Some(f64::NAN),
            ..Sample::default()
        };
        assert_eq!(keys(&wrong), ["things", "share"]);
        assert_eq!(wrong.out_of_range()[0].allowed, "a number from 1 to 8");
    }

    #[test]
    fn an_address_is_shown_without_its_user() {
        for (address, shown) in [
            ("http://host:6334", "http://host:6334"),
            ("http://me:hunter2@host:1", "http://(secret)@host:1"),
            ("http://me:hun@ter2@host:1", "http://(secret)@host:1"),
            ("me:hunter2@host", "(secret)@host"),
            ("", ""),
        ] {
            assert_eq!(without_user(address), shown);
        }
    }
}
