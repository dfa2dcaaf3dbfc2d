//! When to end early (`--halt`). Knows counts, not jobs.

use std::str::FromStr;

/// What `--halt` asks for; `None`: to run everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Halt(pub(crate) Option<Condition>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) urgency: Urgency,
    why: Why,
    threshold: Threshold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Running jobs are stopped.
    Now,
    /// Running jobs may end.
    Soon,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Fail,
    Success,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threshold {
    Count(u64),
    Percent(u64),
}

impl FromStr for Halt {
    type Err = String;

    fn from_str(text: &str) -> Result<Halt, String> {
        // The older spellings of GNU parallel.
        let text = match text {
            "never" | "0" => return Ok(Halt(None)),
            "1" => "soon,fail=1",
            "2" => "now,fail=1",
            other => other,
        };
        let parse = || {
            let (urgency, condition) = text.split_once(',')?;
            let (why, number) = condition.split_once('=')?;
            let urgency = match urgency {
                "now" => Urgency::Now,
                "soon" => Urgency::Soon,
                _ => return None,
            };
            let why = match why {
                "fail" => Why::Fail,
                "success" => Why::Success,
                "done" => Why::Done,
                _ => return None,
            };
            let threshold = match number.strip_suffix('%') {
                Some(percent) => Threshold::Percent(percent.parse().ok().filter(|p| (1..=100).contains(p))?),
                None => Threshold::Count(number.parse().ok().filter(|n| *n > 0)?),
            };
            Some(Condition { urgency, why, threshold })
        };
        parse()
            .map(|condition| Halt(Some(condition)))
            .ok_or_else(|| "for example now,fail=1 or soon,done=10%".to_owned())
    }
}

/// What a run has come to when a job ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) failed: u64,
    pub(crate) succeeded: u64,
    /// How many jobs there are; only known for certain, and only needed, for a percentage.
    pub(crate) total: u64,
}

impl Condition {
    /// Whether the number of all jobs must be known.
    pub(crate) fn needs_total(&self) -> bool {
        matches!(self.threshold, Threshold::Percent(_))
    }

    /// If the condition is met: the exit status of the run, as GNU parallel has it. `last`: the status of the job that just ended.
    pub(crate) fn met(&self, counts: Counts, last: i32) -> Option<u8> {
        let reached = match self.why {
            // It is the ended job that meets a condition, so it must be of the kind that is counted.
            Why::Fail if last != 0 => counts.failed,
            Why::Success if last == 0 => counts.succeeded,
            Why::Done => counts.failed + counts.succeeded,
            Why::Fail | Why::Success => return None,
        };
        let met = match self.threshold {
            Threshold::Count(count) => reached >= count,
            Threshold::Percent(percent) => reached.saturating_mul(100) >= percent.saturating_mul(counts.total),
        };
        if !met {
            return None;
        }
        let status = match (self.why, self.threshold) {
            (Why::Success, _) => 0,
            (_, Threshold::Count(1)) => last as u64,
            (_, Threshold::Count(_)) => counts.failed.min(101),
            (_, Threshold::Percent(_)) => counts.failed.saturating_mul(100).div_ceil(counts.total.max(1)),
        };
        Some(u8::try_from(status).unwrap_or(u8::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(text: &str, failed: u64, succeeded: u64, last: i32) -> Option<u8> {
        let Halt(condition) = text.parse().unwrap();
        condition?.met(Counts { failed, succeeded, total: 10 }, last)
    }

    #[test]
    fn conditions_are_met_when_their_number_is_reached() {
        assert_eq!(met("never", 5, 5, 1), None);
        assert_eq!(met("now,fail=1", 1, 0, 7), Some(7));
        assert_eq!(met("1", 1, 0, 7), Some(7));
        assert_eq!(met("soon,fail=3", 2, 9, 1), None);
        assert_eq!(met("soon,fail=3", 3, 9, 1), Some(3));
        assert_eq!(met("now,success=1", 4, 1, 0), Some(0));
        assert_eq!(met("now,success=1", 4, 0, 1), None);
        assert_eq!(met("now,done=2", 1, 1, 0), Some(1));
        assert_eq!(met("soon,fail=20%", 1, 5, 1), None);
        assert_eq!(met("soon,fail=20%", 2, 5, 1), Some(20));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in ["", "now", "now,fail", "later,fail=1", "now,luck=1", "now,fail=0", "now,fail=101%", "now,fail=x"] {
            assert!(text.parse::<Halt>().is_err(), "{text}");
        }
    }
}
