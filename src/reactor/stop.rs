//! How a child is stopped, as data: the steps of a ladder and how far it has got. Sends nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

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

    /// Drops it; a closure in it by a helper thread.
    pub(crate) fn retire(self) {
        for rung in self.rungs {
            if let Deed::Call(closure) = rung.deed {
                closure.retire();
            }
        }
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

/// How the closure of `Cancel::call` failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There was nothing to stop any more; Go's `ErrProcessDone`.
    Gone,
    Because(Arc<io::Error>),
}

impl Failure {
    /// `None` if it did not.
    pub(crate) fn of(result: thread::Result<io::Result<()>>) -> Option<Failure> {
        match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) if says_gone(&error) => Some(Failure::Gone),
            Ok(Err(error)) => Some(Failure::Because(Arc::new(error))),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().copied();
                let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                Some(Failure::Because(Arc::new(io::Error::other(match text {
                    Some(text) => format!("the closure panicked: {text}"),
                    None => "the closure panicked".into(),
                }))))
            }
        }
    }
}

/// Whether ESRCH is at the bottom of it.
fn says_gone(error: &io::Error) -> bool {
    let mut next = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    while let Some(inner) = next {
        if inner.downcast_ref::<io::Error>().is_some_and(says_gone) {
            return true;
        }
        next = inner.source();
    }
    error.raw_os_error() == Some(libc::ESRCH)
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
    fn a_failure_is_told_by_what_is_at_the_bottom_of_it() {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let told = |result| match Failure::of(result) {
            None => "no failure".to_owned(),
            Some(Failure::Gone) => "gone".to_owned(),
            Some(Failure::Because(error)) => error.to_string(),
        };
        assert_eq!(told(Ok(Ok(()))), "no failure");
        assert_eq!(told(Ok(Err(gone()))), "gone");
        assert_eq!(told(Ok(Err(io::Error::other(io::Error::other(gone()))))), "gone");
        assert_eq!(told(Ok(Err(io::Error::other("no")))), "no");
        assert_eq!(told(Err(Box::new("boom"))), "the closure panicked: boom");
        assert_eq!(told(Err(Box::new("boom".to_owned()))), "the closure panicked: boom");
        assert_eq!(told(Err(Box::new(1))), "the closure panicked");
    }

    #[test]
    fn nothing_has_no_steps() {
        assert!(Ladder::from(&Cancel::Nothing).is_over());
    }
}
