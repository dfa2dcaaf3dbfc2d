//! A running child in its holder's hands, and the verbs of a command that start one. Knows its cell, and how each verb judges.

mod pipeline;
mod tree;
mod twins;

use std::fmt;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::pipeline::{Children, Pipefail, Pipeline, PipelineExit, PipelineOutput};
use crate::adopt::Adopt;
use crate::cause::Cause;
use crate::command::Command;
use crate::driver::{Driver, default_core, default_core_at_rest};
use crate::error::{Error, Result};
use crate::exit::{Captured, Exit, Output, Verdict};
use crate::reactor::adopt;
use crate::reactor::cell::Cell;
use crate::reactor::core::Core;
use crate::reactor::start::{Defaults, Manner, start};
use crate::signal::Signal;
use crate::spawn::Busy;
use crate::stdio::{ChildStderr, ChildStdin, ChildStdout};
use crate::terminal::ChildTerminal;

/// How long a busy program file (`ETXTBSY`) is tried again.
const BUSY: Busy = Busy::Sleep { at_most: Duration::from_millis(50) };

/// A child that was started; Go's `Cmd` after `Start`, std's `Child`.
///
/// Everything takes `&self`: any number of threads may wait, signal and take at once.
///
/// Dropping it never blocks and leaves no zombie: the child runs on, unless [`Command::kill_on_drop`] says otherwise.
///
/// ```
/// use std::io::Read;
/// use pidloop::{Command, Stdio};
///
/// let mut command = Command::new("sh");
/// let child = command.args(["-c", "echo here; exit 3"]).stdout(Stdio::piped()).spawn()?;
/// let exit = child.wait()?;                        // Ok: this asks, it does not judge
/// assert_eq!(exit.code(), Some(3));
/// assert_eq!(exit.to_string(), "exit status 3");
///
/// let mut text = String::new();
/// child.take_stdout().unwrap().read_to_string(&mut text)?;      // still there
/// assert_eq!(text, "here\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Child {
    cell: Arc<Cell>,
}

/// Running it.
impl Command {
    /// Starts it on the default driver. Returns when the program runs, or says why it does not; Go's `Start`.
    ///
    /// Streams are inherited unless set, as in std. A program file that is being written (`ETXTBSY`) is tried again for 50 ms.
    ///
    /// # Errors
    ///
    /// The failed step ([`Error::stage`]) and its errno. [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) or
    /// [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) if a context was cancelled before the program ran: then
    /// nothing is left of it.
    pub fn spawn(&self) -> Result<Child> {
        spawn(self.default_core()?, self)
    }

    fn default_core(&self) -> Result<&'static Arc<Core>> {
        default_core().map_err(|error| error.of(self.shown()))
    }

    /// Runs it to its end, as std's `status`: `Ok` for every exit status.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`]; and if the child was stopped, or its status was taken by somebody else.
    pub fn status(&self) -> Result<ExitStatus> {
        self.finish(Defaults::Inherit).and_then(judge_status)
    }

    /// Runs it to its end; Go's `Run`.
    ///
    /// # Errors
    ///
    /// As [`Command::status`], and if the child did not exit with status 0. If its stderr was captured the error shows the end of it.
    pub fn run(&self) -> Result<Exit> {
        self.finish(Defaults::Inherit).and_then(judge_run)
    }

    /// Runs it to its end and gives what it wrote, as std's `output`: stdin is null, both other streams are captured, unless set;
    /// `Ok` for every exit status.
    ///
    /// # Errors
    ///
    /// As [`Command::status`], and if somebody still held a stream when reading was ended. [`Error::output`] has what there is.
    pub fn output(&self) -> Result<Output> {
        self.finish(Defaults::Capture).and_then(judge_output)
    }

    /// As [`Command::output`], with both streams through one pipe, so that their order is kept: all of it is in
    /// [`Output::stdout`]; Go's `CombinedOutput`.
    ///
    /// # Errors
    ///
    /// As [`Command::output`].
    pub fn combined_output(&self) -> Result<Output> {
        self.finish(Defaults::Combine).and_then(judge_output)
    }

    fn finish(&self, defaults: Defaults) -> Result<(Exit, Captured)> {
        // Where nothing else can happen that anybody has to watch for the caller waits and reaps itself.
        let watched = defaults != Defaults::Inherit || !self.is_plain();
        let core = if watched { default_core() } else { default_core_at_rest() };
        let core = core.map_err(|error| error.of(self.shown()))?;
        let (cell, _) = start(core, self, Manner { defaults, busy: BUSY, watched })?;
        let held = Held(Some(cell));
        let finished = if watched { finish(held.cell())? } else { (wait_directly(held.cell())?, Captured::default()) };
        held.release();
        Ok(finished)
    }
}

/// As `status` judges.
fn judge_status((exit, _): (Exit, Captured)) -> Result<ExitStatus> {
    exit.judge(Verdict { non_success: false, cut: true })?;
    exit.status().ok_or_else(|| Error::new(crate::error::ErrorKind::StatusLost))
}

/// As `run` judges.
fn judge_run((exit, captured): (Exit, Captured)) -> Result<Exit> {
    match exit.check() {
        Ok(()) => Ok(exit),
        Err(error) => Err(error.with_captured(captured)),
    }
}

/// As `output` judges.
fn judge_output((exit, captured): (Exit, Captured)) -> Result<Output> {
    match exit.judge(Verdict { non_success: false, cut: true }) {
        Ok(()) => Output::new(exit, captured),
        Err(error) => Err(error.with_captured(captured)),
    }
}

/// The caller is the reaper from birth; should somebody shut the driver down meanwhile, the loop may take over.
fn wait_directly(cell: &Arc<Cell>) -> Result<Exit> {
    match cell.wait_as_owner(None) {
        Ok(Some(exit)) => Ok(exit),
        // It is the loop's from now on.
        given_back => {
            default_core()?;
            given_back.and_then(|_| sure(cell.wait(None)?))
        }
    }
}

/// Waits until it is dead and its streams are done.
fn finish(cell: &Arc<Cell>) -> Result<(Exit, Captured)> {
    cell.capture_piped()?;
    let exit = sure(cell.wait_done(None)?)?;
    Ok((exit, cell.take_captured()))
}

/// A wait without an end has an exit.
fn sure(exit: Option<Exit>) -> Result<Exit> {
    exit.ok_or_else(|| Error::new(crate::error::ErrorKind::StatusLost))
}

/// A child that nobody else has a handle of: unless it comes to its end it goes with the call or the future that started it.
struct Held(Option<Arc<Cell>>);

impl Held {
    fn cell(&self) -> &Arc<Cell> {
        self.0.as_ref().expect("held until it is released")
    }

    fn release(mut self) -> Arc<Cell> {
        self.0.take().expect("released once")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(cell) = self.0.take() {
            give_up(cell);
        }
    }
}

/// Kills a child that nobody wants any more.
fn give_up(cell: Arc<Cell>) {
    // A forked copy: it is not ours.
    if cell.check_ours().is_ok() {
        // Its creator may have kept it to itself. If the loop cannot take it nobody can.
        let _ = cell.hand_over();
        cell.kill_stopping(Cause::Dropped);
    }
    drop(Child { cell });
}

fn spawn(core: &Arc<Core>, command: &Command) -> Result<Child> {
    let manner = Manner { defaults: Defaults::Inherit, busy: BUSY, watched: true };
    start(core, command, manner).map(|(cell, _)| Child { cell })
}

impl Driver {
    /// As [`Command::spawn`], on this driver.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`]; [`ErrorKind::ShutDown`](crate::ErrorKind::ShutDown) after [`Driver::shutdown`];
    /// [`ErrorKind::ReactorDied`](crate::ErrorKind::ReactorDied) if its thread panicked twice;
    /// [`ErrorKind::Forked`](crate::ErrorKind::Forked) in a forked copy of the process.
    pub fn spawn(&self, command: &Command) -> Result<Child> {
        spawn(self.core(), command)
    }

    /// As [`Child::adopt`], on this driver.
    ///
    /// # Errors
    ///
    /// As [`Child::adopt`], and as [`Driver::spawn`].
    pub fn adopt(&self, process: &Adopt) -> Result<Child> {
        adopt(self.core(), process).map(|(cell, _)| Child { cell })
    }
}

impl Child {
    /// Watches a process that other code has started, on the default driver: contexts, deadline and every call here work as for a child that
    /// was spawned. Its times count from now on.
    ///
    /// A process that is dead already is fine: its end is told. One that the library watches already, started or adopted, is refused:
    /// it has its one reaper.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a descriptor that is no pidfd, one of a thread, or of this process itself,
    /// for a child that is watched already, and with [`Adopt::group`] for a process that leads none; [`ErrorKind::NoDescriptors`](crate::ErrorKind::NoDescriptors): a duplicate
    /// of the pidfd is kept until it is dead. Nothing has happened to the process then.
    pub fn adopt(process: &Adopt) -> Result<Child> {
        adopt(default_core()?, process).map(|(cell, _)| Child { cell })
    }

    /// Its process id, for display: once it has been waited for the number may be somebody else's.
    pub fn id(&self) -> u32 {
        self.cell.pid()
    }

    /// Waits for its death; not for what may still come out of its pipes. An untaken piped stdin is closed first, as in std.
    /// `Ok` whatever the child did, also if it was stopped; the same answer every time.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ReactorDied`](crate::ErrorKind::ReactorDied), [`ErrorKind::Forked`](crate::ErrorKind::Forked).
    pub fn wait(&self) -> Result<Exit> {
        sure(self.cell.wait(None)?)
    }

    /// Whether it is dead, and how it ended.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn try_wait(&self) -> Result<Option<Exit>> {
        self.cell.try_wait()
    }

    /// As [`Child::wait`], for at most `limit`; `None` if it is alive then. Nothing is sent to it.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<Exit>> {
        self.cell.wait(Instant::now().checked_add(limit))
    }

    /// Waits until it is dead and its captured or piped streams are complete or cut, and gives what it wrote. As
    /// [`Child::wait`] it reports and does not judge: see [`Output::exit`].
    ///
    /// # Errors
    ///
    /// As [`Child::wait`]; [`ErrorKind::StatusLost`](crate::ErrorKind::StatusLost), with what was captured.
    pub fn wait_with_output(self) -> Result<Output> {
        let (exit, captured) = finish(&self.cell)?;
        Output::new(exit, captured)
    }

    /// Sends a signal, through the pidfd; to its group if it was started with [`Command::group`]. `Ok` and without effect when it is
    /// dead. No cause is recorded: this is not a stop.
    ///
    /// # Errors
    ///
    /// What `pidfd_send_signal(2)` says; [`ErrorKind::Forked`](crate::ErrorKind::Forked).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.cell.signal(signal)
    }

    /// SIGKILL, as std's `kill`. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`Child::signal`].
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// SIGTERM, and after `grace` SIGKILL; waits for the death. The cause is [`Cause::Terminated`], if it was not
    /// being stopped before; then its SIGKILL comes after `grace` at the latest.
    ///
    /// # Errors
    ///
    /// As [`Child::wait`].
    pub fn terminate(&self, grace: Duration) -> Result<Exit> {
        self.cell.check_ours()?;
        self.cell.terminate(grace);
        self.wait()
    }

    /// The write end of its piped stdin; once.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.cell.take_piped(0).map(ChildStdin::from)
    }

    /// The read end of its piped stdout; once.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.cell.take_piped(1).map(ChildStdout::from)
    }

    /// The read end of its piped stderr; once.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.cell.take_piped(2).map(ChildStderr::from)
    }

    /// Our end of its terminal ([`Command::terminal`]); once. `None` if it has none, and if the library reads it.
    pub fn take_terminal(&self) -> Option<ChildTerminal> {
        self.cell.take_terminal().map(ChildTerminal::from)
    }

    /// Changes the size of a terminal that was not taken; the child's foreground group gets SIGWINCH if it is another one. `TIOCSWINSZ`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if it has no terminal, or that was taken, or it is done with; what
    /// `ioctl(2)` says.
    pub fn resize_terminal(&self, rows: u16, columns: u16) -> Result<()> {
        self.cell.resize_terminal(rows, columns)
    }

    /// A duplicate of its pidfd, for other loops to poll. To reap it through that takes the status from us.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchChild`](crate::ErrorKind::NoSuchChild) when it has been reaped;
    /// [`ErrorKind::NoDescriptors`](crate::ErrorKind::NoDescriptors).
    pub fn pidfd(&self) -> Result<OwnedFd> {
        self.cell.pidfd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.cell.abandon();
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("id", &self.cell.pid()).field("command", &self.cell.label).finish()
    }
}
