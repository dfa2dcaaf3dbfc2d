//! Words as a shell would be given them, on one line. Knows nothing of commands; runs no shell.

use std::ffi::OsStr;
use std::fmt::{self, Formatter, Write};
use std::os::unix::ffi::OsStrExt;

/// A word, quoted where a shell needs that.
pub(crate) struct Word<'a>(pub(crate) &'a OsStr);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bytes = self.0.as_bytes();
        match std::str::from_utf8(bytes) {
            Ok(text) if text.chars().any(char::is_control) => escape(f, bytes),
            Ok(text) if !text.is_empty() && bytes.iter().copied().all(needs_no_quotes) => f.write_str(text),
            Ok(text) => write!(f, "'{}'", text.replace('\'', r"'\''")),
            Err(_) => escape(f, bytes),
        }
    }
}

/// What a shell takes literally without quotes.
fn needs_no_quotes(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"%+,-./:=@_^".contains(&byte)
}

/// `$'…'`: what would break the line, or turn a terminal's head, is shown by its number.
fn escape(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    f.write_str("$'")?;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => f.write_str("\\n")?,
                '\t' => f.write_str("\\t")?,
                '\'' | '\\' => write!(f, "\\{c}")?,
                c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
    }
    f.write_str("'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it_and_stay_on_one_line() {
        for (word, shown) in [
            (&b"plain-1.0/x"[..], "plain-1.0/x"),
            (b"", "''"),
            (b"two words", "'two words'"),
            (b"it's $HOME", r"'it'\''s $HOME'"),
            ("grüße".as_bytes(), "'grüße'"),
            (b"a\nb\tc", r"$'a\nb\tc'"),
            (b"it's\\\n", r"$'it\'s\\\n'"),
            (b"\x1b[31m\0", r"$'\x1b[31m\x00'"),
            (b"\xff-\xc3\xbc", "$'\\xff-ü'"),
            ("\u{85}".as_bytes(), r"$'\u0085'"),
        ] {
            assert_eq!(Word(OsStr::from_bytes(word)).to_string(), shown);
        }
    }
}
