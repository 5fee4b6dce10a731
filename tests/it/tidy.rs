//! House rules that no compiler checks: who may name which crate, who may import whom, how long
//! a file may be, and what must not be written down.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file before its tests.
const MAX_LINES: usize = 500;

/// Files and lines of code of a folder; a larger one has a module of its own inside it.
const MAX_FILES: usize = 12;
const MAX_FOLDER_LINES: usize = 2000;

/// A vendor's crate and the only place that may name it.
const VENDORS: [(&str, &str); 6] = [
    ("rdkafka", "src/kafka"),
    ("tokenizers", "src/tokenize"),
    ("ort", "src/model"),
    ("qdrant_client", "src/store"),
    ("qdrant_edge", "src/store"),
    ("config", "src/settings"),
];

/// Where a program is started, and which, as the code says it. Whatever else a test needs, a library
/// does: a minimal system does not even have `kill`.
const STARTED: [(&str, &str); 8] = [
    ("tests/", r#"env!("CARGO_BIN_EXE_tcbert-worker")"#),
    ("tests/", "std::env::current_exe().unwrap()"),
    // The program itself.
    ("src/bench/", "program"),
    // fetch.sh and run.sh of tests/kafka, which need Java and Maven.
    ("tests/it/apache_kafka.rs", "script"),
    // The check of the prerequisites, and make.
    ("tests/it/prerequisites.rs", "check_script()"),
    ("tests/it/prerequisites.rs", "link"),
    // The program itself, or an older one to compare with.
    ("tests/it/memory.rs", "program"),
    // Compares what the tests compute by themselves, where it happens to be installed.
    ("tests/it/alerts/rules.rs", r#""promtool""#),
];

struct Source {
    /// Path from the repository's root, with `/`.
    path: String,
    /// Text before the tests.
    code: String,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "__pycache__" {
                files_below(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap();
    path.to_str().unwrap().replace('\\', "/")
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files_below(&root().join("src"), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("\n#[cfg(test)]").next().unwrap();
            Source {
                path: relative(path),
                code: code.to_owned(),
            }
        })
        .collect()
}

/// Whether `line` names the crate `name` as the first part of a path.
fn names_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

/// Modules of this crate that a text imports or names.
fn modules_named(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    _ if depth > 0 => {}
                    ',' => modules.extend(first_name(&std::mem::take(&mut name))),
                    c => name.push(c),
                }
            }
            modules.extend(first_name(&name));
        } else {
            modules.extend(first_name(rest));
        }
    }
    modules
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text
        .trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

pub fn without_comments(code: &str) -> String {
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The modules of `lib.rs` in their order.
fn reading_order() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod ")))
        .map(|rest| rest.trim_end_matches(';').to_owned())
        .collect()
}

fn report(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}:\n{}", faults.join("\n"));
}

#[test]
fn a_vendor_is_named_in_one_place_only() {
    let mut faults = Vec::new();
    for source in sources() {
        for (vendor, home) in VENDORS {
            let at_home =
                source.path == format!("{home}.rs") || source.path.starts_with(&format!("{home}/"));
            let code = without_comments(&source.code);
            if !at_home && code.lines().any(|line| names_crate(line, vendor)) {
                faults.push(format!("{} names {vendor}", source.path));
            }
        }
    }
    report("a vendor's crate has one home (see VENDORS)", &faults);
}

#[test]
fn a_module_imports_only_from_those_above_it() {
    let order = reading_order();
    assert!(order.len() > 5, "lib.rs lists {order:?}");
    let place = |module: &str| order.iter().position(|other| other == module);
    let mut faults = Vec::new();
    for source in sources() {
        let inner = source.path.strip_prefix("src/").unwrap();
        let own = inner.split(['/', '.']).next().unwrap();
        let Some(own_place) = place(own) else {
            continue;
        };
        for module in modules_named(&without_comments(&source.code)) {
            if place(&module).is_some_and(|other| other > own_place) {
                faults.push(format!("{} imports {module}", source.path));
            }
        }
    }
    report(
        "the order in lib.rs is the order in which data flows",
        &faults,
    );
}

#[test]
fn a_file_is_short_enough_to_read() {
    let faults: Vec<_> = sources()
        .iter()
        .filter(|source| source.code.lines().count() > MAX_LINES)
        .map(|source| format!("{}: {} lines", source.path, source.code.lines().count()))
        .collect();
    report(
        &format!("at most {MAX_LINES} lines before the tests"),
        &faults,
    );
}

/// Lines that are neither empty nor comments.
fn lines_of_code(code: &str) -> usize {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    code.lines().filter(is_code).count()
}

#[test]
fn a_folder_holds_one_module() {
    let mut folders: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for source in sources() {
        let (folder, file) = source.path.rsplit_once('/').unwrap();
        if file == "tests.rs" || folder.ends_with("/tests") {
            continue;
        }
        let (files, lines) = folders.entry(folder.to_owned()).or_default();
        *files += 1;
        *lines += lines_of_code(&source.code);
    }
    let faults: Vec<_> = folders
        .iter()
        .filter(|(_, (files, lines))| *files > MAX_FILES || *lines > MAX_FOLDER_LINES)
        .map(|(folder, (files, lines))| format!("{folder}: {files} files, {lines} lines of code"))
        .collect();
    report(
        &format!("at most {MAX_FILES} files and {MAX_FOLDER_LINES} lines of code a folder"),
        &faults,
    );
}

#[test]
fn a_file_says_what_it_owns() {
    let faults: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.code.starts_with("//! "))
        .map(|source| source.path)
        .collect();
    report("a file starts with what it owns and must not know", &faults);
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    // Put together here so that this file does not hold them itself.
    let paths = ["work", "root", "home"].map(|folder| format!("/{folder}/"));
    let mut files: Vec<_> = [
        "Makefile",
        "README.md",
        "README.zh-CN.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "ARCHITECTURE.md",
        "Cargo.toml",
        "deny.toml",
        ".ci/run",
    ]
    .iter()
    .map(|name| root().join(name))
    .collect();
    for folder in [
        "src",
        "config",
        "migrations",
        "tools",
        "tests",
        "benches",
        "docker",
        "docs",
    ] {
        files_below(&root().join(folder), &mut files);
    }
    let mut faults = Vec::new();
    for file in files {
        // What is not text holds no path that anyone wrote.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if paths.iter().any(|path| starts_a_path(line, path)) {
                faults.push(format!("{}:{}: {line}", relative(&file), number + 1));
            }
        }
    }
    report("paths of a machine mean nothing on another", &faults);
}

/// Whether `path` occurs where a path begins, not within an address or a longer path.
fn starts_a_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/}~$".contains(c))
    })
}

/// What a text starts as other programs: the arguments of `Command::new`.
fn started(code: &str) -> Vec<String> {
    let mut programs = Vec::new();
    for (at, prefix) in code.match_indices("Command::new(") {
        let mut depth = 0_usize;
        let argument = code[at + prefix.len()..].chars().take_while(|c| {
            match c {
                '(' => depth += 1,
                ')' if depth == 0 => return false,
                ')' => depth -= 1,
                _ => {}
            }
            true
        });
        let argument: String = argument.filter(|c| !c.is_whitespace()).collect();
        programs.push(argument.trim_end_matches(',').to_owned());
    }
    programs
}

#[test]
fn nothing_starts_a_program_that_the_readme_does_not_name() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches"] {
        files_below(&root().join(folder), &mut files);
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let mut faults = Vec::new();
    for file in files {
        let path = relative(&file);
        // This file holds examples.
        if path == "tests/it/tidy.rs" {
            continue;
        }
        let code = without_comments(&fs::read_to_string(&file).unwrap());
        for program in started(&code) {
            let is_listed =
                |(home, listed): &(&str, &str)| path.starts_with(home) && program == *listed;
            if !STARTED.iter().any(is_listed) {
                faults.push(format!("{path} starts {program}"));
            }
        }
    }
    report("a minimal system has few programs (see STARTED)", &faults);
}

#[test]
fn the_rules_see_what_they_are_meant_to_see() {
    assert!(names_crate("use ort::session::Session;", "ort"));
    assert!(names_crate("let x: ort::Error = y;", "ort"));
    assert!(!names_crate("use crate::export::ort::X;", "ort"));
    assert!(!names_crate("let x = export::y;", "ort"));
    let modules = modules_named("use crate::{bounds, store::{a, b}, model};\ncrate::decode::x()");
    let expected = ["bounds", "decode", "model", "store"];
    assert_eq!(modules, expected.map(String::from).into());
    assert!(starts_a_path("see /data/x", "/data/"));
    assert!(!starts_a_path("https://x.example/data/x", "/data/"));
    let programs = started("Command::new(\n  a(b))\n.arg(c); Command::new(\"kill\")");
    assert_eq!(programs, ["a(b)", "\"kill\""]);
}
