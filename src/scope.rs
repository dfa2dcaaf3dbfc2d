//! Whom a stop reaches, and what a whole tree of processes used. Plain data; knows nothing of how any of it is done or learnt.

use std::time::Duration;

/// Whom the stops and signals of a child reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// The child alone.
    Child,
    /// The process group that it leads: [`Command::group`](crate::Command::group). A descendant that starts a group or session of its
    /// own has left it.
    Group,
    /// A cgroup of its own, which nobody leaves: [`Command::cgroup_scope`](crate::Command::cgroup_scope).
    Cgroup,
}

/// What all processes of a child's cgroup used together, from its files.
///
/// What is `None` the kernel does not count there: it needs a controller (named with each) that is enabled in the `cgroup.subtree_control` of
/// the directory that the [`CgroupScope`](crate::CgroupScope) was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeUsage {
    /// CPU time in user mode; `cpu.stat`, which needs no controller.
    pub user_time: Duration,
    /// CPU time in the kernel; `cpu.stat`, which needs no controller.
    pub system_time: Duration,
    /// The most memory it had at a time, in bytes; `memory.peak` (controller `memory`, Linux 5.19).
    pub memory_peak_bytes: Option<u64>,
    /// How many of its processes were killed for want of memory; `memory.events` (`memory`).
    pub oom_kills: Option<u64>,
    /// The most processes and threads it had at a time; `pids.peak` (`pids`, Linux 6.1).
    pub tasks_peak: Option<u64>,
    /// How often a fork was refused by its `pids.max`; `pids.events` (`pids`).
    pub forks_refused: Option<u64>,
    /// Bytes read from block devices; `io.stat` (`io`).
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices; `io.stat` (`io`).
    pub written_bytes: Option<u64>,
}
