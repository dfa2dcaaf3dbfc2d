//! What a loop counts and times, and what its owner is shown of that. Numbers without locks; knows nothing of children.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::spawn::{Capabilities, capabilities};

/// Each octave has 2 to the power of so many buckets: what is told of a value is at most an eighth of it too much.
const OCTAVE_BITS: u32 = 3;
const OCTAVE: u64 = 1 << OCTAVE_BITS;
/// Values from 2 to the power of this on share the last bucket: 18 minutes, in nanoseconds.
const RANGE_BITS: u32 = 40;
const BUCKETS: usize = ((RANGE_BITS - OCTAVE_BITS + 1) << OCTAVE_BITS) as usize;

fn bucket_of(value: u64) -> usize {
    if value < OCTAVE {
        return value as usize;
    }
    let shift = value.ilog2() - OCTAVE_BITS;
    let place = ((u64::from(shift) + 1) << OCTAVE_BITS) + (value >> shift) - OCTAVE;
    (place as usize).min(BUCKETS - 1)
}

/// The largest value that the bucket has.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < OCTAVE {
        return bucket;
    }
    let shift = (bucket >> OCTAVE_BITS) - 1;
    (((bucket & (OCTAVE - 1)) + OCTAVE + 1) << shift) - 1
}

/// How often which value came up: a count for each of 304 sizes, so that it takes the same room however many there were.
///
/// What it tells of a single value is never too little, and at most an eighth too much (exact below 16); `max` and `mean` are exact. Values of
/// 2^40 and more count as one size.
#[derive(Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Histogram {
    /// Without the empty ones at the end.
    counts: Vec<u64>,
    sum: u64,
    max: u64,
}

impl Histogram {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The largest one; 0 if there was none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Their mean, rounded down; 0 if there was none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count()).unwrap_or(0)
    }

    /// The value that a part of them, 0.0 to 1.0, does not exceed: `quantile(0.99)`. `None` if there was none.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let count = self.count();
        let rank = ((count as f64 * part.clamp(0.0, 1.0)).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(if bucket == BUCKETS - 1 { self.max } else { upper_bound(bucket).min(self.max) })
    }

    /// The sizes that came up: (the largest value that counts as this size, how many there were).
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(at, count)| (upper_bound(at), *count))
    }

    /// What came since `earlier`, an older one of the same source; `max` is that of all.
    fn since(&self, earlier: &Histogram) -> Histogram {
        let before = earlier.counts.iter().copied().chain(std::iter::repeat(0));
        Histogram {
            counts: self.counts.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect(),
            sum: self.sum.wrapping_sub(earlier.sum),
            max: self.max,
        }
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 0 {
            return f.write_str("none");
        }
        let [half, most] = [0.5, 0.99].map(|part| self.quantile(part).unwrap_or(0));
        write!(f, "{} of them: p50 {half}, p99 {most}, max {}", self.count(), self.max)
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How long something took, each time: a [`Histogram`] of nanoseconds, with its bounds on what it tells.
#[derive(Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Latency(Histogram);

impl Latency {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.count()
    }

    /// The longest one; zero if there was none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Their mean; zero if there was none.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean())
    }

    /// The time that a part of them, 0.0 to 1.0, does not exceed: `quantile(0.99)`. `None` if there was none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        self.0.quantile(part).map(Duration::from_nanos)
    }

    /// The nanoseconds.
    pub fn histogram(&self) -> &Histogram {
        &self.0
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 0 {
            return f.write_str("none");
        }
        let [half, most] = [0.5, 0.99].map(|part| self.quantile(part).unwrap_or_default());
        write!(f, "{} of them: p50 {half:?}, p99 {most:?}, max {:?}", self.count(), self.max())
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a driver or reactor has counted and timed since it was made: [`Driver::stats`](crate::Driver::stats),
/// [`Reactor::stats`](crate::Reactor::stats), [`stats`](crate::stats()) for the default driver.
///
/// Each number is right by itself; they are read one after the other while children start and end. What a dropped driver's children do
/// under the default one is not counted there.
///
/// ```
/// pidloop::Command::new("true").run()?;
/// let stats = pidloop::stats()?;
/// assert!(stats.exited >= 1 && stats.spawn.count() >= 1);
/// println!("{stats}");                              // a line for each number
/// # Ok::<(), pidloop::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stats {
    /// Children that live.
    pub running: u64,
    /// Spawns that wait to be admitted.
    pub queued: u64,
    /// Children whose program began.
    pub spawned: u64,
    /// Spawns that failed, whatever the reason; those that a context or deadline kept from beginning are among them.
    pub failed: u64,
    /// Children whose end was seen.
    pub exited: u64,
    /// Those of them that were stopped: [`Exit::cause`](crate::Exit::cause) tells why.
    pub cancelled: u64,
    /// Those of them that died of a SIGKILL that a stop had sent.
    pub killed: u64,
    /// Events for somebody who was gone already when they were served: a child that another thread reaped meanwhile.
    pub stale_events: u64,
    /// Bytes that the loop read from children.
    pub read_bytes: u64,
    /// From the beginning of a spawn, on the thread that does it, until its program runs.
    pub spawn: Latency,
    /// From when an end was seen until the thread that slept for it, or the future that was woken for it, runs again. Whoever reaps a child by
    /// itself, as a thread in [`Child::wait`](crate::Child::wait) does, waits for nobody and is not counted.
    pub exit_to_wake: Latency,
    /// From the beginning of a stop until the end of the child was seen.
    pub cancel_to_exit: Latency,
    /// How many events each turn of the loop took from the kernel.
    pub batch: Histogram,
    /// Which ways of starting a child are in use.
    pub ways: Capabilities,
}

impl Stats {
    /// What has been counted since `earlier`, an older one of the same source: `running`, `queued` and `ways` are those of now, and so is the
    /// `max` of each histogram.
    pub fn since(&self, earlier: &Stats) -> Stats {
        let latency = |now: &Latency, before: &Latency| Latency(now.0.since(&before.0));
        Stats {
            running: self.running,
            queued: self.queued,
            spawned: self.spawned.saturating_sub(earlier.spawned),
            failed: self.failed.saturating_sub(earlier.failed),
            exited: self.exited.saturating_sub(earlier.exited),
            cancelled: self.cancelled.saturating_sub(earlier.cancelled),
            killed: self.killed.saturating_sub(earlier.killed),
            stale_events: self.stale_events.saturating_sub(earlier.stale_events),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            spawn: latency(&self.spawn, &earlier.spawn),
            exit_to_wake: latency(&self.exit_to_wake, &earlier.exit_to_wake),
            cancel_to_exit: latency(&self.cancel_to_exit, &earlier.cancel_to_exit),
            batch: self.batch.since(&earlier.batch),
            ways: self.ways,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, number) in [
            ("running", self.running),
            ("queued", self.queued),
            ("spawned", self.spawned),
            ("failed", self.failed),
            ("exited", self.exited),
            ("cancelled", self.cancelled),
            ("killed", self.killed),
            ("stale events", self.stale_events),
            ("read bytes", self.read_bytes),
        ] {
            writeln!(f, "{name:<15}{number}")?;
        }
        writeln!(f, "{:<15}{}", "spawn", self.spawn)?;
        writeln!(f, "{:<15}{}", "exit to wake", self.exit_to_wake)?;
        writeln!(f, "{:<15}{}", "cancel to exit", self.cancel_to_exit)?;
        writeln!(f, "{:<15}{}", "batch", self.batch)?;
        write!(f, "{}", self.ways)
    }
}

// ── counting ──

/// A number that any thread adds to. Relaxed throughout: nothing is read by it but the number itself.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A histogram that any thread adds to.
#[derive(Debug)]
pub(crate) struct Recording {
    counts: Box<[Counter]>,
    sum: Counter,
    max: AtomicU64,
}

impl Default for Recording {
    fn default() -> Recording {
        let counts = (0..BUCKETS).map(|_| Counter::default()).collect();
        Recording { counts, sum: Counter::default(), max: AtomicU64::new(0) }
    }
}

impl Recording {
    pub(crate) fn record(&self, value: u64) {
        self.counts[bucket_of(value)].increment();
        self.sum.add(value);
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn record_time(&self, time: Duration) {
        self.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn snapshot(&self) -> Histogram {
        let mut counts: Vec<u64> = self.counts.iter().map(Counter::get).collect();
        counts.truncate(counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
        Histogram { counts, sum: self.sum.get(), max: self.max.load(Ordering::Relaxed) }
    }
}

/// What one loop and those around it count.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) queued: Counter,
    pub(crate) spawned: Counter,
    pub(crate) failed: Counter,
    pub(crate) exited: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) killed: Counter,
    pub(crate) stale_events: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) spawn: Recording,
    pub(crate) exit_to_wake: Recording,
    pub(crate) cancel_to_exit: Recording,
    pub(crate) batch: Recording,
}

impl Recorder {
    pub(crate) fn snapshot(&self) -> Stats {
        // Ends first: who has ended was spawned before.
        let exited = self.exited.get();
        let spawned = self.spawned.get();
        Stats {
            running: spawned.saturating_sub(exited),
            queued: self.queued.get(),
            spawned,
            failed: self.failed.get(),
            exited,
            cancelled: self.cancelled.get(),
            killed: self.killed.get(),
            stale_events: self.stale_events.get(),
            read_bytes: self.read_bytes.get(),
            spawn: Latency(self.spawn.snapshot()),
            exit_to_wake: Latency(self.exit_to_wake.snapshot()),
            cancel_to_exit: Latency(self.cancel_to_exit.snapshot()),
            batch: self.batch.snapshot(),
            ways: capabilities(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bucket_tells_of_a_value_is_at_most_an_eighth_too_much() {
        let around = |bits: u32| (0..64u64).map(move |part| (1u64 << bits) + ((part << bits) >> 6));
        for value in (0..1000).chain((10..RANGE_BITS).flat_map(around)) {
            let told = upper_bound(bucket_of(value));
            assert!(told >= value && told - value <= value / 8, "{value} is told as {told}");
        }
        assert!((1..BUCKETS).all(|at| bucket_of(upper_bound(at)) == at && bucket_of(upper_bound(at - 1) + 1) == at));
        assert_eq!((bucket_of(1 << RANGE_BITS), bucket_of(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let recording = Recording::default();
        let none = recording.snapshot();
        assert_eq!((none.count(), none.quantile(0.5), none.mean(), none.max()), (0, None, 0, 0));
        let mut values: Vec<u64> = (0..5000).map(|n| n * n * 37).collect();
        values.iter().for_each(|value| recording.record(*value));
        recording.record(u64::MAX / 2);
        values.push(u64::MAX / 2);
        let histogram = recording.snapshot();
        assert_eq!((histogram.count(), histogram.max()), (5001, u64::MAX / 2));
        for part in [0.0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0, 7.0] {
            let rank = ((5001.0 * f64::min(part, 1.0)).ceil() as usize).max(1);
            let (exact, told) = (values[rank - 1], histogram.quantile(part).unwrap());
            assert!(told >= exact && told - exact <= exact / 8, "{part}: {told} for {exact}");
        }
        assert_eq!(histogram.iter().map(|(_, count)| count).sum::<u64>(), 5001);
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let recording = Recording::default();
        recording.record(3);
        let before = recording.snapshot();
        recording.record(5);
        recording.record(500);
        let since = recording.snapshot().since(&before);
        assert_eq!((since.count(), since.mean(), since.quantile(0.5)), (2, 252, Some(5)));
    }
}
