//! A queue of spawns that nobody's thread waits for, and a few threads that make them. They live as long as the process: what the kernel
//! ties to the thread that forks is then tied to the process. Knows nothing of what it runs.
//!
//! Whoever waits has a [`Ticket`], and may leave the queue by it at any time. Whatever decides who may enter the queue, and when, stands in
//! front of it and pushes later.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::sys::PerProcess;
use crate::sys::process::with_signals_blocked;
use crate::tell::{Level, tell};

/// How many of them work at once. A spawner sleeps from the clone to the exec, while its child is busy on another processor.
const SPAWNERS: usize = 4;
/// After so long at one spawn a spawner is taken for stuck (a filesystem that does not answer, a frozen cgroup), and replaced.
const STUCK: Duration = Duration::from_millis(100);
/// How many there are at most, stuck ones included.
const SPAWNERS_MAX: usize = 16;
/// How many spawns may wait.
const QUEUE_MAX: usize = 1 << 17;

/// What waits in the queue. One of the two is called, once.
pub(crate) trait Job: Send {
    /// On a spawner thread: its turn has come.
    fn begin(self: Box<Self>);

    /// It was made to leave the queue; by whoever did that, on any thread.
    fn left(self: Box<Self>);
}

impl fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("job")
    }
}

/// A place in the queue: nobody's turn comes before it is due; else first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    due: Instant,
    number: u64,
}

impl Ticket {
    pub(crate) fn new(due: Instant) -> Ticket {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ticket { due, number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// Has a spawner thread begin `job` when it is its turn. On an error it is dropped.
    pub(crate) fn queue(self, job: Box<dyn Job>) -> Result<()> {
        let pool = POOL.get();
        if pool.state().queue.len() >= QUEUE_MAX {
            let error = Error::new(ErrorKind::NoProcessSlots).at(Stage::Clone);
            return Err(error.saying(format!("{QUEUE_MAX} spawns are waiting")));
        }
        pool.push(self, job)
    }

    /// As [`Ticket::queue`], for one whose turn has come already, by the thread that took it.
    pub(crate) fn queue_again(self, job: Box<dyn Job>) {
        let mut state = POOL.get().state();
        state.queue.insert(self, job);
    }

    /// Takes it out of the queue, if it is there: not yet, or not any more, are nothing.
    pub(crate) fn leave(self) -> Option<Box<dyn Job>> {
        POOL.get().state().queue.remove(&self)
    }
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: BTreeMap<Ticket, Box<dyn Job>>,
    threads: usize,
    /// How many wait for work, or are on their way to it.
    idle: usize,
    /// When those at work began, by their jobs.
    working: Vec<(Ticket, Instant)>,
    /// When one of the idle will look by itself.
    next_look: Option<Instant>,
}

/// In a forked copy there are no threads.
static POOL: PerProcess<Pool> = PerProcess::new();

/// What an idle spawner finds.
enum Found {
    Work(Ticket, Box<dyn Job>),
    /// Not before then.
    Later(Instant),
    Nothing,
}

impl State {
    fn find(&mut self, now: Instant) -> Found {
        let busy = self.busy_until(now);
        let Some(first) = self.queue.first_entry() else {
            return Found::Nothing;
        };
        match busy {
            _ if first.key().due > now => Found::Later(first.key().due),
            (SPAWNERS.., Some(next)) => Found::Later(next),
            _ => {
                let (ticket, job) = first.remove_entry();
                self.working.push((ticket, now));
                Found::Work(ticket, job)
            }
        }
    }

    /// How many are at work that are not taken for stuck, and when the first of them will be.
    fn busy_until(&self, now: Instant) -> (usize, Option<Instant>) {
        let ends = self.working.iter().map(|(_, began)| *began + STUCK).filter(|end| *end > now);
        (ends.clone().count(), ends.min())
    }

    fn has_room(&self, now: Instant) -> bool {
        self.busy_until(now).0 < SPAWNERS
    }

    fn needs_another(&self) -> bool {
        self.idle == 0 && self.threads < SPAWNERS_MAX
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, ticket: Ticket, job: Box<dyn Job>) -> Result<()> {
        let mut state = self.state();
        state.queue.insert(ticket, job);
        if state.idle > 0 {
            // Nobody is woken for what must wait for a spawner, if somebody looks by himself.
            let is_for_somebody = state.next_look.is_none() || state.has_room(Instant::now());
            drop(state);
            if is_for_somebody {
                self.work.notify_one();
            }
            return Ok(());
        }
        match self.start_another(&mut state) {
            // Nobody would come for it.
            Err(error) if state.threads == 0 => {
                let job = state.queue.remove(&ticket);
                drop(state);
                // Outside the lock: it holds a caller's waker, which is told.
                drop(job);
                Err(Error::os(Stage::Clone, error).saying("the spawner thread"))
            }
            _ => Ok(()),
        }
    }

    /// One in reserve, if all are busy: it works, or sees to it that whoever gets stuck is replaced. The first one is started by a caller, the
    /// others by spawners: what belongs to a caller's thread alone (its priority, its sandbox) is not theirs.
    fn start_another(&'static self, state: &mut State) -> std::io::Result<()> {
        if !state.needs_another() {
            return Ok(());
        }
        let spawner = || thread::Builder::new().name("pidloop-spawner".into()).spawn(|| self.work());
        with_signals_blocked(spawner)?;
        state.threads += 1;
        state.idle += 1;
        Ok(())
    }

    fn work(&'static self) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            match state.find(now) {
                Found::Work(ticket, job) => {
                    state.idle -= 1;
                    // If none can be had those who are there go on.
                    let _ = self.start_another(&mut state);
                    // Somebody looks whether one gets stuck.
                    let unwatched = state.idle > 0 && !state.queue.is_empty() && state.next_look.is_none();
                    drop(state);
                    if unwatched {
                        self.work.notify_one();
                    }
                    if catch_unwind(AssertUnwindSafe(|| job.begin())).is_err() {
                        tell(Level::Error, format_args!("a spawn panicked"));
                    }
                    state = self.state();
                    state.working.retain(|(other, _)| *other != ticket);
                    state.idle += 1;
                }
                Found::Later(at) => {
                    state.next_look = Some(state.next_look.map_or(at, |known| known.min(at)));
                    let left = at.saturating_duration_since(now);
                    state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                    // Whoever else looks by himself may be woken once more than he need be.
                    state.next_look = None;
                }
                Found::Nothing => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Note(Sender<(&'static str, Instant)>, &'static str);

    impl Job for Note {
        fn begin(self: Box<Self>) {
            self.0.send((self.1, Instant::now())).unwrap();
        }

        fn left(self: Box<Self>) {
            self.0.send(("left", Instant::now())).unwrap();
        }
    }

    #[test]
    fn a_job_begins_when_it_is_due_unless_it_has_left() {
        let (sender, told) = channel();
        let queue = |after, what| {
            let ticket = Ticket::new(Instant::now() + after);
            ticket.queue(Box::new(Note(sender.clone(), what))).unwrap();
            ticket
        };
        let never = queue(Duration::from_secs(60), "never");
        let later = queue(Duration::from_millis(50), "later");
        queue(Duration::ZERO, "now");
        let next = || told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(next().0, "now");
        let (what, at) = next();
        assert_eq!(what, "later");
        assert!(at >= later.due);
        never.leave().expect("it waits").left();
        assert_eq!(next().0, "left");
        assert!(never.leave().is_none() && later.leave().is_none());
    }

    struct Hang(Receiver<()>, Sender<()>);

    impl Job for Hang {
        fn begin(self: Box<Self>) {
            self.1.send(()).unwrap();
            let _ = self.0.recv();
        }

        fn left(self: Box<Self>) {}
    }

    #[test]
    fn whoever_was_held_back_for_long_waits_for_nobody_who_is_stuck() {
        const SOON: Duration = Duration::from_secs(20);
        let (sender, told) = channel();
        let began = Instant::now();
        let far = Ticket::new(began + Duration::from_secs(60));
        far.queue(Box::new(Note(sender.clone(), "far"))).unwrap();
        let mut gates = Vec::new();
        for _ in 0..SPAWNERS {
            let (release, gate) = channel();
            let (hangs, hanging) = channel();
            Ticket::new(Instant::now()).queue(Box::new(Hang(gate, hangs))).unwrap();
            hanging.recv_timeout(SOON).unwrap();
            gates.push(release);
        }
        // Until they are taken for stuck; nobody tells.
        assert!(told.recv_timeout(2 * STUCK).is_err());
        Ticket::new(began).queue(Box::new(Note(sender, "held back"))).unwrap();
        assert_eq!(told.recv_timeout(SOON).unwrap().0, "held back");
        far.leave().expect("it waits").left();
    }
}
