//! The declared keys as documents: `config/default.toml` and `docs/configuration.md`. Pure.

use std::fmt::Write as _;

use super::Settings;
use super::shape::OPEN_TABLES;
use crate::keys::{Key, Section};

/// Columns of a line.
const WIDTH: usize = 100;

const TOML_HEADER: &str = "Every setting of tcbert-worker with its default, unit and range. The defaults are built into the \
program; this file documents them. Override them, later wins: config/NAME.toml (environment TCBERT_ENV=NAME), --config \
FILE, then environment variables TCBERT__SECTION__KEY, such as TCBERT__KAFKA__TOPIC=news. A key that does not exist, a \
value of the wrong type or out of range is an error that names the key, the value and where it came from. Keys that \
stand in comments are left out by default.";

const PAGE_HEADER: &str = "# Configuration

Settings come from these places; a later one wins:

1. the defaults below, which are built into the program;
2. `config/NAME.toml`, where the environment variable `TCBERT_ENV` is `NAME`;
3. the file of `--config FILE`;
4. environment variables: `kafka.topic` is `TCBERT__KAFKA__TOPIC`.

A key that does not exist, a value of another type or out of range is an error. It names the key,
the value, where the value came from and what is allowed.

This page and `config/default.toml` are generated from the declarations in `src/`.
";

/// `config/default.toml`: every key with its documentation, default and range.
pub fn default_toml() -> String {
    let mut text = commented(TOML_HEADER);
    for section in Settings::sections() {
        let (tables, values): (Vec<&Key>, Vec<&Key>) =
            section.keys.iter().partition(|key| is_table(key));
        let _ = write!(text, "\n{}[{}]\n", commented(&section.doc), section.name);
        for (number, key) in values.into_iter().enumerate() {
            let gap = if number == 0 { "" } else { "\n" };
            let _ = writeln!(
                text,
                "{gap}{}{}",
                commented(&documentation(key)),
                statement(key)
            );
        }
        for table in tables.into_iter().filter(|key| is_open(&section, key)) {
            let doc = commented(&table.doc);
            let _ = write!(text, "\n{doc}[{}.{}]\n", section.name, table.name);
        }
    }
    text
}

/// `docs/configuration.md`: the same for readers.
pub fn configuration_page() -> String {
    let mut text = PAGE_HEADER.to_owned();
    for section in Settings::sections() {
        let _ = write!(
            text,
            "\n## {}\n\n{}\n",
            section.name,
            wrapped(&section.doc, WIDTH)
        );
        for key in &section.keys {
            if is_table(key) && !is_open(&section, key) {
                continue;
            }
            let _ = write!(text, "\n### {}.{}\n\n", section.name, key.name);
            let _ = match (&key.default, &key.example) {
                (Some(_), _) if is_table(key) => writeln!(text, "A table, empty by default.\n"),
                (Some(default), _) => writeln!(text, "Default: `{default}`\n"),
                (None, Some(example)) => {
                    writeln!(text, "Left out by default; for example `{example}`\n")
                }
                (None, None) => Ok(()),
            };
            let _ = writeln!(text, "{}", wrapped(&documentation(key), WIDTH));
        }
    }
    text
}

/// Whether the key holds further keys.
fn is_table(key: &Key) -> bool {
    matches!(key.default, Some(toml::Value::Table(_)))
}

/// Whether the keys of a table are the user's own: otherwise it is a section.
fn is_open(section: &Section, key: &Key) -> bool {
    OPEN_TABLES.contains(&format!("{}.{}", section.name, key.name).as_str())
}

/// The key's documentation with its range.
fn documentation(key: &Key) -> String {
    match &key.range {
        Some((low, high)) => format!("{}\nFrom {low} to {high}.", key.doc),
        None => key.doc.clone(),
    }
}

fn statement(key: &Key) -> String {
    match (&key.default, &key.example) {
        (Some(default), _) => format!("{} = {default}", key.name),
        (None, Some(example)) => format!("# {} = {example}", key.name),
        (None, None) => String::new(),
    }
}

/// The text as lines of a comment.
fn commented(text: &str) -> String {
    let wrapped = wrapped(text, WIDTH - 2);
    let mut lines = String::new();
    for line in wrapped.lines() {
        let _ = writeln!(lines, "{}", format!("# {line}").trim_end());
    }
    lines
}

/// Paragraphs, and lines that begin with `- `, broken into lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for source in text.lines() {
        let alone = source.is_empty() || source.starts_with("- ");
        if alone || !open {
            lines.push(String::new());
        }
        open = !source.is_empty();
        for word in source.split_whitespace() {
            let line = lines.last().map_or(0, |line| line.chars().count());
            if line > 0 && line + 1 + word.chars().count() > width {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_say_what_is_declared() {
        for (path, expected) in [
            ("config/default.toml", default_toml()),
            ("docs/configuration.md", configuration_page()),
        ] {
            let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            if std::env::var_os("TCBERT_UPDATE").is_some() {
                std::fs::write(&file, &expected).unwrap();
            }
            let found = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(
                found == expected,
                "{path} is not what is declared; write it with TCBERT_UPDATE=1 cargo test --lib the_files_say"
            );
        }
    }

    #[test]
    fn every_key_is_documented_and_the_defaults_are_the_declared_ones() {
        for section in Settings::sections() {
            assert!(!section.doc.is_empty(), "{}", section.name);
            for key in &section.keys {
                assert!(!key.doc.is_empty(), "{}.{}", section.name, key.name);
                assert!(
                    key.default.is_some() || key.example.is_some(),
                    "{}.{}",
                    section.name,
                    key.name
                );
            }
        }
        let table: toml::Table = default_toml().parse().unwrap();
        for section in Settings::sections() {
            let mut path = section.name.split('.');
            let found = path.try_fold(&table, |found, name| found.get(name)?.as_table());
            for key in section.keys.iter().filter(|key| !is_table(key)) {
                assert_eq!(
                    found.unwrap().get(key.name),
                    key.default.as_ref(),
                    "{}",
                    key.name
                );
            }
        }
    }

    #[test]
    fn tables_without_a_section_are_those_with_keys_of_the_users() {
        let sections = Settings::sections();
        let names: Vec<&str> = sections.iter().map(|section| section.name).collect();
        let tables = sections.iter().flat_map(|section| {
            let tables = section.keys.iter().filter(|key| is_table(key));
            tables.map(|key| format!("{}.{}", section.name, key.name))
        });
        let open: Vec<String> = tables
            .filter(|table| !names.contains(&table.as_str()))
            .collect();
        assert_eq!(open, OPEN_TABLES);
    }

    #[test]
    fn lines_are_broken_at_words() {
        let text = "eins zwei drei vier\nfünf\n- alone\n- and alone\n\nnew";
        let expected = "eins zwei\ndrei vier\nfünf\n- alone\n- and\nalone\n\nnew";
        assert_eq!(wrapped(text, 9), expected);
    }
}
