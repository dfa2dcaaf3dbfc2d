//! A child that is not there yet: it waits to be admitted, or for a thread that starts it. Knows both queues by who leaves them.

use super::{After, Cell, Life, Others};
use crate::admission::{Applicant, Number, Permit};
use crate::error::{Error, Result};
use crate::spawner::{Job, Ticket};

/// Where it waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// To be admitted.
    Admission(Number),
    /// For a spawner thread.
    Spawner(Ticket),
}

/// It was taken out of there, and is to be told when no lock is held.
#[derive(Debug)]
pub(super) enum Left {
    Admission(Box<dyn Applicant>),
    Spawner(Box<dyn Job>),
}

impl Turn {
    fn leave(self) -> Option<Left> {
        match self {
            Turn::Admission(number) => number.leave().map(Left::Admission),
            Turn::Spawner(ticket) => ticket.leave().map(Left::Spawner),
        }
    }
}

impl Left {
    pub(super) fn tell(self) {
        match self {
            Left::Admission(applicant) => applicant.left(),
            Left::Spawner(job) => job.left(),
        }
    }
}

impl Others {
    fn is_for_its_turn_alone(&self) -> bool {
        self.lent.is_none() && self.wakers.is_empty() && self.after.is_empty() && self.permit.is_none()
    }
}

impl Cell {
    /// It waits for its turn there. Said before it is put there: who stops it in between does not find it, and comes again.
    pub(crate) fn waits_for(&self, turn: Turn) {
        self.lock().others().turn = Some(turn);
    }

    /// Its turn has come; unless it has been stopped.
    pub(crate) fn takes_its_turn(&self) -> Result<()> {
        let mut life = self.lock();
        // Most children have nothing else there any more.
        life.others.take_if(|others| others.is_for_its_turn_alone());
        match life.pending.take() {
            Some(cause) => Err(Error::stopped(*cause)),
            None => Ok(()),
        }
    }

    /// Nothing is started any more.
    pub(crate) fn leave_queue(&self) {
        self.with(|life| self.leave_queue_locked(life));
    }

    /// Whether it was waiting. It is told when the lock is gone.
    pub(super) fn leave_queue_locked(&self, life: &mut Life) -> bool {
        let Some(others) = &mut life.others else { return false };
        let Some(left) = others.turn.and_then(Turn::leave) else { return false };
        others.after.push(After::Left(left));
        true
    }

    /// Its slots are taken until its end is seen.
    pub(crate) fn keep(&self, permit: Permit) {
        self.lock().others().permit = Some(Box::new(permit));
    }

    /// It came to nothing. Not to be dropped under a lock: others are admitted then.
    pub(crate) fn take_permit(&self) -> Option<Box<Permit>> {
        self.lock().others.as_mut()?.permit.take()
    }

    /// Its end was seen: others have its slots before anybody hears of that, and are told when the lock is gone.
    pub(super) fn release(&self, life: &mut Life) {
        if let Some(others) = &mut life.others {
            if let Some(mut permit) = others.permit.take() {
                permit.give_back();
                others.after.push(After::Release(permit));
            }
        }
    }
}
