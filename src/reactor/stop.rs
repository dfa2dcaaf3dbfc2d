//! How a child is stopped, as data: the steps of a ladder and how far it has got. Sends nothing.

use std::time::{Duration, Instant};

use crate::command::{Cancel, Closure, Step};
use crate::signal::Signal;

/// One step, and how long it has before the next.
#[derive(Clone, Debug)]
pub(crate) struct Rung {
    pub(crate) deed: Deed,
    /// `None`: for ever.
    pub(crate) wait: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Signal(Signal),
    CloseStdin,
    Call(Closure),
}

impl Rung {
    pub(crate) fn kill() -> Rung {
        Rung { deed: Deed::Signal(Signal::SIGKILL), wait: None }
    }

    pub(crate) fn signal(signal: Signal, wait: Option<Duration>) -> Rung {
        Rung { deed: Deed::Signal(signal), wait }
    }
}

/// The steps of a stop. The default one is SIGKILL.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    rungs: Vec<Rung>,
    taken: usize,
    /// When the next step is due.
    pub(crate) due: Option<Instant>,
}

impl Default for Ladder {
    fn default() -> Ladder {
        Ladder::new(vec![Rung::kill()])
    }
}

impl Ladder {
    pub(crate) fn new(rungs: Vec<Rung>) -> Ladder {
        Ladder { rungs, taken: 0, due: None }
    }

    /// The next step to take.
    pub(crate) fn advance(&mut self) -> Option<Rung> {
        let rung = self.rungs.get(self.taken).cloned();
        self.taken += usize::from(rung.is_some());
        rung
    }

    /// Whether all steps were taken.
    pub(crate) fn is_over(&self) -> bool {
        self.taken >= self.rungs.len()
    }
}

impl From<&Cancel> for Ladder {
    fn from(cancel: &Cancel) -> Ladder {
        let single = |deed| vec![Rung { deed, wait: None }];
        Ladder::new(match cancel {
            Cancel::Kill => vec![Rung::kill()],
            Cancel::Signal(signal) => single(Deed::Signal(*signal)),
            Cancel::CloseStdin => single(Deed::CloseStdin),
            Cancel::Nothing => Vec::new(),
            Cancel::Call(closure) => single(Deed::Call(closure.clone())),
            Cancel::Steps(steps) => {
                let rung = |(step, wait): &(Step, Duration)| Rung {
                    deed: match step {
                        Step::Signal(signal) => Deed::Signal(*signal),
                        Step::CloseStdin => Deed::CloseStdin,
                        Step::Kill => Deed::Signal(Signal::SIGKILL),
                    },
                    wait: Some(*wait),
                };
                steps.iter().map(rung).chain([Rung::kill()]).collect()
            }
        })
    }
}

/// The `wait_delay` clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Delay {
    #[default]
    Unset,
    At(Instant),
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_always_ends_in_sigkill() {
        let steps = vec![(Step::Signal(Signal::SIGINT), Duration::from_secs(1)), (Step::CloseStdin, Duration::ZERO)];
        for cancel in [Cancel::Steps(steps), Cancel::Steps(Vec::new()), Cancel::Kill] {
            let mut ladder = Ladder::from(&cancel);
            let mut last = None;
            while let Some(rung) = ladder.advance() {
                last = Some(rung);
            }
            assert!(ladder.is_over());
            assert!(matches!(last, Some(Rung { deed: Deed::Signal(Signal::SIGKILL), .. })), "{cancel:?}");
        }
    }

    #[test]
    fn nothing_has_no_steps() {
        assert!(Ladder::from(&Cancel::Nothing).is_over());
    }
}
