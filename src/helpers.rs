//! A few threads for code that is not ours: closures and drops of a caller's values. Knows nothing of what it runs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::PerProcess;
use crate::sys::process::with_signals_blocked;
use crate::tell::{Level, tell};

/// How many of them there are at most. A closure that blocks for ever takes one of them away.
const HELPERS_MAX: usize = 16;
/// How long one stays without work.
const IDLE_MAX: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

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

/// Runs `job` soon on a thread of its own; in the order of the calls, if all are busy.
pub(crate) fn run(job: Job) {
    let pool = POOL.get();
    let mut state = pool.state();
    state.queue.push_back(job);
    if state.idle >= state.queue.len() {
        pool.work.notify_one();
    } else if state.threads < HELPERS_MAX {
        state.threads += 1;
        drop(state);
        let helper = || thread::Builder::new().name("pidloop-helper".into()).spawn(move || pool.help());
        if let Err(error) = with_signals_blocked(helper) {
            let mut state = pool.state();
            state.threads -= 1;
            // Told by whoever comes next: our caller may hold a child's lock, and a logger is somebody else's code.
            let told = move || tell(Level::Error, format_args!("no helper thread: {error}: a closure had to wait"));
            state.queue.push_back(Box::new(told));
        }
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn help(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tell(Level::Warn, format_args!("a caller's closure panicked"));
                }
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_that_block_or_panic_leave_the_others_alone() {
        let (release, gate) = mpsc::channel::<()>();
        run(Box::new(move || gate.recv().unwrap_or_default()));
        run(Box::new(|| panic!("as asked")));
        let (done, ended) = mpsc::channel();
        for i in 0..100 {
            let done = done.clone();
            run(Box::new(move || done.send(i).unwrap()));
        }
        let mut seen: Vec<i32> = (0..100).map(|_| ended.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!(POOL.get().state().threads <= HELPERS_MAX);
        drop(release);
    }
}
