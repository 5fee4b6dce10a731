//! No files of `src/` import each other around a circle, so that one can be read without those above it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::tidy::{files_below, root, without_comments};

/// A module's path below the crate.
type Module = Vec<String>;

/// The modules that each one imports.
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// The code of every file, without comments, tests and the scopes of visibility.
fn code_of_files() -> BTreeMap<Module, String> {
    let source = root().join("src");
    let mut paths = Vec::new();
    files_below(&source, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let is_test = |path: &Path| {
        path.iter()
            .any(|part| part == "tests" || part == "tests.rs")
    };
    paths.retain(|path| !is_test(path) && !path.ends_with("src/main.rs"));
    paths
        .iter()
        .map(|path| {
            let module = module_of(path.strip_prefix(&source).unwrap());
            (module, bare(&fs::read_to_string(path).unwrap()))
        })
        .collect()
}

fn module_of(path: &Path) -> Module {
    let mut module: Module = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .collect();
    if module
        .last()
        .is_some_and(|last| last == "mod" || last == "lib")
    {
        module.pop();
    }
    module
}

fn bare(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod").next().unwrap();
    let code = code.split("\n#[cfg(all(test").next().unwrap();
    let mut code = without_comments(code);
    while let Some(at) = code.find("pub(in ") {
        let end = at + code[at..].find(')').unwrap();
        code.replace_range(at..=end, "pub");
    }
    code
}

/// The tree of a `use`, as whole paths; what is renamed keeps its own name.
fn expanded(tree: &str) -> Vec<String> {
    let Some((before, group)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_owned()];
    };
    let group = group.rsplit_once('}').unwrap().0;
    let (mut depth, mut part, mut paths) = (0, String::new(), Vec::new());
    for c in group.chars().chain([',']) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !part.trim().is_empty() {
                    paths.extend(expanded(&std::mem::take(&mut part)));
                }
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    paths
        .iter()
        .map(|path| format!("{}{path}", before.trim()))
        .collect()
}

/// Paths of the `use` statements: those that are exported again, and the others; then the code without them.
fn uses(code: &str) -> (Vec<String>, Vec<String>, String) {
    let (mut exported, mut imported, mut rest) = (Vec::new(), Vec::new(), String::new());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let statement = line.trim_start();
        let is_public = statement.starts_with("pub") && statement.contains(" use ");
        if !(is_public || statement.starts_with("use ")) {
            rest.push_str(line);
            rest.push('\n');
            continue;
        }
        let mut whole = statement.to_owned();
        while !whole.contains(';') {
            whole.push_str(lines.next().unwrap());
        }
        let tree = whole.split_once("use ").unwrap().1.trim_end_matches(';');
        if is_public {
            exported.extend(expanded(tree));
        } else {
            imported.extend(expanded(tree));
        }
    }
    (exported, imported, rest)
}

/// Paths that code names in full, and those that begin with one of `children`.
fn named(code: &str, children: &[String]) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split(|c| !is_path(c))
        .filter(|word| {
            word.split_once("::").is_some_and(|(first, _)| {
                ["crate", "super"].contains(&first) || children.iter().any(|child| child == first)
            })
        })
        .map(ToOwned::to_owned)
        .collect()
}

struct Crate {
    code: BTreeMap<Module, String>,
    /// Where names that a module exports again come from.
    exports: BTreeMap<(Module, String), Module>,
}

impl Crate {
    fn read(code: BTreeMap<Module, String>) -> Self {
        let mut all = Self {
            code,
            exports: BTreeMap::new(),
        };
        let mut exports = BTreeMap::new();
        for (module, code) in &all.code {
            for path in uses(code).0 {
                if let Some((home, name)) = all.split(module, &path)
                    && home != *module
                {
                    exports.insert((module.clone(), name), home);
                }
            }
        }
        all.exports = exports;
        all
    }

    fn children(&self, module: &Module) -> Vec<String> {
        self.code
            .keys()
            .filter(|other| other.len() == module.len() + 1 && other.starts_with(module))
            .map(|other| other.last().unwrap().clone())
            .collect()
    }

    /// The module that a path written in `module` leads to, and the name that it means there.
    fn split(&self, module: &Module, path: &str) -> Option<(Module, String)> {
        let mut parts = path.split("::").map(str::trim).peekable();
        let mut at = match *parts.peek()? {
            "crate" => {
                parts.next();
                Vec::new()
            }
            "self" => {
                parts.next();
                module.clone()
            }
            "super" => {
                let mut at = module.clone();
                while parts.next_if(|part| *part == "super").is_some() {
                    at.pop();
                }
                at
            }
            first if self.children(module).iter().any(|child| child == first) => module.clone(),
            _ => return None,
        };
        let mut last = String::new();
        for part in parts {
            at.push(part.to_owned());
            if !self.code.contains_key(&at) {
                last = at.pop().unwrap_or_default();
                break;
            }
        }
        if last.is_empty() || last == "self" {
            last = at.last().cloned().unwrap_or_default();
        }
        Some((at, last))
    }

    /// Follows what is exported again to where it stands.
    fn home(&self, mut module: Module, name: &str) -> Module {
        while let Some(home) = self.exports.get(&(module.clone(), name.to_owned())) {
            module.clone_from(home);
        }
        module
    }

    fn imports(&self) -> Imports {
        let of = |(module, code): (&Module, &String)| {
            let (_, mut paths, rest) = uses(code);
            paths.extend(named(&rest, &self.children(module)));
            let homes = paths
                .iter()
                .filter_map(|path| self.split(module, path))
                .map(|(home, name)| self.home(home, &name))
                .filter(|home| home != module && self.code.contains_key(home));
            (module.clone(), homes.collect())
        };
        self.code.iter().map(of).collect()
    }
}

/// Modules that reach themselves, each with how.
fn cycles(imports: &Imports) -> Vec<String> {
    let mut found = Vec::new();
    for start in imports.keys() {
        let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut open = vec![start];
        while let Some(module) = open.pop() {
            for next in &imports[module] {
                if !before.contains_key(next) {
                    before.insert(next, module);
                    open.push(next);
                }
            }
        }
        if before.contains_key(start) {
            let mut way = vec![start.join("::")];
            let mut at = before[start];
            while at != start {
                way.push(at.join("::"));
                at = before[at];
            }
            way.push(start.join("::"));
            way.reverse();
            found.push(way.join(" -> "));
        }
    }
    found
}

#[test]
fn no_files_import_each_other() {
    let imports = Crate::read(code_of_files()).imports();
    assert!(imports.len() > 100, "{} files", imports.len());
    assert!(imports.values().filter(|from| !from.is_empty()).count() > 80);
    let found = cycles(&imports);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_circle_is_found_through_what_is_exported_again() {
    let files = |texts: &[(&str, &str)]| {
        let file = |(path, text): &(&str, &str)| (module_of(Path::new(path)), bare(text));
        Crate::read(texts.iter().map(file).collect()).imports()
    };
    let round = [
        ("lib.rs", "pub mod a;\npub mod b;\n"),
        ("a/mod.rs", "mod x;\npub use x::{X, Y as Z};\n"),
        ("a/x.rs", "use crate::b::{self, deep::{Deep}};\n"),
        ("b/mod.rs", "pub mod deep;\nfn f() { crate::a::X::new() }\n"),
        ("b/deep.rs", "// use crate::a::X;\n"),
    ];
    let found = cycles(&files(&round));
    assert_eq!(found, ["a::x -> b -> a::x", "b -> a::x -> b"]);
    let mut straight = round;
    straight[3].1 = "pub mod deep;\n#[cfg(test)]\nmod tests { use crate::a::X; }\n";
    assert!(cycles(&files(&straight)).is_empty());
}
