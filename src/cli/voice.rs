//! What the program says in its own name: the words, the colors. Knows no jobs.

use std::io::IsTerminal;

use super::options::When;

/// How many bytes of a command a message shows.
const COMMAND_SHOWN_BYTES: usize = 200;

/// Whether and how to color.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Colors(bool);

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";
/// The colors of tags, one after the other: a job's lines are told from its neighbours'.
const TAGS: [&str; 6] = ["\x1b[36m", "\x1b[35m", "\x1b[34m", "\x1b[32m", "\x1b[33m", "\x1b[31m"];

impl Colors {
    /// For something that goes to a stream that is a terminal or not. `NO_COLOR` is heeded (no-color.org).
    pub(crate) fn new(when: When, terminal: bool) -> Colors {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Colors(match when {
            When::Always => true,
            When::Never => false,
            When::Auto => terminal && !refused,
        })
    }

    pub(crate) fn tag(self, seq: u64, tag: Vec<u8>) -> Vec<u8> {
        if !self.0 {
            return tag;
        }
        let color = TAGS[(seq % TAGS.len() as u64) as usize];
        [color.as_bytes(), &tag, RESET.as_bytes()].concat()
    }

    pub(crate) fn error(self, text: &str) -> String {
        self.paint(RED, text)
    }

    pub(crate) fn warning(self, text: &str) -> String {
        self.paint(YELLOW, text)
    }

    fn paint(self, color: &str, text: &str) -> String {
        if self.0 { format!("{color}{text}{RESET}") } else { text.to_owned() }
    }
}

/// A message that ends the program before it has begun.
pub(crate) fn complain(text: &str) {
    let colors = Colors::new(When::Auto, std::io::stderr().is_terminal());
    eprintln!("{} {text}", colors.error("pidloop:"));
}

/// A command as a message shows it: on one line, not too long.
pub(crate) fn shorten(command: &[u8]) -> String {
    let shown = &command[..command.len().min(COMMAND_SHOWN_BYTES)];
    let mut text = String::from_utf8_lossy(shown).replace(|c: char| c.is_control(), "?");
    if shown.len() < command.len() {
        text.push_str(&format!("… ({} bytes)", command.len()));
    }
    text
}
