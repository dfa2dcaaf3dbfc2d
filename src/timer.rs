//! Deadlines in order. Knows instants and whom they belong to; reads no clock and sets no timer.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::token::Token;

/// Which of a slot's deadlines it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Clock {
    /// The command's timeout, or a context's deadline.
    Deadline,
    /// The next step of a stop.
    Step,
    /// `wait_delay`.
    Delay,
    /// Another try at a child that could not be signalled or reaped yet.
    Retry,
    /// The end of a dead child's wait for its `Cancel::call` closure.
    Call,
    /// The end of the time that a caller's writers have after a cut.
    Copy,
    /// The cut of what a stopped child left, when its exit has been told.
    Cut,
}

/// A deadline: whose, and which.
pub(crate) type Alarm = (Token, Clock);

/// The armed deadlines of one reactor; arming and disarming cost O(log n).
#[derive(Debug, Default)]
pub(crate) struct Timers {
    armed: BTreeSet<(Instant, Alarm)>,
}

impl Timers {
    pub(crate) fn arm(&mut self, at: Instant, alarm: Alarm) {
        self.armed.insert((at, alarm));
    }

    pub(crate) fn disarm(&mut self, at: Instant, alarm: Alarm) {
        self.armed.remove(&(at, alarm));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.armed.first().map(|(at, _)| *at)
    }

    /// Takes the earliest deadline that has passed at `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Alarm> {
        let (at, _) = *self.armed.first()?;
        if at > now {
            return None;
        }
        self.armed.pop_first().map(|(_, alarm)| alarm)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::token::Kind;

    fn alarm(slot: u32, clock: Clock) -> Alarm {
        (Token::new(Kind::Child, 1, slot), clock)
    }

    #[test]
    fn deadlines_come_in_order_and_never_early() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.arm(at(20), alarm(1, Clock::Delay));
        timers.arm(at(10), alarm(2, Clock::Deadline));
        timers.arm(at(30), alarm(3, Clock::Step));
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(20)), Some(alarm(2, Clock::Deadline)));
        assert_eq!(timers.pop_due(at(20)), Some(alarm(1, Clock::Delay)));
        assert_eq!(timers.pop_due(at(20)), None);
    }

    #[test]
    fn two_deadlines_of_one_instant_are_two() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.arm(now, alarm(1, Clock::Deadline));
        timers.arm(now, alarm(1, Clock::Delay));
        timers.disarm(now, alarm(1, Clock::Delay));
        assert_eq!(timers.pop_due(now), Some(alarm(1, Clock::Deadline)));
        assert_eq!(timers.pop_due(now), None);
    }
}
