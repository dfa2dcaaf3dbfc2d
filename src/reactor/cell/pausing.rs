//! A child whose context is paused: stopped with its clocks, and continued. What a pause is, is its contexts' to say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{After, Cell, Life, Owner};
use crate::reactor::stop::Delay;
use crate::signal::Signal;
use crate::tell::Level;
use crate::timer::Clock;

/// What a pause has done to a child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Paused {
    #[default]
    No,
    /// Its clocks stand still from then on.
    Since(Instant),
    /// A stop has ended it: the child runs on under a paused context, towards its end.
    Ended,
}

impl Cell {
    /// One of its contexts was paused or resumed. Two threads may come in the order that is not theirs: what counts is what the contexts say
    /// now.
    pub(crate) fn follow_pause(self: &Arc<Cell>) {
        self.with(|life| self.follow_pause_locked(life));
    }

    pub(super) fn follow_pause_locked(self: &Arc<Cell>, life: &mut Life) {
        if life.owner == Owner::Creator {
            // It looks when it is born.
            return;
        }
        let wanted = life.token.is_some_and(|token| self.core.is_paused(token));
        match (wanted, life.paused()) {
            (true, Paused::No) => self.pause(life),
            (false, Paused::Since(since)) => {
                self.shift_clocks(life, since.elapsed());
                self.go_on(life);
                life.extra().paused = Paused::No;
            }
            (false, Paused::Ended) => life.extra().paused = Paused::No,
            _ => {}
        }
    }

    fn pause(&self, life: &mut Life) {
        let result = match life.cgroup() {
            Some(cgroup) => cgroup.freeze(true).or_else(|_| self.send(life, Signal::SIGSTOP)),
            None if life.has_exited() => return,
            None => self.send(life, Signal::SIGSTOP),
        };
        if let Err(error) = result {
            life.others().after.push(After::Say(Level::Warn, format!("it is not paused: {error}")));
        }
        life.extra().paused = Paused::Since(Instant::now());
    }

    fn go_on(&self, life: &Life) {
        // Nothing to tell: it is gone, or it was never stopped.
        let _ = match life.cgroup() {
            Some(cgroup) => cgroup.freeze(false).and(self.send(life, Signal::SIGCONT)),
            None => self.send(life, Signal::SIGCONT),
        };
    }

    /// What was armed before the pause comes so much later.
    fn shift_clocks(&self, life: &mut Life, by: Duration) {
        let Some(token) = life.token else { return };
        self.core.shift_deadline(token, by);
        let Some(extra) = &mut life.extra else { return };
        let shift = |at: Instant, clock: Clock| {
            self.core.disarm(at, (token, clock));
            let later = at.checked_add(by).unwrap_or(at);
            self.core.arm(later, (token, clock));
            later
        };
        extra.ladder.due = extra.ladder.due.map(|at| shift(at, Clock::Step));
        if let Delay::At(at) = extra.delay {
            extra.delay = Delay::At(shift(at, Clock::Delay));
        }
    }

    /// A stop begins, or it has ended: its clocks run on. It is continued by [`Cell::after_pause`], when the stop has been sent.
    pub(super) fn end_pause(&self, life: &mut Life) -> bool {
        let Paused::Since(since) = life.paused() else {
            return false;
        };
        self.shift_clocks(life, since.elapsed());
        life.extra().paused = Paused::Ended;
        true
    }

    pub(super) fn after_pause(&self, life: &Life, was_paused: bool) {
        if was_paused {
            self.go_on(life);
        }
    }
}

impl Life {
    pub(super) fn paused(&self) -> Paused {
        self.extra.as_ref().map_or(Paused::No, |extra| extra.paused)
    }

    /// Whether its clocks stand still.
    pub(super) fn is_paused(&self) -> bool {
        matches!(self.paused(), Paused::Since(_))
    }
}
