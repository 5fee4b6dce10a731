//! Bounds of configuration values: each stage states its own, `settings` gathers and reports them.
//! Must not know where a value came from.

use std::fmt::{Debug, Display};

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

/// Notes a violation when `value` is outside `lowest..=highest`.
pub fn check_range<T>(violations: &mut Vec<Violation>, key: &str, value: T, lowest: T, highest: T)
where
    T: PartialOrd + Display + Debug + Copy,
{
    // `contains` is false for NaN as well, which no key accepts.
    if !(lowest..=highest).contains(&value) {
        violations.push(Violation::new(
            key,
            value,
            format!("a number from {lowest} to {highest}"),
        ));
    }
}

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
