//! A few threads that start children for others and live as long as the process: what the kernel ties to the thread that forks is then
//! tied to the process. Knows nothing of what they run.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::sys::PerProcess;
use crate::sys::process::with_signals_blocked;
use crate::tell::{Level, tell};

/// How many of them there are at most. A spawn that hangs, in a filesystem that does not answer, takes one of them away.
const SPAWNERS_MAX: usize = 8;

pub(crate) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// In a forked copy there are no threads.
static POOL: PerProcess<Pool> = PerProcess::new();

/// Runs `spawn` on one of the threads and waits for what it returns.
pub(crate) fn run<T: Send + 'static>(spawn: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    let job = Box::new(move || {
        // The caller waits: it cannot be gone.
        let _ = sender.send(spawn());
    });
    begin(job)?;
    receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io).saying("a spawner thread panicked")))
}

/// Runs `job` on one of the threads; in the order of the calls, if all are busy.
pub(crate) fn begin(job: Job) -> Result<()> {
    POOL.get().push(job)
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, job: Job) -> Result<()> {
        let mut state = self.state();
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            self.work.notify_one();
            return Ok(());
        }
        if state.threads == SPAWNERS_MAX {
            return Ok(());
        }
        let spawner = || thread::Builder::new().name("pidloop-spawner".into()).spawn(|| self.work());
        match with_signals_blocked(spawner) {
            Ok(_) => state.threads += 1,
            // Nobody would come for it.
            Err(error) if state.threads == 0 => {
                let job = state.queue.pop_back();
                drop(state);
                // Outside the lock: it holds a caller's waker, which is told.
                drop(job);
                return Err(Error::os(Stage::Clone, error).saying("the spawner thread"));
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tell(Level::Error, format_args!("a spawn panicked"));
                }
                state = self.state();
                continue;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
