//! What is told of a child on its way: that it was stopped or continued, that it is dead and not yet reaped. Knows closures, and no kernel.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::Command;
use crate::helpers;
use crate::signal::Signal;

/// What [`Command::on_stopped`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// It was stopped by this signal.
    Stopped(Signal),
    /// It was continued, by SIGCONT.
    Continued,
}

/// The closure of [`Command::on_stopped`].
pub(crate) type OnStopped = Arc<dyn Fn(JobState) + Send + Sync>;

/// The closure of [`Command::inspect`].
#[derive(Clone)]
pub(crate) struct Inspect(pub(crate) Arc<dyn Fn(&Dead) + Send + Sync>);

impl Inspect {
    /// Has a helper thread drop what it holds.
    pub(crate) fn retire(self) {
        helpers::run(Box::new(move || drop(self)));
    }
}

impl fmt::Debug for Inspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closure")
    }
}

/// A child that has ended and that nobody has reaped yet, for [`Command::inspect`].
#[derive(Debug)]
pub struct Dead {
    pub(crate) pid: u32,
}

impl Dead {
    /// Its process id, which is nobody else's yet.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// What `/proc/PID/name` says of it: `status`, `stat`, `cgroup`, `schedstat`, `io`. Its memory, descriptors and command line are gone.
    ///
    /// # Errors
    ///
    /// What opening and reading that file says.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(format!("/proc/{}/{name}", self.pid))
    }
}

/// What is told of it meanwhile.
impl Command {
    /// Calls `f` when the child is dead, before it is reaped: its entry in `/proc` is still there.
    ///
    /// It runs on a helper thread, of which there are 16. The child's end is told when it returns, after one second at the latest; then the
    /// child is reaped, whatever `f` still does; if all helpers were busy for so long it is not called. Nobody is to reap it there. A panic is caught.
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use pidloop::Command;
    ///
    /// let (sender, receiver) = mpsc::channel();
    /// let look = move |dead: &pidloop::Dead| drop(sender.send(dead.read("stat")));
    /// Command::new("true").inspect(look).run()?;
    /// let stat = String::from_utf8(receiver.recv()??)?;
    /// assert!(stat.contains("(true) Z "), "{stat}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn inspect(&mut self, f: impl Fn(&Dead) + Send + Sync + 'static) -> &mut Command {
        self.inspect = Some(Inspect(Arc::new(f)));
        self
    }

    /// Calls `f` whenever the child was stopped (SIGSTOP, SIGTSTP, a terminal) or continued, as a shell that has jobs is told.
    ///
    /// A pidfd does not tell of that: it costs a thread for each such child, asleep in `waitid(2)`, which calls `f` and lives until the child is
    /// dead. There are at most 1,024 of them. A stop that is followed at once by a continuation may be told as one of the two, or not at
    /// all; who traces the child takes its stops. A panic is caught.
    pub fn on_stopped(&mut self, f: impl Fn(JobState) + Send + Sync + 'static) -> &mut Command {
        self.on_stopped = Some(Arc::new(f));
        self
    }
}
