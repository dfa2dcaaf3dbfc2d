//! Whom the stops of a command reach, beside the child: its group, or a cgroup made for it; and what that cgroup is given. Knows no kernel.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Command;

/// Where a command's own cgroup is made, and what it is limited to: for [`Command::cgroup_scope`].
///
/// It takes a descriptor of a *delegated* directory of the cgroups of version 2: one below which this process may make others, as systemd
/// gives with `Delegate=yes` and container runtimes give as `/sys/fs/cgroup`. Each spawn makes one directory of its own in there, with a
/// name that nobody guesses, and removes it when its last process is gone. Nothing else is ever touched. What a process that was killed
/// itself left behind is called `pidloop-` and its process id.
///
/// A limit needs its controller enabled in the `cgroup.subtree_control` of that directory: that is its owner's business, and never changed here.
///
/// ```no_run
/// use std::fs::File;
/// use pidloop::{CgroupScope, Command, Context, Scope};
///
/// let mut scope = CgroupScope::new(File::open("/sys/fs/cgroup/jobs")?);
/// scope.memory_max(512 << 20).pids_max(200);
/// let request = Context::new();
/// let child = Command::new("make").cgroup_scope(&scope).context(&request).spawn()?;
/// // Whatever it starts, and however that tries to get away, ends with the request.
/// request.cancel();
/// assert_eq!(child.wait()?.scope(), Scope::Cgroup);
/// println!("the build used {:?}", child.wait_tree()?);     // when the last of them is gone
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CgroupScope {
    pub(crate) dir: Arc<OwnedFd>,
    /// (file, value), in order.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) or_group: bool,
}

impl CgroupScope {
    /// Cgroups below `dir`, an open directory; it stays open as long as a clone of this, or a command that has it.
    pub fn new(dir: impl Into<OwnedFd>) -> CgroupScope {
        CgroupScope { dir: Arc::new(dir.into()), settings: Vec::new(), or_group: false }
    }

    /// Its processes have at most this much memory together, in bytes; one of them is killed for more. `memory.max`.
    pub fn memory_max(&mut self, bytes: u64) -> &mut CgroupScope {
        self.set("memory.max", bytes.to_string())
    }

    /// It has at most so many processes and threads; beyond them a fork fails (`EAGAIN`). With 0 the command itself fails to start
    /// ([`ErrorKind::NoProcessSlots`](crate::ErrorKind::NoProcessSlots)). `pids.max`.
    pub fn pids_max(&mut self, tasks: u64) -> &mut CgroupScope {
        self.set("pids.max", tasks.to_string())
    }

    /// Its processes have at most `quota` of CPU time together in each `period`, in microseconds. `cpu.max`.
    pub fn cpu_max(&mut self, quota: Duration, period: Duration) -> &mut CgroupScope {
        self.set("cpu.max", format!("{} {}", quota.as_micros(), period.as_micros()))
    }

    /// Writes `value` to `file` of each cgroup before the command is started in it: `set("io.max", "8:0 wbps=1048576")`. The last value for
    /// a file counts.
    pub fn set(&mut self, file: impl Into<String>, value: impl Into<String>) -> &mut CgroupScope {
        let file = file.into();
        self.settings.retain(|(other, _)| *other != file);
        self.settings.push((file, value.into()));
        self
    }

    /// Where no cgroup can be made (no version 2, nothing delegated, no controller for a limit) a [group](Command::group) has to do, without
    /// limits. [`Exit::scope`](crate::Exit::scope) says which it was.
    pub fn or_group(&mut self) -> &mut CgroupScope {
        self.or_group = true;
        self
    }

    /// What cannot be meant.
    pub(super) fn contradiction(&self) -> Option<String> {
        let is_name = |file: &str| file.contains('.') && !file.contains(['/', '\0']) && !file.starts_with('.');
        let bad = self.settings.iter().find(|(file, _)| !is_name(file))?;
        Some(format!("{:?} is not a file of a cgroup", bad.0))
    }
}

/// Whom its stops reach.
impl Command {
    /// Starts the child in a cgroup of its own and aims every stop at all that is in there: context, deadline, limit, `kill`, `signal`,
    /// `terminate`, `kill_on_drop`. Nothing that the child starts gets out, by no session and no double fork.
    ///
    /// A gentle signal goes to each process through a pidfd, at most to 1,024 of them; SIGKILL goes to the cgroup (`cgroup.kill`, Linux 5.14;
    /// before that it is frozen and its processes are killed one by one), so that a tree that forks without end has one.
    ///
    /// `wait` returns at the child's own death. What it left behind runs on, unless [`group_leftovers`](Command::group_leftovers) says
    /// otherwise, and stays its own: a context that ends later, `kill`, `signal` and a shutdown still reach it.
    /// [`Child::wait_tree`](crate::Child::wait_tree) tells when the last of it is gone, and what all of it used.
    ///
    /// The child is born there (`CLONE_INTO_CGROUP`, Linux 5.7; before that it enters before its exec). This takes three descriptors more
    /// for each child, and another one from its first [pause](crate::Context::pause) on. See [`CgroupScope`] for what it needs; a directory that has not got that fails the spawn, in
    /// [`Stage::Cgroup`](crate::Stage::Cgroup):
    ///
    /// | the directory | [`ErrorKind`](crate::ErrorKind) |
    /// |---|---|
    /// | is no cgroup of version 2; lacks the controller of a limit | `Unsupported` |
    /// | is not delegated | `PermissionDenied` |
    /// | is full: `cgroup.max.descendants`, `cgroup.max.depth`; `pids.max` | `NoProcessSlots` |
    /// | is gone; frozen; refuses a value | `Setup` |
    pub fn cgroup_scope(&mut self, scope: &CgroupScope) -> &mut Command {
        self.cgroup_scope = Some(scope.clone());
        self
    }
}
