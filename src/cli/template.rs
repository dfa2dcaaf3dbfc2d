//! The command as it was given, and what `{}` and its kin become in it. Knows no processes.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A command with holes for arguments.
#[derive(Debug)]
pub(crate) struct Template {
    words: Vec<Vec<Part>>,
    shell: bool,
    pub(crate) uses_slot: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    /// `{}` (all of a job's arguments) or `{N}` (one of them).
    Argument(Option<usize>, Form),
    /// `{#}`
    Sequence,
    /// `{%}`
    Slot,
}

/// Which part of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Whole,
    /// `{.}`
    NoExtension,
    /// `{/}`
    Basename,
    /// `{//}`
    Dirname,
    /// `{/.}`
    BasenameNoExtension,
}

impl Form {
    fn named(name: &[u8]) -> Option<Form> {
        Some(match name {
            b"" => Form::Whole,
            b"." => Form::NoExtension,
            b"/" => Form::Basename,
            b"//" => Form::Dirname,
            b"/." => Form::BasenameNoExtension,
            _ => return None,
        })
    }

    fn of(self, argument: &[u8]) -> &[u8] {
        match self {
            Form::Whole => argument,
            Form::NoExtension => without_extension(argument),
            Form::Basename => basename(argument),
            Form::Dirname => dirname(argument),
            Form::BasenameNoExtension => without_extension(basename(argument)),
        }
    }
}

fn basename(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

fn without_extension(path: &[u8]) -> &[u8] {
    let name_starts = path.len() - basename(path).len();
    match path[name_starts..].iter().rposition(|byte| *byte == b'.') {
        Some(dot) => &path[..name_starts + dot],
        None => path,
    }
}

/// As dirname(1).
fn dirname(path: &[u8]) -> &[u8] {
    let trim = |path: &'_ [u8]| path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let end = trim(path);
    let Some(slash) = path[..end].iter().rposition(|byte| *byte == b'/') else {
        return if path.starts_with(b"/") { b"/" } else { b"." };
    };
    match trim(&path[..slash]) {
        0 => b"/",
        end => &path[..end],
    }
}

/// What a job fills the holes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filling<'a> {
    pub(crate) arguments: &'a [OsString],
    pub(crate) sequence: u64,
    pub(crate) slot: usize,
}

impl Template {
    /// `appends`: a command that uses nothing of its arguments gets them at its end. `whole`: what is written for `{}`.
    pub(crate) fn new(words: &[OsString], shell: bool, appends: bool, whole: &[u8]) -> Template {
        let mut words: Vec<Vec<Part>> = words.iter().map(|word| parse(word.as_bytes(), whole)).collect();
        let is_text = |part: &Part| matches!(part, Part::Text(_));
        if appends && !words.is_empty() && words.iter().flatten().all(is_text) {
            words.push(vec![Part::Argument(None, Form::Whole)]);
        }
        let uses_slot = words.iter().flatten().any(|part| *part == Part::Slot);
        Template { words, shell, uses_slot }
    }

    /// A command of `--pipe-to`, from one word.
    ///
    /// # Errors
    ///
    /// It is no command line.
    pub(crate) fn of_line(line: &str, shell: bool, whole: &[u8]) -> Result<Template, String> {
        let words = if shell { Some(vec![line.into()]) } else { split(line.as_bytes()) };
        match words {
            Some(words) if !words.is_empty() => Ok(Template::new(&words, shell, false, whole)),
            Some(_) => Err("the command line is empty".to_owned()),
            None => Err("the command line has a quote that does not end".to_owned()),
        }
    }

    /// The words to execute, or why there are none.
    pub(crate) fn fill(&self, with: Filling<'_>) -> Result<Vec<OsString>, String> {
        if self.shell {
            let line = self.shell_line(with);
            return Ok(vec!["/bin/sh".into(), "-c".into(), OsString::from_vec(line)]);
        }
        if !self.words.is_empty() {
            return Ok(self.words.iter().flat_map(|word| fill_word(word, with)).collect());
        }
        match split(&join(with.arguments.iter().map(|argument| argument.as_bytes()))) {
            Some(words) if !words.is_empty() => Ok(words),
            Some(_) => Err("the command line is empty".to_owned()),
            None => Err("the command line has a quote that does not end".to_owned()),
        }
    }

    /// The command as a shell would be given it.
    pub(crate) fn line(&self, with: Filling<'_>) -> Vec<u8> {
        if self.shell {
            return self.shell_line(with);
        }
        match self.fill(with) {
            Ok(words) => shell_line(&words),
            Err(_) => join(with.arguments.iter().map(|argument| argument.as_bytes())),
        }
    }

    fn shell_line(&self, with: Filling<'_>) -> Vec<u8> {
        if self.words.is_empty() {
            return join(with.arguments.iter().map(|argument| argument.as_bytes()));
        }
        let word = |parts: &Vec<Part>| parts.iter().flat_map(|part| fill_part(part, with, quote)).collect::<Vec<u8>>();
        join(self.words.iter().map(word))
    }
}

/// As a shell does it, but nothing is expanded; `None`: a quote does not end.
fn split(line: &[u8]) -> Option<Vec<OsString>> {
    Some(shlex::bytes::split(line)?.into_iter().map(OsString::from_vec).collect())
}

fn join(words: impl Iterator<Item = impl AsRef<[u8]>>) -> Vec<u8> {
    let mut line = Vec::new();
    for (index, word) in words.enumerate() {
        if index > 0 {
            line.push(b' ');
        }
        line.extend_from_slice(word.as_ref());
    }
    line
}

/// Words as a shell would be given them.
pub(crate) fn shell_line(words: &[OsString]) -> Vec<u8> {
    join(words.iter().map(|word| quote(word.as_bytes())))
}

fn quote(word: &[u8]) -> Cow<'_, [u8]> {
    shlex::bytes::Quoter::new().allow_nul(true).quote(word).unwrap_or(Cow::Borrowed(word))
}

fn plain(word: &[u8]) -> Cow<'_, [u8]> {
    Cow::Borrowed(word)
}

/// A word that is nothing but `{}` becomes as many words as there are arguments.
fn fill_word(word: &[Part], with: Filling<'_>) -> Vec<OsString> {
    if let [Part::Argument(None, form)] = word {
        let of = |argument: &OsString| OsStr::from_bytes(form.of(argument.as_bytes())).to_owned();
        return with.arguments.iter().map(of).collect();
    }
    vec![OsString::from_vec(word.iter().flat_map(|part| fill_part(part, with, plain)).collect())]
}

fn fill_part(part: &Part, with: Filling<'_>, quote: fn(&[u8]) -> Cow<'_, [u8]>) -> Vec<u8> {
    match part {
        Part::Text(text) => text.clone(),
        Part::Argument(None, form) => join(with.arguments.iter().map(|argument| quote(form.of(argument.as_bytes())))),
        Part::Argument(Some(number), form) => match with.arguments.get(number - 1) {
            Some(argument) => quote(form.of(argument.as_bytes())).into_owned(),
            None => Vec::new(),
        },
        Part::Sequence => with.sequence.to_string().into_bytes(),
        Part::Slot => with.slot.to_string().into_bytes(),
    }
}

/// Cuts a word at its holes; braces that are none stay as they are. So does `{}` if something else, `whole`, is written for it.
fn parse(mut word: &[u8], whole: &[u8]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut text = Vec::new();
    while let Some((first, rest)) = word.split_first() {
        let hole = match first {
            _ if word.starts_with(whole) => Some((Part::Argument(None, Form::Whole), whole.len() - 1)),
            b'{' if !rest.starts_with(b"}") => hole(rest),
            _ => None,
        };
        let Some((part, length)) = hole else {
            text.push(*first);
            word = rest;
            continue;
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(part);
        word = &rest[length..];
    }
    if !text.is_empty() || parts.is_empty() {
        parts.push(Part::Text(text));
    }
    parts
}

/// The hole that `rest` begins with, its opening brace already read, and its length.
fn hole(rest: &[u8]) -> Option<(Part, usize)> {
    let end = rest.iter().position(|byte| *byte == b'}')?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, name) = rest[..end].split_at(digits.min(end));
    let part = match (number, name) {
        (b"", b"#") => Part::Sequence,
        (b"", b"%") => Part::Slot,
        (b"", name) => Part::Argument(None, Form::named(name)?),
        (number, name) => {
            let number = std::str::from_utf8(number).ok()?.parse().ok().filter(|n: &usize| *n > 0)?;
            Part::Argument(Some(number), Form::named(name)?)
        }
    };
    Some((part, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn fill(words: &[&str], shell: bool, arguments: &[&str]) -> Vec<String> {
        let arguments = os(arguments);
        let with = Filling { arguments: &arguments, sequence: 7, slot: 2 };
        let filled = Template::new(&os(words), shell, true, b"{}").fill(with).unwrap();
        filled.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn holes_are_filled_and_missing_ones_appended() {
        assert_eq!(fill(&["echo"], false, &["a b"]), ["echo", "a b"]);
        assert_eq!(fill(&["echo", "{}", "x"], false, &["a", "b"]), ["echo", "a", "b", "x"]);
        assert_eq!(fill(&["echo", "a{}b"], false, &["1", "2"]), ["echo", "a1 2b"]);
        assert_eq!(fill(&["echo", "{2}-{1}-{3}"], false, &["1", "2"]), ["echo", "2-1-"]);
        assert_eq!(fill(&["echo", "{#}", "{%}"], false, &["a"]), ["echo", "7", "2"]);
        assert_eq!(fill(&["awk", "{print}", "{0}", "{"], false, &["a"]), ["awk", "{print}", "{0}", "{", "a"]);
        assert_eq!(fill(&["{}"], false, &["true"]), ["true"]);
        assert_eq!(fill(&["echo", ""], false, &["a"]), ["echo", "", "a"]);
    }

    #[test]
    fn parts_of_paths_are_those_of_gnu_parallel() {
        for (path, no_extension, base, dir, both) in [
            ("/a/b.c", "/a/b", "b.c", "/a", "b"),
            ("d.e", "d", "d.e", ".", "d"),
            ("f", "f", "f", ".", "f"),
            (".x", "", ".x", ".", ""),
            ("a.b/c", "a.b/c", "c", "a.b", "c"),
            ("a/b/", "a/b/", "", "a", ""),
            ("/", "/", "", "/", ""),
            ("//a", "//a", "a", "/", "a"),
            ("", "", "", ".", ""),
        ] {
            assert_eq!(
                fill(&["{.}|{/}|{//}|{/.}"], false, &[path]),
                [format!("{no_extension}|{base}|{dir}|{both}")],
                "{path}"
            );
            assert_eq!(fill(&["{1.}|{1/}|{1//}"], false, &[path]), [format!("{no_extension}|{base}|{dir}")], "{path}");
        }
    }

    #[test]
    fn a_shell_gets_quoted_arguments_and_the_command_as_it_is() {
        assert_eq!(fill(&["echo $HOME;", "cat {}"], true, &["a b", "it's"])[2], r#"echo $HOME; cat 'a b' "it's""#);
        assert_eq!(fill(&[], true, &["echo $HOME; cat *"])[2], "echo $HOME; cat *");
    }

    #[test]
    fn without_a_command_the_argument_is_one() {
        assert_eq!(fill(&[], false, &["echo 'a b' c"]), ["echo", "a b", "c"]);
        let lost = os(&["echo 'a"]);
        let with = Filling { arguments: &lost, sequence: 1, slot: 1 };
        assert!(Template::new(&[], false, true, b"{}").fill(with).is_err());
    }
}
