//! Values of options: durations, sizes, numbers of jobs. Knows their spelling alone.

use std::str::FromStr;
use std::time::Duration;

/// A hundred years: longer than anybody waits, and no clock overflows. What is longer counts as that.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Seconds, with a fraction or a unit (`1.5`, `1.5m`), or several units (`1m30s`).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    any_duration(text).map(|duration| duration.min(DURATION_MAX))
}

fn any_duration(text: &str) -> Result<Duration, String> {
    let number_ends = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit_seconds = match &text[number_ends..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return humantime::parse_duration(text).map_err(|error| error.to_string()),
    };
    let number: f64 = text[..number_ends].parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number * unit_seconds).map_err(|error| error.to_string())
}

/// Bytes; `K`, `M`, `G` are powers of 1024.
pub(crate) fn bytes(text: &str) -> Result<usize, String> {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_suffix('B').unwrap_or(&upper);
    let (number, factor) = match bare.char_indices().next_back() {
        Some((at, 'K')) => (&bare[..at], 1 << 10),
        Some((at, 'M')) => (&bare[..at], 1 << 20),
        Some((at, 'G')) => (&bare[..at], 1 << 30),
        _ => (bare, 1),
    };
    let number: usize = number.parse().map_err(|_| "not a number of bytes".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "too many bytes".to_owned())
}

/// A number of bytes, split in what is kept of a beginning and of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    pub(crate) head: usize,
    pub(crate) tail: usize,
}

impl Half {
    pub(crate) fn of(bytes: usize) -> Half {
        Half { head: bytes.div_ceil(2), tail: bytes / 2 }
    }
}

/// How many jobs run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Jobs(pub(crate) usize);

impl FromStr for Jobs {
    type Err = String;

    fn from_str(text: &str) -> Result<Jobs, String> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let number = |digits: &str| digits.parse::<usize>().map_err(|_| "not a number of jobs".to_owned());
        let jobs = if let Some(percent) = text.strip_suffix('%') {
            (cpus.saturating_mul(number(percent)?) / 100).max(1)
        } else if let Some(more) = text.strip_prefix('+') {
            cpus.saturating_add(number(more)?)
        } else if let Some(fewer) = text.strip_prefix('-') {
            cpus.saturating_sub(number(fewer)?).max(1)
        } else {
            number(text)?
        };
        Ok(Jobs(if jobs == 0 { usize::MAX } else { jobs }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_have_units() {
        for (text, milliseconds) in
            [("0", 0), ("2", 2000), ("1.5", 1500), (".5", 500), ("1.5m", 90_000), ("250ms", 250), ("1m30s", 90_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["10000000000000000000", "1000years"] {
            assert_eq!(duration(text), Ok(DURATION_MAX), "{text}");
        }
        for text in ["", "-1", "x", "1y2", "1e400", "."] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_powers_of_1024() {
        assert_eq!(bytes("10"), Ok(10));
        assert_eq!(bytes("2k"), Ok(2048));
        assert_eq!(bytes("1MB"), Ok(1 << 20));
        for text in ["", "K", "1T", "-1", "99999999999999999999", "99999999999999999G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn jobs_are_counted_or_follow_the_cpus() {
        let cpus = std::thread::available_parallelism().unwrap().get();
        for (text, jobs) in
            [("7", 7), ("0", usize::MAX), ("100%", cpus), ("300%", 3 * cpus), ("+2", cpus + 2), ("-1000", 1)]
        {
            assert_eq!(text.parse(), Ok(Jobs(jobs)), "{text}");
        }
        assert!("many".parse::<Jobs>().is_err());
    }
}
