#![doc = include_str!("../README.md")]

#[cfg(not(target_os = "linux"))]
compile_error!("pidloop is for Linux 5.4 or later: it stands on pidfds and epoll");

mod cause;
mod child;
mod command;
mod context;
mod driver;
mod error;
mod exit;
mod helpers;
mod lifecycle;
mod pipe;
mod process;
mod reactor;
mod signal;
mod spawn;
mod spawner;
mod stdio;
mod sys;
mod timer;
mod token;

pub use cause::{Cause, Reason};
pub use child::Child;
pub use command::{Cancel, Closure, Command, IoPriority, Leftovers, Namespace, Resource, Scheduler, Step, Target};
pub use context::{Context, DropGuard, When};
pub use driver::{AfterCancel, Cancelled, Driver, shutdown};
pub use error::{Error, ErrorKind, Result, Stage};
pub use exit::{Captured, Exit, HeldOpen, Output, Usage};
pub use reactor::{ChildId, Ended, Reactor, Remote, Survivor};
pub use signal::Signal;
pub use spawn::{Capabilities, capabilities, init};
pub use stdio::{ChildStderr, ChildStdin, ChildStdout, Limit, Stdio};
