//! What has become of all jobs: the counts, the exit status, the summary. Knows numbers.

use std::time::Duration;

use super::job::{Outcome, Reason, Stop};
use super::voice::Colors;

/// How many failed jobs a summary names.
const NAMED_MAX: usize = 10;

/// Counts of ended jobs.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    timed_out: u64,
    not_started: u64,
    abandoned: u64,
    /// An earlier run had ended them.
    pub(crate) skipped: u64,
    /// The first failures, for the summary.
    named: Vec<String>,
}

impl Tally {
    /// Counts a job; `name` says which it was and how it ended.
    pub(crate) fn count(&mut self, outcome: &Outcome, name: impl FnOnce() -> String) {
        match outcome.reason {
            Reason::Stopped(Stop::Abandoned) => {
                self.abandoned += 1;
                return;
            }
            Reason::Stopped(Stop::TimedOut) => self.timed_out += 1,
            Reason::NotStarted(_) => self.not_started += 1,
            Reason::Ended | Reason::Lost => {}
        }
        if outcome.is_success() {
            self.succeeded += 1;
            return;
        }
        self.failed += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(name());
        }
    }

    pub(crate) fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.abandoned + self.skipped
    }

    /// The number of failed jobs; 101 for more than 100.
    pub(crate) fn status(&self) -> u8 {
        self.failed.min(101) as u8
    }

    /// A line, and one for each of the first failures.
    pub(crate) fn summary(&self, elapsed: Duration, colors: Colors) -> String {
        let mut parts = vec![format!("{} succeeded", self.succeeded)];
        let mut add = |count: u64, text: String| {
            if count > 0 {
                parts.push(text);
            }
        };
        let details: Vec<String> = [(self.timed_out, "timed out"), (self.not_started, "could not be run")]
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
        add(self.failed, colors.error(&format!("{} failed{details}", self.failed)));
        add(self.abandoned, colors.warning(&format!("{} stopped", self.abandoned)));
        add(self.skipped, format!("{} done before", self.skipped));
        let mut text = format!("pidloop: {} in {:.2} s\n", parts.join(", "), elapsed.as_secs_f64());
        for name in &self.named {
            text.push_str(&format!("  {name}\n"));
        }
        let unnamed = self.failed - self.named.len() as u64;
        if unnamed > 0 {
            text.push_str(&format!("  and {unnamed} more\n"));
        }
        text
    }
}
