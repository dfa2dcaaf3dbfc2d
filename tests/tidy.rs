//! The house rules that a compiler does not check: who may import whom, where unsafe code and mio are, how long a function is. Knows the
//! sources as text.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up: a file imports from its own layer or from below. `docs/ARCHITECTURE.md` draws it.
const LAYERS: [&[&str]; 10] = [
    &["shell", "signal", "cause", "error", "exit", "scope", "token", "timer", "lifecycle", "tell"],
    &["sys"],
    &["process", "pipe", "helpers", "spawner", "stops", "stdio", "terminal", "queue", "events", "trace", "admission"],
    &["spawn", "cgroup"],
    &["context", "stats"],
    &["command", "adopt"],
    &["reactor"],
    &["driver", "tokens", "orphans"],
    &["async_io", "child"],
    &["lib", "main", "cli"],
];

fn files(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    pending.retain(|dir| dir.exists());
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The file or folder directly below `src`.
fn room(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn layer(room: &str) -> usize {
    LAYERS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("{room} has no layer"))
}

/// The part of a file before its unit tests.
fn code(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn imports_point_downward() {
    for (path, text) in files("src") {
        let own = room(&path);
        for line in code(&text).lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            for (at, _) in line.match_indices("crate::") {
                let name: String = line[at + 7..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let known = LAYERS.iter().any(|rooms| rooms.contains(&name.as_str()));
                if known && name != own {
                    assert!(layer(&name) <= layer(&own), "{}: {own} imports from {name}, above it", path.display());
                }
            }
        }
    }
}

/// The map in `docs/ARCHITECTURE.md` goes from the top down, too.
#[test]
fn the_map_is_in_the_order_of_the_layers() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md")).unwrap();
    let drawn = map.split("```text\nsrc/\n").nth(1).expect("no map").split("```").next().unwrap();
    let rooms = drawn.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).flat_map(|line| {
        let names = line.split_whitespace().take_while(|word| word.ends_with(".rs") || word.ends_with('/'));
        names.map(|name| name.trim_end_matches(".rs").trim_end_matches('/').to_owned())
    });
    let mut last = LAYERS.len();
    for room in rooms {
        assert!(layer(&room) <= last, "docs/ARCHITECTURE.md has {room} too far down");
        last = layer(&room);
    }
    assert_eq!(last, 0);
}

#[test]
fn the_lifecycle_decides_and_does_nothing() {
    let (_, text) = files("src").into_iter().find(|(path, _)| path.ends_with("lifecycle.rs")).unwrap();
    let code = code(&text);
    assert!(!code.contains("crate::") && !code.contains("std::"), "it imports something");
    assert!(!code.contains("_ =>"), "a cell is left out");
}

#[test]
fn unsafe_code_is_in_one_place() {
    // Not code: a demand on whoever calls it.
    const DECLARED: &str = "pub unsafe fn pre_exec(";
    for (path, text) in files("src") {
        let found = code(&text).lines().any(|line| {
            let line = line.split("//").next().unwrap().replace(DECLARED, "");
            line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
        });
        assert!(!found || room(&path) == "sys", "{}", path.display());
    }
}

#[test]
fn only_the_loop_names_mio() {
    for (path, text) in files("src") {
        assert!(!code(&text).contains("mio::") || room(&path) == "reactor", "{}", path.display());
    }
}

#[test]
fn every_file_says_what_it_is() {
    for dir in ["src", "tests", "benches", "examples"] {
        for (path, text) in files(dir) {
            let first = text.lines().next().unwrap_or_default();
            assert!(first.starts_with("//! ") || first.starts_with("#![doc"), "{}", path.display());
        }
    }
}

#[test]
fn functions_are_short() {
    for (path, text) in files("src") {
        let lines: Vec<&str> = code(&text).lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_function = line.split_whitespace().any(|word| word == "fn") && line.ends_with('{');
            if !is_function || line.trim_start().starts_with("//") {
                continue;
            }
            let end = lines[start..]
                .iter()
                .position(|l| l.len() > indent && l.starts_with(&format!("{}}}", " ".repeat(indent))));
            let length = end.unwrap_or(0) + 1;
            assert!(length <= 70, "{}:{}: {length} lines", path.display(), start + 1);
        }
    }
}

#[test]
fn nothing_is_left_for_later_and_no_test_sleeps() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    for dir in ["src", "tests", "benches", "examples"] {
        for (path, text) in files(dir) {
            assert!(!marks.iter().any(|mark| text.contains(mark)), "{}", path.display());
            let sleeps = text.contains(concat!("thread::", "sleep("));
            assert!(!sleeps || dir != "tests", "{}", path.display());
        }
    }
}

/// A public function as its text has it.
struct Function {
    /// File and line.
    place: String,
    docs: String,
    is_async: bool,
    /// What stands between `->` and the body.
    returns: String,
}

fn public_functions() -> Vec<Function> {
    let mut found = Vec::new();
    for (path, text) in files("src") {
        let lines: Vec<&str> = code(&text).lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let is_async = line.starts_with("pub async fn ") || line.starts_with("pub unsafe async fn ");
            if !is_async && !["pub fn ", "pub const fn ", "pub unsafe fn "].iter().any(|start| line.starts_with(start))
            {
                continue;
            }
            let above = lines[..at].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
            let docs = above.copied().collect::<Vec<_>>().join("\n");
            let end = lines[at..].iter().position(|line| line.ends_with('{') || line.ends_with(';')).unwrap();
            let signature = lines[at..=at + end].join(" ");
            let returns = signature.rsplit_once("-> ").map_or("", |(_, returns)| returns).to_owned();
            found.push(Function { place: format!("{}:{}", path.display(), at + 1), docs, is_async, returns });
        }
    }
    assert!(found.len() > 100, "{} functions", found.len());
    found
}

#[test]
fn what_can_fail_says_how() {
    for function in public_functions() {
        let fails = function.returns.contains("Result<");
        assert!(!fails || function.docs.contains("/// # Errors"), "{}: no `# Errors`", function.place);
    }
}

#[test]
fn what_can_be_dropped_half_way_says_what_becomes_of_it() {
    let futures: Vec<String> = files("src")
        .iter()
        .flat_map(|(_, text)| text.lines().filter_map(|line| Some(line.split_once("Future for ")?.1.to_owned())))
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric()).collect())
        .collect();
    for function in public_functions() {
        let returned = function.returns.trim_start_matches("impl ");
        let name: String = returned.chars().take_while(|c| c.is_alphanumeric()).collect();
        let is_future = function.is_async || name == "Future" || futures.contains(&name);
        let says = function.docs.contains("/// # Cancel safety");
        assert!(!is_future || says, "{}: no `# Cancel safety`", function.place);
    }
}

/// `docs/ARCHITECTURE.md` names it beside the promise it proves, or says what else it is for.
#[test]
fn every_test_says_what_it_proves() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md")).unwrap();
    for (path, text) in files("tests") {
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let named = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap();
        assert!(map.contains(&format!("`{named}`")), "docs/ARCHITECTURE.md does not name {named}");
        let is_about_us = ["tests/common/mod.rs", "tests/tidy.rs", "tests/docs.rs"].contains(&named);
        let says = ["romise", "scenarios"].iter().any(|word| head.concat().contains(word));
        assert!(says || is_about_us, "{named}: its first lines name no promise and no scenarios");
    }
}
