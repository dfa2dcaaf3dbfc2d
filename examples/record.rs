//! A recorder of terminals: runs a program on a terminal of its own and writes what it shows, with the time, as an asciicast (version 2), which
//! `asciinema play` shows again.
//!
//! ```sh
//! cargo run --example record -- ls --color > ls.cast
//! ```

use std::io::{Read, Write};
use std::time::Instant;

use pidloop::{Command, Terminal};
use serde_json::json;

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// The longest beginning of `bytes` that is text: the rest of a character may still be under way.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let Some((program, arguments)) = words.split_first() else {
        return Err("what is to be recorded?".into());
    };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", json!({ "version": 2, "width": COLUMNS, "height": ROWS }))?;
    let begun = Instant::now();
    let child = Command::new(program).args(arguments).terminal(Terminal::new().size(ROWS, COLUMNS)).spawn()?;
    let mut terminal = child.take_terminal().expect("it was not taken before");
    // Who would type is not here. A program that reads finds the end.
    terminal.type_end()?;
    let (mut chunk, mut shown) = ([0; 4096], Vec::new());
    // Ends when nobody has the terminal open any more; what the program wrote last is read before that.
    while let length @ 1.. = terminal.read(&mut chunk)? {
        shown.extend_from_slice(&chunk[..length]);
        let rest = shown.split_off(whole_characters(&shown));
        let event = json!([begun.elapsed().as_secs_f64(), "o", String::from_utf8_lossy(&shown)]);
        writeln!(stdout, "{event}")?;
        shown = rest;
    }
    child.wait()?.check()?;
    Ok(())
}
