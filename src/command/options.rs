//! What a child is given beside its program and its streams: ids, limits, signals, namespaces; the verbs that set it. Knows the engine
//! by its list of options.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use super::Command;
use crate::signal::Signal;
use crate::spawn::{self, Dir, Group, Terminal};
use crate::sys::hook::Hook;

/// A resource of [`Command::rlimit`]; see setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// Address space, in bytes.
    AddressSpace,
    /// Size of a core file, in bytes.
    Core,
    /// CPU time, in seconds.
    Cpu,
    /// Data segment, in bytes.
    Data,
    /// Size of a written file, in bytes.
    FileSize,
    /// Locked memory, in bytes.
    LockedMemory,
    /// POSIX message queues, in bytes.
    MessageQueues,
    /// Ceiling of the nice value, as `20 - nice`.
    Nice,
    /// Open descriptors.
    OpenFiles,
    /// Processes of the user.
    Processes,
    /// Real-time priority.
    RealtimePriority,
    /// Real-time CPU time without a blocking call, in microseconds.
    RealtimeTime,
    /// Queued signals.
    PendingSignals,
    /// Stack, in bytes.
    Stack,
}

impl Resource {
    fn number(self) -> u32 {
        // An int in some C libraries.
        (match self {
            Resource::AddressSpace => libc::RLIMIT_AS,
            Resource::Core => libc::RLIMIT_CORE,
            Resource::Cpu => libc::RLIMIT_CPU,
            Resource::Data => libc::RLIMIT_DATA,
            Resource::FileSize => libc::RLIMIT_FSIZE,
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
            Resource::MessageQueues => libc::RLIMIT_MSGQUEUE,
            Resource::Nice => libc::RLIMIT_NICE,
            Resource::OpenFiles => libc::RLIMIT_NOFILE,
            Resource::Processes => libc::RLIMIT_NPROC,
            Resource::RealtimePriority => libc::RLIMIT_RTPRIO,
            Resource::RealtimeTime => libc::RLIMIT_RTTIME,
            Resource::PendingSignals => libc::RLIMIT_SIGPENDING,
            Resource::Stack => libc::RLIMIT_STACK,
        }) as _
    }
}

/// A scheduling policy of [`Command::scheduler`]; see sched(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheduler {
    /// `SCHED_OTHER`.
    Other,
    /// `SCHED_BATCH`.
    Batch,
    /// `SCHED_IDLE`.
    Idle,
    /// `SCHED_FIFO` with this priority, 1 to 99.
    Fifo(i32),
    /// `SCHED_RR` with this priority, 1 to 99.
    RoundRobin(i32),
}

/// Where the class is in the value of ioprio_set(2).
const IO_CLASS_SHIFT: i32 = 13;

/// A class of [`Command::io_priority`]; see ioprio_set(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoPriority {
    /// First, at this level, 0 to 7 (0 is highest).
    Realtime(u8),
    /// In turn, at this level, 0 to 7 (0 is highest).
    BestEffort(u8),
    /// When nobody else needs the disk.
    Idle,
}

/// A namespace of [`Command::unshare`]; see namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Namespace {
    /// The root of the cgroup tree.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mount points.
    Mount,
    /// Network.
    Network,
    /// Process ids: the child is its init.
    Pid,
    /// Boot and monotonic clocks.
    Time,
    /// User and group ids.
    User,
    /// Host and domain name.
    Uts,
}

impl Namespace {
    fn flag(self) -> u64 {
        let flag = match self {
            Namespace::Cgroup => libc::CLONE_NEWCGROUP,
            Namespace::Ipc => libc::CLONE_NEWIPC,
            Namespace::Mount => libc::CLONE_NEWNS,
            Namespace::Network => libc::CLONE_NEWNET,
            Namespace::Pid => libc::CLONE_NEWPID,
            Namespace::Time => libc::CLONE_NEWTIME,
            Namespace::User => libc::CLONE_NEWUSER,
            Namespace::Uts => libc::CLONE_NEWUTS,
        };
        flag as u64
    }
}

/// What std's [`CommandExt`](std::os::unix::process::CommandExt) offers, and more. An option that the kernel refuses fails the spawn, and
/// [`Error::stage`](crate::Error::stage) names its step.
impl Command {
    /// As [`current_dir`](Command::current_dir), by descriptor. `fchdir(2)`.
    pub fn current_dir_fd(&mut self, dir: impl Into<OwnedFd>) -> &mut Command {
        self.options.cwd = Some(Dir::Fd(Arc::new(dir.into())));
        self
    }

    /// Sets the user id, all three of them, and clears the supplementary groups unless [`groups`](Command::groups) sets them; as std.
    pub fn uid(&mut self, id: u32) -> &mut Command {
        self.options.uid = Some(id);
        self
    }

    /// Sets the group id, all three of them; as std.
    pub fn gid(&mut self, id: u32) -> &mut Command {
        self.options.gid = Some(id);
        self
    }

    /// Sets the supplementary groups; as std.
    pub fn groups(&mut self, groups: &[u32]) -> &mut Command {
        self.options.groups = Some(groups.to_vec());
        self
    }

    /// Sets the process group, 0 for a new one; as std. Stops go to the child alone: see [`group`](Command::group) for the other
    /// thing.
    pub fn process_group(&mut self, group: i32) -> &mut Command {
        self.options.group = Some(if group == 0 { Group::New } else { Group::Join(group) });
        self
    }

    /// Starts a session, and with it a process group, without a controlling terminal. `setsid(2)`.
    pub fn setsid(&mut self) -> &mut Command {
        self.options.session = true;
        self
    }

    /// Makes the child's descriptor `number` its controlling terminal, and its group the foreground group there; with
    /// [`setsid`](Command::setsid), without [`foreground`](Command::foreground). `TIOCSCTTY`.
    pub fn controlling_terminal(&mut self, number: RawFd) -> &mut Command {
        self.options.terminal = Some(Terminal::Take(number));
        self
    }

    /// Gives up the controlling terminal, which is the child's descriptor `number`. `TIOCNOTTY`.
    pub fn drop_terminal(&mut self, number: RawFd) -> &mut Command {
        self.options.terminal = Some(Terminal::Drop(number));
        self
    }

    /// Makes the child's process group the foreground group of the terminal that is its descriptor `number`. `tcsetpgrp(3)`.
    pub fn foreground(&mut self, number: RawFd) -> &mut Command {
        self.options.foreground = Some(number);
        self
    }

    /// Changes the root directory, before the ids are. [`current_dir`](Command::current_dir) is looked for in it, and is its root unless it
    /// is set; as std. `chroot(2)`.
    pub fn chroot(&mut self, root: impl AsRef<Path>) -> &mut Command {
        self.options.chroot = Some(root.as_ref().to_owned());
        self
    }

    /// Sets the mask of file modes. `umask(2)`.
    pub fn umask(&mut self, mask: u32) -> &mut Command {
        self.options.umask = Some(mask);
        self
    }

    /// Adds `by` to the nice value. `nice(2)`.
    pub fn nice(&mut self, by: i32) -> &mut Command {
        self.options.nice = Some(by);
        self
    }

    /// Limits a resource; `u64::MAX` is no limit. `setrlimit(2)`.
    pub fn rlimit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Command {
        self.options.limits.push((resource.number(), soft, hard));
        self
    }

    /// Lets it run on these CPUs alone. `sched_setaffinity(2)`.
    pub fn cpu_affinity(&mut self, cpus: &[usize]) -> &mut Command {
        self.options.affinity = Some(cpus.to_vec());
        self
    }

    /// Sets its I/O priority. `ioprio_set(2)`.
    pub fn io_priority(&mut self, priority: IoPriority) -> &mut Command {
        let (class, level) = match priority {
            IoPriority::Realtime(level) => (1, level),
            IoPriority::BestEffort(level) => (2, level),
            IoPriority::Idle => (3, 0),
        };
        self.options.io_priority = Some(class << IO_CLASS_SHIFT | i32::from(level));
        self
    }

    /// Sets how readily it is killed when memory runs out, -1000 to 1000. `/proc/self/oom_score_adj`.
    pub fn oom_score_adj(&mut self, value: i32) -> &mut Command {
        self.options.oom_score_adj = Some(value);
        self
    }

    /// Sets its scheduling policy. `sched_setscheduler(2)`.
    pub fn scheduler(&mut self, policy: Scheduler) -> &mut Command {
        self.options.scheduler = Some(match policy {
            Scheduler::Other => (libc::SCHED_OTHER, 0),
            Scheduler::Batch => (libc::SCHED_BATCH, 0),
            Scheduler::Idle => (libc::SCHED_IDLE, 0),
            Scheduler::Fifo(priority) => (libc::SCHED_FIFO, priority),
            Scheduler::RoundRobin(priority) => (libc::SCHED_RR, priority),
        });
        self
    }

    /// The signal it gets when this process ends, however that happens. `prctl(PR_SET_PDEATHSIG)`.
    ///
    /// The kernel ties it to the thread that spawns; so the spawn is done by a thread of the library that lives as long as the process.
    /// What was set on the calling thread alone (Landlock, seccomp, affinity, nice) then does not apply, unless
    /// [`on_this_thread`](Command::on_this_thread) says otherwise. A program with set-uid clears it.
    pub fn parent_death_signal(&mut self, signal: Signal) -> &mut Command {
        self.options.parent_death = Some(signal.as_raw());
        self
    }

    /// No other thread than the caller's starts it, whatever else is asked for: what is set on that thread alone (Landlock, seccomp, affinity,
    /// nice) applies, and a [`parent_death_signal`](Command::parent_death_signal) comes when that thread ends.
    pub fn on_this_thread(&mut self) -> &mut Command {
        self.options.on_this_thread = true;
        self
    }

    /// It and its descendants cannot gain privileges by an exec. `PR_SET_NO_NEW_PRIVS`.
    pub fn no_new_privs(&mut self) -> &mut Command {
        self.options.no_new_privs = true;
        self
    }

    /// Takes these capabilities (numbers of capabilities(7)) from its bounding set. `PR_CAPBSET_DROP`.
    pub fn drop_capabilities(&mut self, capabilities: &[u32]) -> &mut Command {
        self.options.drop_bounding = capabilities.to_vec();
        self
    }

    /// Lets it keep these capabilities (numbers of capabilities(7)) through the exec, also as another user. `PR_CAP_AMBIENT`.
    pub fn ambient_capabilities(&mut self, capabilities: &[u32]) -> &mut Command {
        self.options.ambient = capabilities.to_vec();
        self
    }

    /// Makes these capabilities (numbers of capabilities(7)), and no others, inheritable: a program file that has them as inheritable, too,
    /// is permitted them. `capset(2)`. What it is permitted and what is effective is decided by the exec.
    pub fn inheritable_capabilities(&mut self, capabilities: &[u32]) -> &mut Command {
        self.options.inheritable = Some(capabilities.to_vec());
        self
    }

    /// The signals it starts with blocked; none unless set. `sigprocmask(2)`.
    pub fn signal_mask(&mut self, blocked: &[Signal]) -> &mut Command {
        self.options.signal_mask = blocked.iter().fold(0, |bits, signal| bits | 1 << (signal.as_raw() - 1));
        self
    }

    /// The signals it starts with ignored, beside those this process ignores.
    pub fn ignore_signals(&mut self, signals: &[Signal]) -> &mut Command {
        self.options.ignored_signals = signals.iter().map(|signal| signal.as_raw()).collect();
        self
    }

    /// It starts with no signal ignored, whatever this process ignores.
    pub fn reset_signals(&mut self) -> &mut Command {
        self.options.reset_signals = true;
        self
    }

    /// Gives it new namespaces. A new PID namespace ends with it. `clone(2)`; for time `unshare(2)`.
    pub fn unshare(&mut self, namespaces: &[Namespace]) -> &mut Command {
        self.options.namespaces = namespaces.iter().fold(0, |flags, namespace| flags | namespace.flag());
        self
    }

    /// In its new user namespace it has the user id `inside`, which is `outside` here.
    ///
    /// Without privileges that is our own effective id, and the child writes the map by itself. For another see
    /// [`uid_maps`](Command::uid_maps).
    pub fn uid_map(&mut self, inside: u32, outside: u32) -> &mut Command {
        self.uid_maps(&[(inside, outside, 1)])
    }

    /// In its new user namespace it has the group id `inside`, which is `outside` here; `setgroups(2)` is denied there.
    ///
    /// Without privileges that is our own effective id, and the child writes the map by itself.
    pub fn gid_map(&mut self, inside: u32, outside: u32) -> &mut Command {
        self.options.gid_maps = vec![(inside, outside, 1)];
        self.options.keep_setgroups = false;
        self
    }

    /// The user ids of its new user namespace: ranges of (first inside, first outside, how many). `uid_map` of user_namespaces(7).
    ///
    /// This process writes the map, and needs `CAP_SETUID` for that. It is the one thing for which the calling thread is not suspended until the
    /// program runs: the child shares its memory all the same, and waits for the map.
    pub fn uid_maps(&mut self, maps: &[(u32, u32, u32)]) -> &mut Command {
        self.options.uid_maps = maps.to_vec();
        self
    }

    /// The group ids of its new user namespace, as [`uid_maps`](Command::uid_maps); `CAP_SETGID` is needed. `setgroups(2)` is allowed there.
    pub fn gid_maps(&mut self, maps: &[(u32, u32, u32)]) -> &mut Command {
        self.options.gid_maps = maps.to_vec();
        self.options.keep_setgroups = true;
        self
    }

    /// In its new time namespace these clocks are so many seconds ahead of ours, or behind (negative). `/proc/self/timens_offsets`.
    pub fn time_offsets(&mut self, monotonic_seconds: i64, boottime_seconds: i64) -> &mut Command {
        self.options.time_offsets = Some((monotonic_seconds, boottime_seconds));
        self
    }

    /// It enters this namespace, a descriptor of `/proc/PID/ns/…`, before it makes new ones with [`unshare`](Command::unshare); several are
    /// entered in the order given, a user namespace best first. Not one of process ids, which would be its children's alone, nor of time,
    /// which the kernel refuses to whoever shares memory. `setns(2)`.
    pub fn join_namespace(&mut self, namespace: impl Into<OwnedFd>) -> &mut Command {
        self.options.joined.push(Arc::new(namespace.into()));
        self
    }

    /// It is born in the cgroup (version 2) whose directory this is. `CLONE_INTO_CGROUP`; before Linux 5.7 it enters it before the exec.
    pub fn cgroup(&mut self, dir: impl Into<OwnedFd>) -> &mut Command {
        self.options.cgroup = Some(Arc::new(dir.into()));
        self
    }

    /// Has the child call `f` when everything else is done, just before the exec; as std. Several are called in the order given.
    ///
    /// # What it costs
    ///
    /// All other children start in the memory of the suspended caller. There code of yours could break this process, so with `pre_exec` the
    /// kernel copies its page tables, which takes longer the more memory it has (about 35 ms for each GiB), and its writes are slower for a
    /// while. If one of the other options does what you want, use that. Not together with [`uid_maps`](Command::uid_maps) of ids
    /// that are not our own.
    ///
    /// # Errors
    ///
    /// An error of `f` fails the spawn with [`Stage::PreExec`](crate::Stage::PreExec) and its errno; one without an errno counts as `EINVAL`, as in
    /// std. So does a panic.
    ///
    /// # Safety
    ///
    /// That of std's [`pre_exec`](std::os::unix::process::CommandExt::pre_exec): the child has a copy of this process's memory as it is at some
    /// moment, and one thread. A lock that another thread held then, that of the allocator too, is held for ever there: `f` may do
    /// what a signal handler may (signal-safety(7)), so no allocation, no lock, no panic. What it changes in memory only the child sees. It runs with
    /// the child's [`signal_mask`](Command::signal_mask), on a stack of 120 KiB, with all descriptors of this process open and
    /// close-on-exec, but for those that the child is given. A child that hangs in it holds up the spawn, and can be cancelled there.
    ///
    /// ```
    /// use pidloop::Command;
    ///
    /// let mut command = Command::new("sh");
    /// // SAFETY: umask(2) is one system call.
    /// unsafe {
    ///     command.args(["-c", "umask"]).pre_exec(|| {
    ///         libc::umask(0o027);
    ///         Ok(())
    ///     });
    /// }
    /// assert_eq!(command.output()?.stdout, b"0027\n");
    /// # Ok::<(), pidloop::Error>(())
    /// ```
    pub unsafe fn pre_exec(&mut self, f: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> &mut Command {
        self.options.hooks.push(Hook::new(f));
        self
    }

    /// It stops at its exec and is traced by the thread that spawns it. `PTRACE_TRACEME`.
    pub fn trace_me(&mut self) -> &mut Command {
        self.options.trace = true;
        self
    }
}

/// What the kernel would refuse in any process, or take for something else than what was meant.
impl Command {
    pub(super) fn contradiction(&self) -> Option<String> {
        let of_scope = || {
            self.cgroup_scope.as_ref().and_then(|scope| match self.options.cgroup {
                Some(_) => Some("it cannot be born in a cgroup that is given and in one of its own".into()),
                None => scope.contradiction(),
            })
        };
        self.of_terminals().or_else(|| self.of_numbers()).or_else(of_scope)
    }

    fn of_terminals(&self) -> Option<String> {
        let options = &self.options;
        let takes = |terminal: &Terminal| matches!(terminal, Terminal::Take(_));
        let number_of = |terminal| match terminal {
            Terminal::Take(number) | Terminal::Drop(number) => number,
        };
        let mut numbers = options.terminal.map(number_of).into_iter().chain(options.foreground);
        let unknown = numbers.find(|number| !self.will_have(*number));
        if let Some(number) = unknown {
            return Some(format!("its terminal is to be descriptor {number}, which it does not get"));
        }
        if let Some(terminal) = &self.terminal {
            let why = match () {
                () if options.terminal.is_some() => Some("it has a terminal of its own"),
                () if options.foreground.is_some() => Some("in a terminal of its own it is in the foreground already"),
                () if matches!(options.group, Some(Group::Join(_))) => {
                    Some("a terminal of its own needs a new session")
                }
                () if self.stdio.iter().all(Option::is_some) => Some("none of its streams is its terminal"),
                () => terminal.complaint(),
            };
            return why.map(Into::into);
        }
        let why = if options.session && matches!(options.group, Some(Group::Join(_))) {
            "a new session has a new process group"
        } else if options.terminal.as_ref().is_some_and(takes) && !options.session {
            "a controlling terminal needs a new session"
        } else if options.terminal.as_ref().is_some_and(takes) && options.foreground.is_some() {
            "with a controlling terminal it is in the foreground already"
        } else if options.trace && options.parent_death.is_some() && !options.on_this_thread {
            "who traces it must be the caller's thread, and who starts it with a parent-death signal is not"
        } else {
            return None;
        };
        Some(why.into())
    }

    /// Whether the child will have a descriptor of this number.
    fn will_have(&self, number: RawFd) -> bool {
        let given = self.extra.iter().any(|(extra, _)| *extra == number);
        (0..3).contains(&number) || given || self.options.inherit.contains(&number) || self.options.inherit_fds
    }

    fn of_numbers(&self) -> Option<String> {
        const CPUS_END: usize = 1 << 16;
        const CAPABILITIES_END: u32 = 64;
        let options = &self.options;
        if let Some(cpu) = options.affinity.iter().flatten().find(|cpu| **cpu >= CPUS_END) {
            return Some(format!("there is no CPU {cpu}"));
        }
        let capabilities =
            options.drop_bounding.iter().chain(&options.ambient).chain(options.inheritable.iter().flatten());
        if let Some(capability) = capabilities.into_iter().find(|number| **number >= CAPABILITIES_END) {
            return Some(format!("there is no capability {capability}"));
        }
        if options.io_priority.is_some_and(|priority| priority & !(0b11 << IO_CLASS_SHIFT) > 7) {
            return Some("an I/O priority has the levels 0 to 7".into());
        }
        if let Some(Group::Join(group @ ..0)) = options.group {
            return Some(format!("there is no process group {group}"));
        }
        let maps = !options.uid_maps.is_empty() || !options.gid_maps.is_empty();
        if maps && options.namespaces & Namespace::User.flag() == 0 {
            return Some("id maps need a new user namespace".into());
        }
        if options.time_offsets.is_some() && options.namespaces & Namespace::Time.flag() == 0 {
            return Some("offsets of clocks need a new time namespace".into());
        }
        if !options.hooks.is_empty() && maps && !spawn::maps_itself(options) {
            return Some("who writes id maps for it cannot wait for its pre_exec closures".into());
        }
        None
    }
}
