//! [docs/ARCHITECTURE.md]: crate::documents::architecture
//! [docs/BENCHMARKS.md]: crate::documents::benchmarks
//! [docs/CLI.md]: crate::documents::cli
//! [docs/DESIGN.md]: crate::documents::design
//! [docs/FROM_GO.md]: crate::documents::from_go
//! [docs/FROM_TOKIO.md]: crate::documents::from_tokio
//! [docs/GOTCHAS.md]: crate::documents::gotchas
//! [CHANGELOG.md]: crate::documents::changelog
//! [SECURITY.md]: crate::documents::security
// The first definition of a link counts: here the README's lead to the pages of this documentation, on the web to the files.
#![doc = include_str!("../README.md")]

#[cfg(not(target_os = "linux"))]
compile_error!("pidloop is for Linux 5.4 or later: it stands on pidfds and epoll");

#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), target_pointer_width = "64")))]
compile_error!("pidloop makes the system calls of x86_64 and aarch64 alone, with pointers of 64 bits");

mod admission;
mod adopt;
mod async_io;
mod cause;
mod cgroup;
mod child;
mod command;
mod context;
mod driver;
mod error;
mod events;
mod exit;
mod helpers;
mod lifecycle;
mod orphans;
mod pipe;
mod process;
mod queue;
mod reactor;
mod scope;
mod shell;
mod signal;
mod spawn;
mod spawner;
mod stats;
mod stdio;
mod stops;
mod sys;
mod tell;
mod terminal;
mod timer;
mod token;
#[cfg(feature = "tokio")]
mod tokens;
mod trace;

pub use admission::{FdBudget, Load, fd_budget, set_fd_reserve};
pub use adopt::Adopt;
pub use async_io::{AsyncReader, AsyncWriter};
pub use cause::{Cause, Reason};
pub use child::{Child, Children, Pipefail, Pipeline, PipelineExit, PipelineOutput};
pub use command::{
    Cancel, CgroupScope, Closure, Command, Dead, IoPriority, JobState, Leftovers, Namespace, Resource, Scheduler, Step,
    Target,
};
pub use context::{Context, DropGuard, When};
pub use driver::{
    AfterCancel, Cancelled, Driver, events, load, set_max_queued, set_max_running, shutdown, shutdown_async, stats,
};
pub use error::{Error, ErrorKind, Result, Stage};
pub use events::{Event, EventKind, Events};
pub use exit::{Captured, Exit, HeldOpen, Output, Spool, Stream, Usage};
pub use orphans::{Adoption, Orphans, adopt_orphans};
pub use queue::{LongLine, Queue, QueueEnd, QueueItem, QueueOptions, WhenDropped};
pub use reactor::{ChildId, Ended, Reactor, Remote, Survivor};
pub use scope::{Scope, TreeUsage};
pub use signal::Signal;
pub use spawn::{Capabilities, capabilities, init, raise_nofile};
pub use stats::{Histogram, Latency, Stats};
pub use stdio::{ChildStderr, ChildStdin, ChildStdout, Limit, Stdio};
pub use terminal::{ChildTerminal, Terminal};

/// The project's documents, for reading here and, as tests, for compiling their code.
#[cfg(any(doc, doctest))]
pub mod documents {
    /// [BENCHMARKS.md]: crate::documents::benchmarks
    /// [DESIGN.md]: crate::documents::design
    /// [design-exec]: crate::documents::design#between-clone-and-exec
    /// [design-promises]: crate::documents::design#the-promises
    #[doc = include_str!("../docs/ARCHITECTURE.md")]
    pub mod architecture {}
    /// [calls]: crate::documents::architecture#the-system-calls-of-a-spawn
    #[doc = include_str!("../docs/BENCHMARKS.md")]
    pub mod benchmarks {}
    #[doc = include_str!("../CHANGELOG.md")]
    pub mod changelog {}
    #[doc = include_str!("../docs/CLI.md")]
    pub mod cli {}
    /// [ARCHITECTURE.md]: crate::documents::architecture
    /// [map-promises]: crate::documents::architecture#the-promises
    /// [from-tokio]: crate::documents::from_tokio
    /// [gotcha-command]: crate::documents::gotchas#a-command-keeps-what-it-was-given
    #[doc = include_str!("../docs/DESIGN.md")]
    pub mod design {}
    /// [design-go]: crate::documents::design#differences-from-go
    #[doc = include_str!("../docs/FROM_GO.md")]
    pub mod from_go {}
    #[doc = include_str!("../docs/FROM_TOKIO.md")]
    pub mod from_tokio {}
    #[doc = include_str!("../docs/GOTCHAS.md")]
    pub mod gotchas {}
    #[doc = include_str!("../SECURITY.md")]
    pub mod security {}
}
