//! What `make` says on a machine that lacks something: each prerequisite in turn is taken out of a
//! PATH of stand-ins. `tools/clean-root.sh` does the same with the packages themselves.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::processes;

/// A program that the check looks for, and what the stand-in says to every question.
const PROGRAMS: [(&str, &str); 7] = [
    ("c++", ""),
    ("cargo", "cargo 1.95.0 (0000000 2026-01-01)"),
    ("cc", ""),
    ("make", ""),
    ("perl", ""),
    ("python3", "3.11 venv download"),
    ("rustc", "rustc 1.95.0 (0000000 2026-01-01)"),
];

/// A PATH of stand-ins.
struct Programs {
    folder: tempfile::TempDir,
}

impl Programs {
    fn all() -> Self {
        let programs = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for (name, says) in PROGRAMS {
            programs.put(name, says);
        }
        programs
    }

    fn without(name: &str) -> Self {
        let programs = Self::all();
        fs::remove_file(programs.folder.path().join(name)).unwrap();
        programs
    }

    fn with(name: &str, says: &str) -> Self {
        let programs = Self::all();
        programs.put(name, says);
        programs
    }

    fn put(&self, name: &str, says: &str) {
        let file = self.folder.path().join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a command that finds these programs alone, and no other variable of ours.
    fn run(&self, mut command: Command) -> Output {
        let root = env!("CARGO_MANIFEST_DIR");
        command.env_clear().env("PATH", self.folder.path());
        processes::run(command.current_dir(root))
    }

    fn check(&self, needs: &[&str]) -> Output {
        let mut command = Command::new(check_script());
        command.args(needs);
        self.run(command)
    }
}

fn check_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/check-prerequisites.sh")
}

/// The `make` that this machine has.
fn make() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|folder| folder.join("make"))
        .find(|file| file.is_file())
        .expect("make")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Which of the programs a message lists as missing. Memory and disk may be short on any machine.
fn named(message: &str) -> Vec<&'static str> {
    let is_named = |name: &&str| {
        let line = format!("  - {name}");
        message.lines().any(|other| {
            let rest = other.strip_prefix(&line);
            rest.is_some_and(|rest| rest.starts_with([':', ' ']))
        })
    };
    PROGRAMS
        .map(|(name, _)| name)
        .into_iter()
        .filter(is_named)
        .collect()
}

/// The packages of the line that installs the prerequisites, in order.
fn packages(text: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.contains("apt-get install"));
    let line = line.expect("a line with apt-get install");
    let (_, packages) = line.split_once("--no-install-recommends").unwrap();
    let mut packages: Vec<_> = packages.split_whitespace().map(String::from).collect();
    packages.sort();
    packages
}

#[test]
fn make_demo_names_the_prerequisite_that_is_missing_before_it_does_anything() {
    for (missing, _) in PROGRAMS {
        let programs = Programs::without(missing);
        let output = programs.run(make_demo(&programs));
        let message = said(&output);
        assert_eq!(
            output.status.code(),
            Some(2),
            "without {missing}: {message}"
        );
        assert_eq!(named(&message), [missing], "{message}");
        assert!(output.stdout.is_empty(), "without {missing}: {output:?}");
    }
}

/// The real make by a link of another name, so that `make` can be missing in the PATH.
fn make_demo(programs: &Programs) -> Command {
    let link = programs.folder.path().join("real-make");
    symlink(make(), &link).unwrap();
    let mut command = Command::new(link);
    command.arg("demo");
    command
}

#[test]
fn all_that_is_missing_is_named_at_once_and_is_what_the_readme_installs() {
    let programs = Programs {
        folder: tempfile::tempdir().unwrap(),
    };
    let output = programs.check(&["build"]);
    let message = said(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(named(&message), PROGRAMS.map(|(name, _)| name), "{message}");
    assert!(message.contains("dnf install"), "{message}");
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    // Certificates are files with fixed places, which no test can take away.
    let others = |packages: Vec<String>| -> Vec<String> {
        packages
            .into_iter()
            .filter(|name| name != "ca-certificates")
            .collect()
    };
    assert_eq!(
        others(packages(&message)),
        others(packages(&readme.unwrap()))
    );
}

#[test]
fn what_is_there_is_not_named() {
    let message = said(&Programs::all().check(&["build", "venv", "models"]));
    assert_eq!(named(&message), [""; 0], "{message}");
}

#[test]
fn a_version_that_is_too_old_is_named_with_what_it_says() {
    for (name, says) in [
        ("rustc", "rustc 1.63.0 (0000000 2022-01-01)"),
        ("cargo", "cargo 1.94.1 (0000000 2026-01-01)"),
        ("python3", "3.6 venv download"),
        ("python3", "Python was not found"),
    ] {
        let message = said(&Programs::with(name, says).check(&["build"]));
        assert_eq!(named(&message), [name], "{message}");
        assert!(message.contains(says), "{message}");
    }
    let message = said(&Programs::with("python3", "3.10 venv download").check(&["models"]));
    assert_eq!(named(&message), ["python3"], "{message}");
}

#[test]
fn a_python_without_venv_is_enough_for_the_build_where_it_has_pip() {
    let without_both = Programs::with("python3", "3.11 download");
    assert_eq!(named(&said(&without_both.check(&["build"]))), ["python3"]);
    let with_pip = Programs::with("python3", "3.11 pip download");
    assert_eq!(named(&said(&with_pip.check(&["build"]))), [""; 0]);
    assert_eq!(
        named(&said(&with_pip.check(&["build", "venv"]))),
        ["python3"]
    );
}

#[test]
fn without_java_the_tests_against_kafka_are_skipped_unless_they_are_required() {
    let programs = Programs::all();
    let output = programs.check(&["kafka"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).contains("will be skipped"), "{output:?}");

    let mut command = Command::new(check_script());
    command.env_clear().env("TCBERT_TEST_REQUIRE_KAFKA", "1");
    command.env("PATH", programs.folder.path());
    let output = processes::run(command.arg("kafka"));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("- Java"), "{output:?}");
}
