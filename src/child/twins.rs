//! The verbs that block, once more as futures, for any runtime: started by a spawner thread, woken by the loop. Knows what dropping each of
//! them does.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll, Waker};
use std::time::Duration;

use super::{BUSY, Child, Held, give_up, judge_output, judge_run, judge_status, sure};
use crate::cause::Cause;
use crate::command::Command;
use crate::driver::{Driver, default_core};
use crate::error::{Error, ErrorKind, Result};
use crate::exit::{Captured, Exit, Output};
use crate::reactor::cell::{Awaited, Cell, WakeKey};
use crate::reactor::core::Core;
use crate::reactor::start::{Defaults, Manner, start_elsewhere};
use crate::tell::wake;
use crate::token::Token;

/// Running it without blocking; needs no runtime in particular.
impl Command {
    /// As [`Command::spawn`], on a spawner thread: what belongs to the calling thread alone (Landlock, seccomp, CPU affinity, nice) does not
    /// apply to the child. Nothing happens before the future is polled.
    ///
    /// Two such threads work at a time; one that is stuck for 100 ms, since a filesystem does not answer, is replaced, up to 16 in all.
    /// Until its turn comes a spawn waits in a queue. A cancelled context, a passed deadline and a shutdown take it out at once.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`]; [`ErrorKind::NoProcessSlots`] if there is no spawner thread and none can be made, or if 131,072 spawns wait
    /// already.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future starts nothing, or kills what it has started.
    pub fn spawn_async(&self) -> impl Future<Output = Result<Child>> + Send + use<> {
        let spawning = Spawning::new(self, None, watched(Defaults::Inherit));
        async move { spawning.await.map(|cell| Child { cell }) }
    }

    /// As [`Command::status`], started as by [`Command::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Command::status`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the child.
    pub fn status_async(&self) -> impl Future<Output = Result<ExitStatus>> + Send + use<> {
        let finishing = self.finishing(Defaults::Inherit);
        async move { finishing.await.and_then(judge_status) }
    }

    /// As [`Command::run`], started as by [`Command::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Command::run`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the child.
    pub fn run_async(&self) -> impl Future<Output = Result<Exit>> + Send + use<> {
        let finishing = self.finishing(Defaults::Inherit);
        async move { finishing.await.and_then(judge_run) }
    }

    /// As [`Command::output`], started as by [`Command::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Command::output`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the child; what it wrote is lost.
    pub fn output_async(&self) -> impl Future<Output = Result<Output>> + Send + use<> {
        let finishing = self.finishing(Defaults::Capture);
        async move { finishing.await.and_then(judge_output) }
    }

    /// As [`Command::combined_output`], started as by [`Command::spawn_async`].
    ///
    /// # Errors
    ///
    /// As [`Command::combined_output`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the child; what it wrote is lost.
    pub fn combined_output_async(&self) -> impl Future<Output = Result<Output>> + Send + use<> {
        let finishing = self.finishing(Defaults::Combine);
        async move { finishing.await.and_then(judge_output) }
    }

    fn finishing(&self, defaults: Defaults) -> impl Future<Output = Result<(Exit, Captured)>> + Send + use<> {
        let spawning = Spawning::new(self, None, watched(defaults));
        async move {
            let held = Held(Some(spawning.await?));
            let exit = Ending::with_output(held.cell())?.await?;
            Ok((exit, held.release().take_captured()))
        }
    }
}

impl Driver {
    /// As [`Command::spawn_async`], on this driver.
    ///
    /// # Errors
    ///
    /// As [`Driver::spawn`].
    ///
    /// # Cancel safety
    ///
    /// As [`Command::spawn_async`].
    pub fn spawn_async(&self, command: &Command) -> impl Future<Output = Result<Child>> + Send + use<> {
        let spawning = Spawning::new(command, Some(self.core()), watched(Defaults::Inherit));
        async move { spawning.await.map(|cell| Child { cell }) }
    }
}

/// Waiting without blocking.
impl Child {
    /// As [`Child::wait`], for any runtime: needs none in particular.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing; the child runs on.
    pub fn wait_async(&self) -> impl Future<Output = Result<Exit>> + Send + '_ {
        self.cell.close_untaken_stdin();
        Ending::new(&self.cell)
    }

    /// As [`Child::wait_with_output`].
    ///
    /// # Errors
    ///
    /// As [`Child::wait_with_output`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the child, and what it wrote: it runs on, unless
    /// [`kill_on_drop`](Command::kill_on_drop) says otherwise.
    pub async fn wait_with_output_async(self) -> Result<Output> {
        let exit = Ending::with_output(&self.cell)?.await?;
        Output::new(exit, self.cell.take_captured())
    }

    /// As [`Child::terminate`]. Nothing is sent before the future is polled.
    ///
    /// # Errors
    ///
    /// As [`Child::terminate`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting alone: what was begun goes on, SIGKILL after `grace` included.
    pub async fn terminate_async(&self, grace: Duration) -> Result<Exit> {
        self.cell.check_ours()?;
        self.cell.terminate(grace);
        self.wait_async().await
    }
}

/// Waits for a death, or (`streams`) until the streams are done, too.
#[derive(Debug)]
pub(super) struct Ending {
    cell: Arc<Cell>,
    streams: bool,
    key: Option<WakeKey>,
}

impl Ending {
    fn new(cell: &Arc<Cell>) -> Ending {
        Ending { cell: cell.clone(), streams: false, key: None }
    }

    pub(super) fn with_output(cell: &Arc<Cell>) -> Result<Ending> {
        cell.capture_piped()?;
        Ok(Ending { cell: cell.clone(), streams: true, key: None })
    }
}

impl Future for Ending {
    type Output = Result<Exit>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<Exit>> {
        let this = &mut *self;
        let awaited = if this.streams { Awaited::Streams } else { Awaited::Death };
        // In a forked copy the lock may be held for ever: who asks there is told by `outcome`.
        if this.cell.check_ours().is_ok() && this.cell.wake_when(awaited, &mut this.key, cx.waker()) {
            return Poll::Pending;
        }
        let exit = this.cell.outcome(this.streams).and_then(sure);
        if let (Ok(exit), Some(_), false) = (&exit, &this.key, this.streams) {
            this.cell.woken(exit);
        }
        Poll::Ready(exit)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.key.into_iter().for_each(|key| self.cell.forget_waker(key));
    }
}

/// A child that is being started on a spawner thread.
pub(super) struct Spawning {
    command: Command,
    /// `None`: the default driver's, looked up when it is first polled.
    core: Option<Arc<Core>>,
    manner: Manner,
    /// `None`: not polled yet.
    begun: Option<(Arc<Cell>, Arc<Slot>)>,
}

/// What the future and the spawner thread share.
struct Slot(Mutex<Progress>);

enum Progress {
    /// Whom to wake.
    Underway(Waker),
    /// `None`: the future has it.
    Over(Option<Result<Arc<Cell>>>),
    /// The future was dropped.
    Abandoned,
}

fn watched(defaults: Defaults) -> Manner {
    Manner { defaults, busy: BUSY, watched: true }
}

impl Spawning {
    pub(super) fn new(command: &Command, core: Option<&Arc<Core>>, manner: Manner) -> Spawning {
        // Made once for all that are made of the same command.
        command.label();
        Spawning { command: command.clone(), core: core.cloned(), manner, begun: None }
    }

    fn begin(&mut self, waker: Waker) -> Result<()> {
        let core = match &self.core {
            Some(core) => core,
            None => self.core.insert(default_core().map_err(|error| error.of(self.command.shown()))?.clone()),
        };
        let slot = Arc::new(Slot(Mutex::new(Progress::Underway(waker))));
        let told = Told(slot.clone());
        let done = Box::new(move |result: Result<(Arc<Cell>, Token)>| told.0.end(result.map(|(cell, _)| cell)));
        let cell = start_elsewhere(core, self.command.clone(), self.manner, done)?;
        self.begun = Some((cell, slot));
        Ok(())
    }
}

impl Future for Spawning {
    type Output = Result<Arc<Cell>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<Arc<Cell>>> {
        let waker = cx.waker().clone();
        if let Some((cell, slot)) = &self.begun {
            // A forked copy: nobody is there who would end it.
            cell.check_ours()?;
            return slot.poll(waker);
        }
        match self.begin(waker) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Spawning {
    fn drop(&mut self) {
        if let Some((cell, slot)) = &self.begun {
            if cell.check_ours().is_ok() && slot.abandon() {
                // It leaves the queue. Half born, perhaps: its creator finds out.
                cell.kill_stopping(Cause::Dropped);
            }
        }
    }
}

impl Slot {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, waker: Waker) -> Poll<Result<Arc<Cell>>> {
        let mut progress = self.progress();
        match &mut *progress {
            Progress::Underway(known) => {
                let former = std::mem::replace(known, waker);
                drop(progress);
                // Outside the lock: it is somebody else's code.
                drop(former);
                Poll::Pending
            }
            Progress::Over(result) => Poll::Ready(result.take().expect("a future is not polled after its end")),
            Progress::Abandoned => Poll::Pending,
        }
    }

    /// It has come to something, or to nothing.
    fn end(&self, result: Result<Arc<Cell>>) {
        let mut progress = self.progress();
        if matches!(*progress, Progress::Abandoned) {
            drop(progress);
            return result.into_iter().for_each(give_up);
        }
        let former = std::mem::replace(&mut *progress, Progress::Over(Some(result)));
        drop(progress);
        if let Progress::Underway(waker) = former {
            wake(waker);
        }
    }

    /// The future is dropped; says whether the spawn is still under way.
    fn abandon(&self) -> bool {
        let former = std::mem::replace(&mut *self.progress(), Progress::Abandoned);
        match former {
            Progress::Underway(_) => true,
            Progress::Over(result) => {
                result.into_iter().flatten().for_each(give_up);
                false
            }
            Progress::Abandoned => false,
        }
    }
}

/// The spawner thread's side: whatever becomes of it, the future ends.
struct Told(Arc<Slot>);

impl Drop for Told {
    fn drop(&mut self) {
        if matches!(*self.0.progress(), Progress::Underway(..)) {
            self.0.end(Err(Error::new(ErrorKind::Io).saying("the spawner thread panicked")));
        }
    }
}
