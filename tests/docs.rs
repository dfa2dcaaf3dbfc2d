//! What the documents promise of themselves: links that lead somewhere, code that is compiled, files and commands that are there. Knows
//! them as text.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All documents: (path from the root, text).
fn documents() -> Vec<(String, String)> {
    let names = |dir: &str| {
        let entries = fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.into_iter().filter(|name| name.ends_with(".md"))
    };
    let mut paths: Vec<String> = names(".").chain(names("docs").map(|name| format!("docs/{name}"))).collect();
    paths.sort();
    assert!(paths.len() >= 8, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// The lines outside code blocks, and the code blocks: (language, text).
fn split(text: &str) -> (Vec<&str>, Vec<(String, String)>) {
    let (mut prose, mut blocks) = (Vec::new(), Vec::new());
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, code))) => *code += &format!("{line}\n"),
            (None, None) => prose.push(line),
        }
    }
    assert!(open.is_none(), "a code block is not closed");
    (prose, blocks)
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    heading.chars().filter_map(kept).collect()
}

fn anchors(text: &str) -> HashSet<String> {
    let (prose, _) = split(text);
    let headings = prose.into_iter().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// The definitions of links at the end of a document: (label, target).
fn definitions<'a>(prose: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let definition = |line: &'a str| line.strip_prefix('[')?.split_once("]: ");
    prose.iter().filter_map(|line| definition(line)).collect()
}

/// The targets of `[…](…)` and of the definitions.
fn links(prose: &[&str]) -> Vec<String> {
    let text = prose.join("\n");
    let inline = text.match_indices("](").map(|(at, _)| {
        let target = &text[at + 2..];
        target[..target.find(')').expect("a link is not closed")].to_owned()
    });
    inline.chain(definitions(prose).into_iter().map(|(_, target)| target.to_owned())).collect()
}

/// A link to a file is a definition, which `src/lib.rs` defines first, as a page of the rendered documentation.
#[test]
fn links_between_documents_lead_somewhere_when_rendered() {
    let lib = read("src/lib.rs");
    for (path, text) in documents() {
        let (prose, _) = split(&text);
        let text = prose.join("\n");
        let inline = text.match_indices("](").map(|(at, _)| text[at + 2..].split(')').next().unwrap());
        inline.for_each(|target| assert!(!target.contains(".md"), "{path}: a link to {target} is written inline"));
        for (label, target) in definitions(&prose) {
            let rendered = !target.contains(".md") || lib.contains(&format!("[{label}]: crate::documents::"));
            assert!(rendered, "{path}: src/lib.rs does not define [{label}]");
            assert!(text.matches(&format!("[{label}]")).count() > 1, "{path}: [{label}] is not used");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for (path, text) in documents() {
        let (prose, _) = split(&text);
        for link in links(&prose) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, wanted) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                file => Path::new(&path).parent().unwrap().join(file).to_str().unwrap().to_owned(),
            };
            assert!(root().join(&target).exists(), "{path}: {link}: no such file");
            let known = wanted.is_empty() || anchors(&read(&target)).contains(wanted);
            assert!(known, "{path}: {link}: no such heading");
        }
    }
}

/// Blocks of Rust are tests of the library (`src/lib.rs` includes every document); none is left out.
#[test]
fn code_is_compiled() {
    let lib = read("src/lib.rs");
    for (path, text) in documents() {
        let (_, blocks) = split(&text);
        for (language, code) in &blocks {
            let known = ["rust", "rust,no_run", "go", "sh", "text", "toml"].contains(&language.as_str());
            assert!(known, "{path}: a block of {language:?} begins with {:?}", code.lines().next());
        }
        for (language, code) in blocks.iter().filter(|(language, _)| language.starts_with("rust") || language == "text")
        {
            for line in code.lines().filter(|line| !line.starts_with("# ")) {
                assert!(line.chars().count() <= 92, "{path}: {language}: wider than a rendered page: {line}");
            }
        }
        let has_code = blocks.iter().any(|(language, _)| language.starts_with("rust"));
        let included = lib.contains(&format!("include_str!(\"../{path}\")"));
        assert!(included || !has_code && !path.starts_with("docs/"), "{path}: not in src/lib.rs");
    }
}

#[test]
fn no_document_names_this_machine() {
    let foreign = [concat!("/wo", "rk/"), concat!("/tm", "p/h/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    for (path, text) in documents() {
        for place in foreign {
            assert!(!text.contains(place), "{path}: {place}");
        }
    }
}

#[test]
fn the_readme_has_the_versions_of_the_manifest() {
    let manifest = read("Cargo.toml");
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let version = line.trim_matches('"');
    let readme = read("README.md");
    assert!(readme.contains(&format!("Rust {version} or later")), "Rust {version}");
    assert!(readme.contains(&format!("Rust {version} is the oldest")), "Rust {version}");
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    assert!(readme.contains(&format!("pidloop = \"{major}.{minor}\"")), "version {major}.{minor}");
}

/// The README's second command: the tests. The first one, with what it prints, is a test of the program.
fn readme_tests() -> String {
    let readme = read("README.md");
    let (_, blocks) = split(&readme);
    let shell: Vec<&(String, String)> = blocks.iter().filter(|(language, _)| language == "sh").collect();
    let [_, tests] = shell[..] else { panic!("not two commands") };
    tests.1.clone()
}

fn command_of(block: &str) -> &str {
    let mut lines = block.lines().filter(|line| !line.starts_with('#'));
    let command = lines.next().unwrap();
    assert_eq!(lines.next(), None, "one command");
    command
}

#[test]
fn ci_runs_the_tests_as_the_readme_has_them() {
    let tests = readme_tests();
    // The published package comes without.
    if !root().join(".ci").exists() {
        return;
    }
    let script = read(".ci/run").replace(" --locked", "");
    assert!(script.contains(command_of(&tests)), "{tests}");
}

/// Promises are numbered; each is explained, and a file of the sources and one of the tests are named for it.
#[test]
fn every_promise_has_a_place_and_a_test() {
    let (design, map) = (read("docs/DESIGN.md"), read("docs/ARCHITECTURE.md"));
    for number in 1..=14 {
        assert!(design.contains(&format!("\n### {number}. ")), "promise {number} is not explained");
        let row = map.lines().find(|line| line.starts_with(&format!("| {number} "))).expect("no row");
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [_, place, proof] = cells[..] else { panic!("{row}") };
        let named = |cell: &str| -> Vec<String> {
            let words = cell.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs"));
            words.map(str::to_owned).collect()
        };
        for (files, dirs) in [(named(place), &["src", "src/reactor", "src/sys"][..]), (named(proof), &["."][..])] {
            assert!(!files.is_empty(), "promise {number}: {row}");
            for file in files {
                assert!(dirs.iter().any(|dir| root().join(dir).join(&file).exists()), "promise {number}: {file}");
            }
        }
    }
}

/// What the map calls by name, with its file before it, is there.
#[test]
fn names_in_the_promises_table_exist() {
    let map = read("docs/ARCHITECTURE.md");
    for row in map.lines().filter(|line| line.starts_with("| ") && line[2..].starts_with(|c: char| c.is_ascii_digit()))
    {
        let place = row.trim_matches('|').split('|').nth(1).unwrap();
        let mut text = String::new();
        for word in place.split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                let dirs = ["src", "src/reactor", "src/sys"];
                let file = dirs.iter().map(|dir| root().join(dir).join(word)).find(|path| path.exists());
                text = fs::read_to_string(file.expect(word)).unwrap();
                continue;
            }
            let name = word.rsplit("::").next().unwrap();
            assert!(text.contains(name), "{row}: {word}");
        }
    }
}

/// The files of `src` as the maps draw them, each under the folder that its first line names; two spaces deeper in each folder.
fn files_on_the_map() -> HashSet<String> {
    let map = read("docs/ARCHITECTURE.md");
    let (_, blocks) = split(&map);
    let mut found = HashSet::new();
    for (_, drawn) in blocks {
        let Some(base) = drawn.lines().next().and_then(|line| line.strip_prefix("src/")) else { continue };
        let mut folders: Vec<&str> = Vec::new();
        for line in drawn.lines().skip(1).take_while(|line| line.is_empty() || line.starts_with("  ")) {
            let depth = (line.len() - line.trim_start().len()) / 2;
            for name in line.split_whitespace().take_while(|word| word.ends_with(".rs") || word.ends_with('/')) {
                folders.truncate(depth - 1);
                if name.ends_with('/') {
                    folders.push(name);
                } else {
                    found.insert(format!("{base}{}{name}", folders.concat()));
                }
            }
        }
    }
    found
}

#[test]
fn the_map_names_every_file_and_no_other() {
    let mut there = HashSet::new();
    let mut pending = vec![root().join("src")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                there.insert(path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let drawn = files_on_the_map();
    let missing: Vec<_> = there.difference(&drawn).collect();
    let gone: Vec<_> = drawn.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "docs/ARCHITECTURE.md lacks {missing:?} and has {gone:?} too many");
}

/// Where we differ from Go is numbered, too.
#[test]
fn every_difference_from_go_has_a_row() {
    let design = read("docs/DESIGN.md");
    for number in 1..=24 {
        assert!(design.contains(&format!("\n| D{number} | ")), "D{number}");
    }
}

/// Go's exported names: the first column answers each in its own section, and what the second one calls by name is there.
#[test]
fn every_exported_name_of_go_is_answered_by_one_that_exists() {
    const NAMES: [(&str, &str); 4] = [
        (
            "os/exec",
            "Command CommandContext LookPath Cmd Error Name Err Unwrap ErrNotFound ErrDot ExitError ErrWaitDelay Path Args Env Dir Stdin \
             Stdout Stderr ExtraFiles SysProcAttr Process ProcessState Cancel WaitDelay Start Wait Run Output CombinedOutput StdinPipe \
             StdoutPipe StderrPipe Environ String",
        ),
        (
            "os",
            "StartProcess FindProcess Process Pid Kill Signal Wait Release WithHandle ErrProcessDone ErrNoHandle Interrupt ProcAttr Dir Env \
             Files Sys ProcessState Exited Success ExitCode String SysUsage UserTime SystemTime",
        ),
        (
            "syscall.SysProcAttr",
            "Chroot Credential Uid Gid Groups NoSetGroups Ptrace Setsid Setpgid Pgid Setctty Ctty Noctty Foreground Pdeathsig Cloneflags \
             Unshareflags UidMappings GidMappings SysProcIDMap GidMappingsEnableSetgroups AmbientCaps UseCgroupFD CgroupFD PidFD Rusage \
             WaitStatus Signal",
        ),
        (
            "context",
            concat!(
                "Context Deadline Done Err Value WithValue Background TO",
                "DO WithCancel WithCancelCause CancelCauseFunc CancelFunc Cause WithDeadline WithTimeout WithDeadlineCause ",
                "WithTimeoutCause WithoutCancel AfterFunc Canceled DeadlineExceeded Timeout NotifyContext",
            ),
        ),
    ];
    let (page, sources) = (read("docs/FROM_GO.md"), sources());
    for (section, names) in NAMES {
        let text = page.split(&format!("\n## {section}\n")).nth(1).expect(section).split("\n## ").next().unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
        let (go, here): (Vec<&str>, Vec<&str>) = rows.unzip();
        let words: HashSet<&str> = go.iter().flat_map(|cell| cell.split(|c: char| !c.is_alphanumeric())).collect();
        for name in names.split_whitespace() {
            assert!(words.contains(name), "docs/FROM_GO.md, {section}: {name}");
        }
        for code in here.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
            let code = code.trim_start_matches("defer ");
            let path =
                code.trim_start_matches('.').split(|c: char| !c.is_alphanumeric() && !"_:".contains(c)).next().unwrap();
            let name = path.rsplit("::").find(|name| !name.is_empty()).unwrap_or_default();
            let there = match name.starts_with(char::is_lowercase) {
                true => [format!("fn {name}("), format!("fn {name}<")].iter().any(|start| sources.contains(start)),
                false => sources.contains(name),
            };
            assert!(there, "docs/FROM_GO.md, {section}: {code}");
        }
    }
}

/// All of the library's.
fn sources() -> String {
    let mut pending = vec![root().join("src")];
    let mut all = String::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            all += &fs::read_to_string(&path).unwrap();
        }
    }
    all
}

/// The first entry of a new version is what is under "Unreleased"; a released one has its section.
#[test]
fn the_changelog_has_a_place_for_what_is_new() {
    assert!(read("CHANGELOG.md").contains("\n## Unreleased\n"));
}
