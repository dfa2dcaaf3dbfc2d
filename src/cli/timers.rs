//! The loop's own deadlines, by a clock that can stand still: time does not pass for jobs that are stopped. Knows nothing of what is due.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Deadlines with what is due at each.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    due: BTreeMap<Key, T>,
    count: u64,
    /// How long the clock has stood still.
    behind: Duration,
}

/// Names a deadline.
pub(crate) type Key = (Instant, u64);

impl<T> Timers<T> {
    pub(crate) fn new() -> Timers<T> {
        Timers { due: BTreeMap::new(), count: 0, behind: Duration::ZERO }
    }

    /// `None`: so late that no clock says it.
    pub(crate) fn arm(&mut self, after: Duration, what: T) -> Option<Key> {
        let at = (Instant::now() - self.behind).checked_add(after)?;
        self.count += 1;
        self.due.insert((at, self.count), what);
        Some((at, self.count))
    }

    pub(crate) fn disarm(&mut self, key: Key) {
        self.due.remove(&key);
    }

    /// How long until something is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        let ((at, _), _) = self.due.first_key_value()?;
        Some(at.checked_add(self.behind)?.saturating_duration_since(Instant::now()))
    }

    /// Something that is due, once.
    pub(crate) fn take_due(&mut self) -> Option<T> {
        let now = Instant::now() - self.behind;
        self.due.first_entry().filter(|entry| entry.key().0 <= now).map(|entry| entry.remove())
    }

    /// The clock stood still for so long.
    pub(crate) fn stood_still(&mut self, span: Duration) {
        self.behind += span;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_once() {
        let mut timers = Timers::new();
        let disarmed = timers.arm(Duration::ZERO, "disarmed").unwrap();
        timers.arm(Duration::ZERO, "first");
        timers.arm(Duration::ZERO, "second");
        timers.arm(Duration::from_secs(60), "later");
        timers.disarm(disarmed);
        assert_eq!([timers.take_due(), timers.take_due(), timers.take_due()], [Some("first"), Some("second"), None]);
        assert!(timers.next().unwrap() > Duration::from_secs(50));
        assert_eq!(timers.arm(Duration::MAX, "never"), None);
    }

    #[test]
    fn nothing_comes_nearer_while_the_clock_stands_still() {
        let mut timers = Timers::new();
        timers.arm(Duration::ZERO, "due");
        timers.stood_still(Duration::from_secs(60));
        assert_eq!(timers.take_due(), None);
        assert!(timers.next().unwrap() > Duration::from_secs(50));
    }
}
