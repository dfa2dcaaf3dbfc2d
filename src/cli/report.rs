//! What is told of an ended job: its line of JSON, its record, its files. Knows outcomes; prints nothing.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use pidloop::{Captured, Usage};
use serde_json::{Value, json};

use super::job::{Job, Outcome, Reason, Start, Stop};
use super::joblog::Record;
use super::values::Half;

/// The longest name that every filesystem takes.
const NAME_MAX_BYTES: usize = 255;

/// Everything there is to say of an ended job.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) job: &'a Job,
    pub(crate) outcome: &'a Outcome,
    pub(crate) started: Start,
    /// As a shell line.
    pub(crate) command: &'a [u8],
    /// How much it wrote to stdout.
    pub(crate) output_bytes: u64,
}

impl Report<'_> {
    /// Its line of the joblog.
    pub(crate) fn record(&self) -> Vec<u8> {
        let record = Record {
            seq: self.job.seq,
            started: self.started.epoch(),
            runtime: self.outcome.runtime.as_secs_f64(),
            output_bytes: self.output_bytes,
            exitval: self.outcome.exitval,
            signal: self.outcome.signal,
            command: self.command,
        };
        record.to_line()
    }

    /// Its line of JSON. Bytes that are not UTF-8 are replaced.
    pub(crate) fn json(&self, captured: &Captured) -> Vec<u8> {
        let Report { job, outcome, .. } = self;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ended = outcome.reason == Reason::Ended;
        let signal = pidloop::Signal::from_raw(outcome.signal).filter(|_| outcome.reason != Reason::Lost);
        let value = json!({
            "seq": job.seq,
            "command": text(self.command),
            "arguments": job.arguments.iter().map(|argument| text(argument.as_bytes())).collect::<Vec<_>>(),
            "tries": job.tries,
            "pid": outcome.pid,
            "started": self.started.epoch(),
            "runtime": outcome.runtime.as_secs_f64(),
            "reason": reason(outcome),
            "error": match &outcome.reason { Reason::NotStarted(why) => Some(why), _ => None },
            "exit": (ended && outcome.signal == 0).then_some(outcome.exitval),
            "signal": signal.map(|signal| signal.to_string()),
            "usage": outcome.usage.as_ref().map(usage),
            "output_held_open": outcome.held_open,
            "stdout": text(&captured.stdout),
            "stderr": text(&captured.stderr),
            "stdout_omitted_bytes": captured.stdout_omitted_bytes,
            "stderr_omitted_bytes": captured.stderr_omitted_bytes,
        });
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// Why it ended, in a word or two.
fn reason(outcome: &Outcome) -> &'static str {
    match &outcome.reason {
        Reason::Ended if outcome.signal != 0 => "killed",
        Reason::Ended => "exited",
        Reason::Stopped(Stop::TimedOut) => "timed out",
        Reason::Stopped(Stop::Abandoned) => "abandoned",
        Reason::Lost => "status lost",
        Reason::NotStarted(_) => "not started",
    }
}

fn usage(usage: &Usage) -> Value {
    json!({
        "user_time": usage.user_time.as_secs_f64(),
        "system_time": usage.system_time.as_secs_f64(),
        "max_rss_bytes": usage.max_rss_bytes,
        "minor_faults": usage.minor_faults,
        "major_faults": usage.major_faults,
        "blocks_in": usage.blocks_in,
        "blocks_out": usage.blocks_out,
        "voluntary_switches": usage.voluntary_switches,
        "involuntary_switches": usage.involuntary_switches,
    })
}

/// Says in the output itself where a part of it was left out.
pub(crate) fn mark_omitted(captured: &mut Captured, halves: Half) {
    let mark = |bytes: &mut Vec<u8>, omitted: u64| {
        if omitted > 0 {
            let seam = halves.head.min(bytes.len());
            let text = format!("\n[pidloop: {omitted} bytes left out]\n");
            bytes.splice(seam..seam, text.into_bytes());
        }
    };
    mark(&mut captured.stdout, captured.stdout_omitted_bytes);
    mark(&mut captured.stderr, captured.stderr_omitted_bytes);
}

/// Where GNU parallel keeps a job's output: `DIR/1/ARGUMENT1/2/ARGUMENT2/…`.
pub(crate) fn results_dir(dir: &Path, job: &Job) -> PathBuf {
    let mut path = dir.to_owned();
    for (index, argument) in job.arguments.iter().enumerate() {
        path.push((index + 1).to_string());
        path.push(file_name(argument, job.seq));
    }
    if job.arguments.is_empty() {
        path.push(job.seq.to_string());
    }
    path
}

/// An argument as the name of a file.
fn file_name(argument: &OsString, seq: u64) -> OsString {
    let mut name = Vec::new();
    for byte in argument.as_bytes() {
        match byte {
            b'/' => name.extend(b"\\_"),
            b'\\' => name.extend(b"\\\\"),
            b'\t' => name.extend(b"\\t"),
            0 => name.extend(b"\\0"),
            other => name.push(*other),
        }
    }
    // Names that a directory cannot have; the number tells them apart.
    if name.len() > NAME_MAX_BYTES || matches!(&name[..], b"" | b"." | b"..") {
        let number = format!("~{seq}");
        name.truncate(NAME_MAX_BYTES - number.len());
        name.extend(number.into_bytes());
    }
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_where_gnu_parallel_keeps_them() {
        let dir = |arguments: &[&str]| {
            let arguments = arguments.iter().map(OsString::from).collect();
            results_dir(Path::new("r"), &Job { seq: 7, arguments, tries: 1 }).into_os_string().into_string().unwrap()
        };
        assert_eq!(dir(&["a/b", "c d"]), r"r/1/a\_b/2/c d");
        assert_eq!(dir(&[".."]), "r/1/..~7");
        assert_eq!(dir(&[""]), "r/1/~7");
        assert_eq!(dir(&[]), "r/7");
        let long = dir(&[&"x".repeat(1000)]);
        assert_eq!((long.len(), long.ends_with("x~7")), ("r/1/".len() + NAME_MAX_BYTES, true));
    }

    #[test]
    fn what_is_left_out_is_said_where_it_was() {
        let mut captured = Captured::default();
        captured.stdout = b"headtail".to_vec();
        captured.stdout_omitted_bytes = 12;
        mark_omitted(&mut captured, Half::of(8));
        assert_eq!(captured.stdout, b"head\n[pidloop: 12 bytes left out]\ntail");
        assert_eq!(captured.stderr, b"");
    }
}
