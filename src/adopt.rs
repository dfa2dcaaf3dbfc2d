//! A process that other code has started, and how it must stop: a description, as a `Command` is one. Knows a pidfd, and no running children.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::command::Cancel;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process;

/// A process that was started by other code, to be watched and stopped like a child of [`Command::spawn`](crate::Command::spawn): for
/// [`Child::adopt`](crate::Child::adopt) and its kin.
///
/// ```
/// use std::time::Duration;
/// use pidloop::{Adopt, Cause, Child};
///
/// let theirs = std::process::Command::new("sleep").arg("60").spawn()?;
/// let child = Child::adopt(Adopt::child(&theirs)?.timeout(Duration::from_millis(10)))?;
/// assert_eq!(child.wait()?.cause(), Some(&Cause::DeadlineExceeded));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What becomes known of its end depends on whose child it is:
///
/// | the process is | its status |
/// |---|---|
/// | a child of this process | known, with [`Usage`](crate::Usage); the library reaps it, and nobody else may |
/// | somebody else's child, Linux 6.15 or later | known when its parent has reaped it; if that takes longer than 500 ms, lost |
/// | somebody else's child before that | lost: [`Exit::status`](crate::Exit::status) is `None` |
#[derive(Clone, Debug)]
pub struct Adopt {
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) contexts: Vec<Context>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) wait_delay: Option<Duration>,
    pub(crate) cancel: Cancel,
    pub(crate) kill_on_drop: bool,
    pub(crate) group: bool,
}

impl Adopt {
    /// The process of this pidfd, whoever's it is. `Adopt` is `Clone`, and keeps the descriptor open until it is dropped.
    pub fn new(pidfd: impl Into<OwnedFd>) -> Adopt {
        Adopt {
            pidfd: Arc::new(pidfd.into()),
            contexts: Vec::new(),
            timeout: None,
            wait_delay: None,
            cancel: Cancel::default(),
            kill_on_drop: false,
            group: false,
        }
    }

    /// A child that std has started and that nobody has waited for. It must not be waited for through std from now on; its streams stay where
    /// they are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchChild`] if it was waited for already; [`ErrorKind::NoDescriptors`].
    pub fn child(child: &std::process::Child) -> Result<Adopt> {
        let adopt = Adopt::pid(child.id())?;
        if process::is_our_child(adopt.pidfd.as_fd()) {
            return Ok(adopt);
        }
        Err(Error::new(ErrorKind::NoSuchChild).saying(format!("{} has been waited for", child.id())))
    }

    /// The process of this number. Safe for a child of this process that nobody has waited for: any other number may be somebody else's by
    /// now. `pidfd_open(2)`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchChild`] if there is no such process; [`ErrorKind::NoDescriptors`].
    pub fn pid(pid: u32) -> Result<Adopt> {
        let none = || Error::new(ErrorKind::NoSuchChild).saying(format!("there is no process {pid}"));
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(none)?;
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Adopt::new(pidfd)),
            // EINVAL: the number of a thread.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Err(none()),
            Err(errno) => Err(Error::os(Stage::Register, errno.into())),
        }
    }

    /// As [`Command::context`](crate::Command::context). One that is cancelled already stops it at once: it runs, after all.
    pub fn context(&mut self, context: &Context) -> &mut Adopt {
        self.contexts.push(context.clone());
        self
    }

    /// As [`Command::timeout`](crate::Command::timeout), from the adoption on. Zero stops it at once.
    pub fn timeout(&mut self, limit: Duration) -> &mut Adopt {
        self.timeout = Some(limit);
        self
    }

    /// As [`Command::wait_delay`](crate::Command::wait_delay).
    pub fn wait_delay(&mut self, delay: Duration) -> &mut Adopt {
        self.wait_delay = Some(delay);
        self
    }

    /// As [`Command::cancel`](crate::Command::cancel). It has no stdin that the library could close.
    pub fn cancel(&mut self, cancel: Cancel) -> &mut Adopt {
        self.cancel = cancel;
        self
    }

    /// As [`Command::kill_on_drop`](crate::Command::kill_on_drop); unless set it runs on, and is reaped if it is a child of this process.
    pub fn kill_on_drop(&mut self, kill: bool) -> &mut Adopt {
        self.kill_on_drop = kill;
        self
    }

    /// Aims every stop at the process group that it leads, as [`Command::group`](crate::Command::group).
    pub fn group(&mut self) -> &mut Adopt {
        self.group = true;
        self
    }
}

impl AsFd for Adopt {
    /// The pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
