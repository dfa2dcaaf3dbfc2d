//! Threads that sleep until a child is stopped or continued, for those few children whose callers ask for that: a pidfd does not tell. Knows
//! a pidfd and what to call.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::error::{Error, ErrorKind, Result, Stage};
pub(crate) use crate::sys::process::StopState;
use crate::sys::process::{await_stop, with_signals_blocked};
use crate::tell::{Level, tell};

/// How many of these threads there may be.
const WATCHES_MAX: usize = 1024;

static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// A thread that is there before its child is; without a child it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch(mpsc::Sender<Arc<OwnedFd>>);

/// One of those that may be there.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let taken = WATCHES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < WATCHES_MAX).then_some(n + 1));
        taken.ok().map(|_| Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch {
    pub(crate) fn new(tell_stop: impl Fn(StopState) + Send + 'static) -> Result<Watch> {
        let full = || Error::new(ErrorKind::NoProcessSlots).at(Stage::Register).saying("1024 threads wait for stops");
        let place = Place::take().ok_or_else(full)?;
        let (sender, receiver) = mpsc::channel::<Arc<OwnedFd>>();
        let main = move || {
            if let Ok(pidfd) = receiver.recv() {
                watch(&pidfd, &tell_stop);
            }
            drop((tell_stop, place));
        };
        with_signals_blocked(|| thread::Builder::new().name("pidloop-stops".into()).spawn(main))
            .map_err(|error| Error::os(Stage::Clone, error).saying("a thread that waits for stops"))?;
        Ok(Watch(sender))
    }

    pub(crate) fn begin(self, pidfd: Arc<OwnedFd>) {
        // It waits for this.
        let _ = self.0.send(pidfd);
    }
}

fn watch(pidfd: &OwnedFd, tell_stop: &dyn Fn(StopState)) {
    loop {
        match await_stop(pidfd.as_fd()) {
            Ok(Some(state)) => {
                if catch_unwind(AssertUnwindSafe(|| tell_stop(state))).is_err() {
                    tell(Level::Warn, format_args!("a closure of on_stopped panicked"));
                }
            }
            Ok(None) => return,
            Err(error) => return warn(&error),
        }
    }
}

fn warn(error: &io::Error) {
    tell(Level::Warn, format_args!("stops are told no more: waitid: {error}"));
}
