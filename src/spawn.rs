//! A child comes to be: its program is looked up, its script written, the clone tried in the best way this kernel allows, a failure
//! reaped and named. Knows no reactor; what the child itself does is `sys::birth`.

use std::borrow::Cow;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process::{self, WaitMode};
use crate::sys::birth::{self, Act, Manner, Move, Outcome, Script, Strings, Sweep, Table};
use crate::sys::dumpable;
use crate::sys::process::Published;
use crate::tell::{Level, tell};

/// Where our long-lived descriptors go: the kernel copies a table in words of 64, so that what is below costs a spawn nothing.
const RAISED_FROM: RawFd = 64;
/// A new time namespace is entered at the exec after an unshare(2); as a flag of a clone that shares memory it is refused.
const BY_UNSHARE: u64 = libc::CLONE_NEWTIME as u64;
/// The pause between two tries to execute a busy program file.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// Everything about the child except where its streams go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) group: Option<Group>,
    pub(crate) cwd: Option<Dir>,
    /// Stay open in the child under their own numbers.
    pub(crate) inherit: Vec<RawFd>,
    /// Everything that is not close-on-exec stays open.
    pub(crate) inherit_fds: bool,
    pub(crate) session: bool,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) foreground: Option<RawFd>,
    pub(crate) chroot: Option<PathBuf>,
    pub(crate) umask: Option<u32>,
    pub(crate) nice: Option<i32>,
    /// (resource, soft, hard) of setrlimit(2).
    pub(crate) limits: Vec<(u32, u64, u64)>,
    /// CPU numbers.
    pub(crate) affinity: Option<Vec<usize>>,
    /// The value of ioprio_set(2).
    pub(crate) io_priority: Option<i32>,
    pub(crate) oom_score_adj: Option<i32>,
    /// (policy, priority) of sched_setscheduler(2).
    pub(crate) scheduler: Option<(i32, i32)>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) no_new_privs: bool,
    pub(crate) drop_bounding: Vec<u32>,
    pub(crate) ambient: Vec<u32>,
    pub(crate) reset_signals: bool,
    pub(crate) ignored_signals: Vec<i32>,
    /// Blocked signals as bits.
    pub(crate) signal_mask: u64,
    /// New namespaces, as flags of clone(2).
    pub(crate) namespaces: u64,
    /// The new user namespace's single (inside, outside) ids.
    pub(crate) uid_map: Option<(u32, u32)>,
    pub(crate) gid_map: Option<(u32, u32)>,
    /// A directory of a cgroup v2.
    pub(crate) cgroup: Option<Arc<OwnedFd>>,
    pub(crate) trace: bool,
    /// The signal that the parent's death brings.
    pub(crate) parent_death: Option<i32>,
}

/// The child's process group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Group {
    New,
    Join(u32),
}

/// The child's directory.
#[derive(Clone, Debug)]
pub(crate) enum Dir {
    Path(PathBuf),
    Fd(Arc<OwnedFd>),
}

/// What becomes of the controlling terminal; the number is the child's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Terminal {
    Take(RawFd),
    Drop(RawFd),
}

/// Where one of the child's 0, 1, 2 comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'fd> {
    Inherit,
    Null,
    Fd(BorrowedFd<'fd>),
    /// stderr alone.
    SameAsStdout,
}

/// What is done while the program file is open for writing (`ETXTBSY`): another thread's fork may hold it for a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Busy {
    /// Tried again, sleeping in between.
    Sleep { at_most: Duration },
    /// Tried so often at once.
    Spin { tries: u32 },
}

/// One spawn.
pub(crate) struct Plan<'a> {
    /// A path, or a bare name to be looked up.
    pub(crate) program: &'a OsStr,
    pub(crate) argv: Vec<CString>,
    /// `None`: this process's, as it is now.
    pub(crate) env: Option<Vec<CString>>,
    /// `None`: this process's.
    pub(crate) search_path: Option<OsString>,
    pub(crate) stdio: [Source<'a>; 3],
    /// (the child's number, ours).
    pub(crate) extra: Vec<(RawFd, BorrowedFd<'a>)>,
    pub(crate) options: &'a Options,
    pub(crate) publish: &'a Published,
    pub(crate) retry_busy: Busy,
    /// The pidfd will live long beside many others: it leaves the low numbers.
    pub(crate) raise: bool,
}

/// A child whose program runs; or that a signal killed before it did.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// The options with the descriptors that a step of the child needs moved from where the child's own are put before.
pub(crate) fn clear_of<'a>(targets: &[(RawFd, Arc<OwnedFd>)], options: &'a Options) -> Result<Cow<'a, Options>> {
    let in_the_way = |fd: &OwnedFd| fd.as_raw_fd() < 3 || targets.iter().any(|(to, _)| *to == fd.as_raw_fd());
    let above = targets.iter().map(|(to, _)| *to).max().unwrap_or(2) + 1;
    let moved = |fd: &OwnedFd| match rustix::io::fcntl_dupfd_cloexec(fd, above) {
        Ok(moved) => Ok(Arc::new(moved)),
        Err(errno) => Err(Error::os(Stage::Descriptors, errno.into())),
    };
    let mut options = Cow::Borrowed(options);
    if let Some(Dir::Fd(dir)) = &options.cwd {
        if in_the_way(dir) {
            let dir = moved(dir)?;
            options.to_mut().cwd = Some(Dir::Fd(dir));
        }
    }
    if let Some(cgroup) = &options.cgroup {
        if in_the_way(cgroup) {
            let cgroup = moved(cgroup)?;
            options.to_mut().cgroup = Some(cgroup);
        }
    }
    Ok(options)
}

/// Starts a child. On failure nothing is left of it.
pub(crate) fn spawn(plan: &Plan<'_>) -> Result<Born> {
    let null = plan.stdio.iter().any(|source| matches!(source, Source::Null)).then(null_device).transpose()?;
    let script = write_script(plan, null)?;
    let table_end = table_end(plan, &script);
    let mut busy = BusyClock::new(plan.retry_busy);
    loop {
        let manner = choose_manner(plan, table_end);
        let cloned = keep_dumpable(plan.options, || birth::clone(&script, manner, plan.publish));
        match cloned {
            Ok(Outcome::Born { pid, pidfd }) => {
                let out_of_the_way = plan.raise || pidfd.as_raw_fd() < 3;
                let pidfd = plan.publish.withdraw(|| if out_of_the_way { raise(pidfd) } else { pidfd });
                return Ok(Born { pid, pidfd });
            }
            Ok(Outcome::Failed { stage, errno, pidfd }) => {
                bury(pidfd, plan.publish);
                let try_again = stage == Stage::DescriptorTable && remember_refusal(&REFUSED.shared_table)
                    || stage == Stage::Descriptors && sweep_was_refused(&script, errno)
                    || stage == Stage::Exec && errno == libc::ETXTBSY && busy.may_try_again();
                if !try_again {
                    return Err(blame(plan, stage, errno));
                }
                if matches!(script.sweep, Sweep::Range) && REFUSED.close_range.load(Ordering::Relaxed) {
                    return spawn(plan);
                }
            }
            Err(error) => {
                if !learn_from(&error, manner) {
                    return Err(Error::os(clone_stage(plan), error));
                }
                if manner.cgroup.is_some() {
                    return spawn(plan);
                }
            }
        }
    }
}

/// What a refused clone was probably about.
fn clone_stage(plan: &Plan<'_>) -> Stage {
    if plan.options.cgroup.is_some() {
        Stage::Cgroup
    } else if plan.options.namespaces != 0 {
        Stage::Namespaces
    } else {
        Stage::Clone
    }
}

/// A half-made child: it has exited, or is about to.
fn bury(pidfd: OwnedFd, published: &Published) {
    if let Err(error) = process::reap(pidfd.as_fd(), WaitMode::Block) {
        tell(Level::Error, format_args!("a child that failed to start was not reaped: {error}"));
    }
    published.withdraw(|| drop(pidfd));
}

/// An error of the child's step, with the path it was about.
fn blame(plan: &Plan<'_>, stage: Stage, errno: i32) -> Error {
    let error = Error::os(stage, io::Error::from_raw_os_error(errno));
    match (stage, &plan.options.cwd) {
        (Stage::Exec, _) => error.about(plan.program),
        (Stage::Directory, Some(Dir::Path(path))) => error.about(path),
        (Stage::Chroot, _) => match &plan.options.chroot {
            Some(path) => error.about(path),
            None => error,
        },
        (Stage::Descriptors, _) => match plan.extra.iter().map(|(to, _)| *to).max() {
            // dup3(2) says EBADF of a number that is too high.
            Some(to) if errno == libc::EBADF && open_files_max().is_some_and(|max| to as u64 >= max) => {
                error.saying(format!("descriptor {to} is not below the limit on open files"))
            }
            _ => error,
        },
        _ => error,
    }
}

/// The soft limit; `None` if there is none.
fn open_files_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

struct BusyClock {
    until: Option<Instant>,
    tries: u32,
}

impl BusyClock {
    fn new(busy: Busy) -> BusyClock {
        match busy {
            Busy::Sleep { at_most } => BusyClock { until: Instant::now().checked_add(at_most), tries: 0 },
            Busy::Spin { tries } => BusyClock { until: None, tries },
        }
    }

    fn may_try_again(&mut self) -> bool {
        match self.until {
            Some(until) if Instant::now() < until => {
                std::thread::sleep(BUSY_PAUSE);
                true
            }
            Some(_) => false,
            None => {
                let left = self.tries > 1;
                self.tries = self.tries.saturating_sub(1);
                left
            }
        }
    }
}

// ── what this kernel allows ──

/// What was refused once (by an older kernel, or a sandbox) is not tried again.
struct Refused {
    clone3: AtomicBool,
    clear_handlers: AtomicBool,
    shared_table: AtomicBool,
    close_range: AtomicBool,
}

static REFUSED: Refused = Refused {
    clone3: AtomicBool::new(false),
    clear_handlers: AtomicBool::new(false),
    shared_table: AtomicBool::new(false),
    close_range: AtomicBool::new(false),
};

/// The next try goes without; also if another thread has learnt it meanwhile.
fn remember_refusal(what: &AtomicBool) -> bool {
    what.store(true, Ordering::Relaxed);
    true
}

fn choose_manner(plan: &Plan<'_>, table_end: Option<u32>) -> Manner {
    let clone3 = !REFUSED.clone3.load(Ordering::Relaxed);
    let shared = !REFUSED.shared_table.load(Ordering::Relaxed);
    Manner {
        table: table_end.filter(|_| shared).map_or(Table::Copied, Table::SharedBelow),
        clone3,
        clear_handlers: clone3 && !REFUSED.clear_handlers.load(Ordering::Relaxed),
        flags: plan.options.namespaces & !BY_UNSHARE,
        cgroup: plan.options.cgroup.as_ref().filter(|_| clone3).map(|fd| fd.as_raw_fd()),
    }
}

/// Whether the clone is worth another try, in another manner.
fn learn_from(error: &io::Error, manner: Manner) -> bool {
    match error.raw_os_error() {
        // Hidden by an older kernel or a sandbox (which also answers EPERM); plain clone cannot be.
        Some(libc::ENOSYS | libc::EPERM) if manner.clone3 && manner.cgroup.is_none() => {
            remember_refusal(&REFUSED.clone3)
        }
        // Before Linux 5.5.
        Some(libc::EINVAL) if manner.clear_handlers => remember_refusal(&REFUSED.clear_handlers),
        // A `struct clone_args` of before 5.7.
        Some(libc::E2BIG) if manner.clone3 => remember_refusal(&REFUSED.clone3),
        _ => false,
    }
}

fn sweep_was_refused(script: &Script, errno: i32) -> bool {
    let refused = matches!(errno, libc::ENOSYS | libc::EPERM | libc::EINVAL);
    matches!(script.sweep, Sweep::Range) && refused && remember_refusal(&REFUSED.close_range)
}

/// A credential change in shared memory clears the parent's dumpable flag for good. It is put back, if it was set, when the child has
/// its own memory; one at a time, or one spawn would put it back inside another one's window.
fn keep_dumpable<T>(options: &Options, clone: impl FnOnce() -> T) -> T {
    if options.uid.is_none() && options.gid.is_none() && options.groups.is_none() {
        return clone();
    }
    static CHANGING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let was_dumpable = dumpable::get();
    let result = clone();
    if was_dumpable {
        dumpable::set();
    }
    result
}

/// What the child needs of our table sits below this; `None` if it needs all of it.
fn table_end(plan: &Plan<'_>, script: &Script) -> Option<u32> {
    if plan.options.inherit_fds {
        return None;
    }
    let from = script.moves.iter().map(|this| this.from);
    let cwd = match &plan.options.cwd {
        Some(Dir::Fd(fd)) => Some(fd.as_raw_fd()),
        _ => None,
    };
    let cgroup = plan.options.cgroup.as_ref().map(|fd| fd.as_raw_fd());
    let program = descriptor_of(plan.program);
    let highest = from.chain(script.kept.iter().copied()).chain(cwd).chain(cgroup).chain(program).max().unwrap_or(0);
    Some(highest.max(2) as u32 + 1)
}

/// A program that is named by a descriptor of ours, as one in a memfd: the exec looks it up in the child.
fn descriptor_of(program: &OsStr) -> Option<RawFd> {
    let program = program.to_str()?;
    let number = program.strip_prefix("/proc/self/fd/").or_else(|| program.strip_prefix("/dev/fd/"))?;
    number.parse().ok().filter(|number| *number >= 0)
}

// ── the script ──

fn write_script(plan: &Plan<'_>, null: Option<RawFd>) -> Result<Script> {
    let options = plan.options;
    Ok(Script {
        sweep: sweep(options),
        moves: moves(plan, null),
        stderr_is_stdout: matches!(plan.stdio[2], Source::SameAsStdout),
        kept: options.inherit.clone(),
        reset_ignored: options.reset_signals,
        ignored: options.ignored_signals.clone(),
        mask: options.signal_mask,
        acts: acts(options)?,
        paths: paths(plan)?,
        argv: Strings::new(plan.argv.clone()),
        envp: Strings::new(match &plan.env {
            Some(vars) => vars.clone(),
            None => inherited_env(),
        }),
    })
}

fn inherited_env() -> Vec<CString> {
    let entry = |(key, value): (OsString, OsString)| {
        let mut line = Vec::with_capacity(key.len() + value.len() + 2);
        line.extend(key.into_vec());
        line.push(b'=');
        line.extend(value.into_vec());
        // What std reads from C strings holds no NUL.
        CString::new(line).ok()
    };
    std::env::vars_os().filter_map(entry).collect()
}

fn sweep(options: &Options) -> Sweep {
    if options.inherit_fds {
        Sweep::Nothing
    } else if REFUSED.close_range.load(Ordering::Relaxed) {
        Sweep::UpTo(highest_descriptor())
    } else {
        Sweep::Range
    }
}

/// Of this process, now; where it cannot be seen, the limit.
fn highest_descriptor() -> RawFd {
    let seen = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
        .max();
    // Another thread may open some more meanwhile.
    const MARGIN: RawFd = 64;
    seen.map_or_else(|| open_files_max().and_then(|n| RawFd::try_from(n).ok()).unwrap_or(1 << 20), |fd| fd + MARGIN)
}

fn moves(plan: &Plan<'_>, null: Option<RawFd>) -> Vec<Move> {
    let stdio = plan.stdio.iter().enumerate().filter_map(|(to, source)| match source {
        Source::Null => null.map(|from| (from, to as RawFd)),
        Source::Fd(fd) => Some((fd.as_raw_fd(), to as RawFd)),
        Source::Inherit | Source::SameAsStdout => None,
    });
    let pairs: Vec<(RawFd, RawFd)> = stdio.chain(plan.extra.iter().map(|(to, fd)| (fd.as_raw_fd(), *to))).collect();
    pairs
        .iter()
        .map(|&(from, to)| Move {
            from,
            to,
            lift: pairs.iter().any(|(other, target)| *target == from && (*other, *target) != (from, to)),
            lifted: AtomicI32::new(-1),
        })
        .collect()
}

fn c_path(path: &Path, stage: Stage) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::InvalidInput).at(stage).saying("a path contains a NUL byte"))
}

/// The child's steps, in the order in which they do not undo each other: credentials late, and after them the parent-death signal alone.
fn acts(options: &Options) -> Result<Vec<Act>> {
    let mut acts = Vec::new();
    namespaces(options, &mut acts);
    if options.session {
        acts.push(Act::NewSession);
    }
    match options.group {
        Some(Group::New) => acts.push(Act::JoinGroup(0)),
        Some(Group::Join(group)) => acts.push(Act::JoinGroup(group)),
        None => {}
    }
    match options.terminal {
        Some(Terminal::Take(fd)) => acts.push(Act::TakeTerminal(fd)),
        Some(Terminal::Drop(fd)) => acts.push(Act::DropTerminal(fd)),
        None => {}
    }
    acts.extend(options.foreground.map(Act::Foreground));
    resources(options, &mut acts);
    if let Some(root) = &options.chroot {
        acts.push(Act::Chroot(c_path(root, Stage::Chroot)?));
    }
    match &options.cwd {
        Some(Dir::Path(path)) => acts.push(Act::Chdir(c_path(path, Stage::Directory)?)),
        Some(Dir::Fd(fd)) => acts.push(Act::ChdirFd(fd.as_raw_fd())),
        None => {}
    }
    acts.extend(options.umask.map(Act::Umask));
    privileges(options, &mut acts);
    if options.trace {
        acts.push(Act::Trace);
    }
    // In a new PID namespace the parent has no number.
    let parent = if options.namespaces & libc::CLONE_NEWPID as u64 == 0 { std::process::id() } else { 0 };
    acts.extend(options.parent_death.map(|signal| Act::ParentDeath(signal, parent)));
    Ok(acts)
}

fn namespaces(options: &Options, acts: &mut Vec<Act>) {
    if options.namespaces & BY_UNSHARE != 0 {
        acts.push(Act::Unshare(options.namespaces & BY_UNSHARE));
    }
    let map = |file: &str, (inside, outside): (u32, u32)| {
        let line = format!("{inside} {outside} 1\n").into_bytes();
        Act::WriteFile(Stage::IdMaps, CString::new(file).unwrap_or_default(), line)
    };
    if let Some(ids) = options.gid_map {
        // Without it an unprivileged process may not write a gid map.
        acts.push(Act::WriteFile(Stage::IdMaps, c"/proc/self/setgroups".into(), b"deny".to_vec()));
        acts.push(map("/proc/self/gid_map", ids));
    }
    acts.extend(options.uid_map.map(|ids| map("/proc/self/uid_map", ids)));
}

fn resources(options: &Options, acts: &mut Vec<Act>) {
    acts.extend(options.limits.iter().map(|&(resource, soft, hard)| Act::Limit { resource, soft, hard }));
    acts.extend(options.affinity.as_ref().map(|cpus| {
        let mut words = vec![0; cpus.iter().max().map_or(1, |last| last / 64 + 1)];
        for cpu in cpus {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        Act::Affinity(words)
    }));
    acts.extend(options.scheduler.map(|(policy, priority)| Act::Scheduler { policy, priority }));
    acts.extend(options.nice.map(Act::Nice));
    acts.extend(options.io_priority.map(Act::IoPriority));
    if let (Some(dir), true) = (&options.cgroup, REFUSED.clone3.load(Ordering::Relaxed)) {
        let file = CString::new(format!("/proc/self/fd/{}/cgroup.procs", dir.as_raw_fd())).unwrap_or_default();
        acts.push(Act::WriteFile(Stage::Cgroup, file, b"0".to_vec()));
    }
    acts.extend(options.oom_score_adj.map(|value| {
        Act::WriteFile(Stage::OomScore, c"/proc/self/oom_score_adj".into(), value.to_string().into_bytes())
    }));
}

fn privileges(options: &Options, acts: &mut Vec<Act>) {
    acts.extend(options.drop_bounding.iter().copied().map(Act::DropBounding));
    if options.no_new_privs {
        acts.push(Act::NoNewPrivileges);
    }
    if !options.ambient.is_empty() && options.uid.is_some() {
        acts.push(Act::KeepCapabilities);
    }
    match &options.groups {
        Some(groups) => acts.push(Act::Groups(groups.clone())),
        // As std: another user does not keep our groups. Only root may drop them, and only root can become another user.
        None if options.uid.is_some() && rustix::process::geteuid().is_root() => acts.push(Act::Groups(Vec::new())),
        None => {}
    }
    acts.extend(options.gid.map(Act::Gid));
    acts.extend(options.uid.map(Act::Uid));
    if !options.ambient.is_empty() {
        acts.push(Act::RaiseAmbient(options.ambient.clone()));
    }
}

// ── the program ──

/// What the child executes: one path, or, where only the child can look, all that its name may mean.
fn paths(plan: &Plan<'_>) -> Result<Vec<CString>> {
    let program = plan.program;
    if program.as_bytes().contains(&b'/') {
        return Ok(vec![c_path(Path::new(program), Stage::Exec)?]);
    }
    let search = plan.search_path.clone().or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    let candidates = if search.is_empty() { Vec::new() } else { candidates(program, &search) };
    let options = plan.options;
    if options.chroot.is_some() || options.namespaces != 0 || options.uid.is_some() {
        // What is there, and who may execute it, is decided by then.
        let absolute = candidates.iter().filter(|path| path.is_absolute());
        let paths: Vec<CString> = absolute.map(|path| c_path(path, Stage::Lookup)).collect::<Result<_>>()?;
        return if paths.is_empty() { Err(not_found(program, libc::ENOENT)) } else { Ok(paths) };
    }
    Ok(vec![c_path(&look_up(program, candidates)?, Stage::Lookup)?])
}

fn candidates(program: &OsStr, search: &OsStr) -> Vec<PathBuf> {
    let dir = |dir: &[u8]| {
        if dir.is_empty() { Path::new(".").join(program) } else { Path::new(OsStr::from_bytes(dir)).join(program) }
    };
    search.as_bytes().split(|byte| *byte == b':').map(dir).collect()
}

/// The first that may be executed; Go's `LookPath`. A hit in a directory that is relative to ours is refused.
fn look_up(program: &OsStr, candidates: Vec<PathBuf>) -> Result<PathBuf> {
    if [".", ".."].map(OsStr::new).contains(&program) {
        return Err(not_found(program, libc::ENOENT));
    }
    let mut errno = libc::ENOENT;
    for path in candidates {
        match is_executable(&path) {
            Ok(true) if path.is_absolute() => return Ok(path),
            Ok(true) => {
                return Err(Error::new(ErrorKind::RelativeLookup).at(Stage::Lookup).about(path));
            }
            Ok(false) => errno = libc::EACCES,
            Err(libc::EACCES) => errno = libc::EACCES,
            Err(_) => {}
        }
    }
    Err(not_found(program, errno))
}

fn not_found(program: &OsStr, errno: i32) -> Error {
    Error::os(Stage::Lookup, io::Error::from_raw_os_error(errno)).about(program)
}

/// Judged by the effective ids. faccessat2(2), and stat(2) for directories.
fn is_executable(path: &Path) -> std::result::Result<bool, i32> {
    use rustix::io::Errno;
    let checked = match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // Before Linux 5.8: by the real ids.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
            rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())
        }
        checked => checked,
    };
    checked.map_err(|errno| errno.raw_os_error())?;
    let stat = rustix::fs::stat(path).map_err(|errno| errno.raw_os_error())?;
    Ok(!FileType::from_raw_mode(stat.st_mode).is_dir())
}

// ── descriptors ──

/// `/dev/null`, opened once and kept; checked at each use, since a host may close or reuse a number that it did not open.
fn null_device() -> Result<RawFd> {
    static NULL: AtomicI32 = AtomicI32::new(-1);
    let known = NULL.load(Ordering::Acquire);
    if known >= 0 && crate::sys::is_null_device(known) {
        return Ok(known);
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open("/dev/null", flags, Mode::empty());
    let fd = opened.map_err(|e| Error::os(Stage::Streams, e.into()).about("/dev/null"))?;
    // Low numbers cost a spawn nothing, but 0 to 2 are the host's.
    let fd = if fd.as_raw_fd() < 3 { raise_to(fd, 3) } else { fd };
    let number = crate::sys::keep_open(fd);
    // Another thread may have opened one, too: it leaks, once.
    NULL.store(number, Ordering::Release);
    Ok(number)
}

/// Moves a long-lived descriptor of ours out of the low numbers, which spawns copy; where that cannot be done it stays.
pub(crate) fn raise(fd: OwnedFd) -> OwnedFd {
    raise_to(fd, RAISED_FROM)
}

fn raise_to(fd: OwnedFd, low: RawFd) -> OwnedFd {
    if fd.as_raw_fd() >= low {
        return fd;
    }
    match rustix::io::fcntl_dupfd_cloexec(&fd, low) {
        Ok(raised) => raised,
        // The limit is below: at least 0 to 2 are not ours.
        Err(_) if fd.as_raw_fd() < 3 && low > 3 => raise_to(fd, 3),
        Err(_) => fd,
    }
}

/// Takes early what later spawns need: for hosts that go on to open thousands of descriptors.
///
/// # Errors
///
/// [`ErrorKind::NoDescriptors`](crate::ErrorKind::NoDescriptors), or what opening `/dev/null` says.
pub fn init() -> Result<()> {
    null_device().map(drop)
}

/// Which ways of starting a child this kernel and sandbox allow; the best one is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `clone3` (Linux 5.3), else `clone`.
    pub clone3: bool,
    /// Handlers are reset by the clone itself (5.5), else one by one in the child.
    pub clear_handlers: bool,
    /// The descriptor table is shared until the child copies the low part of it (5.9): a spawn costs the same however many are open.
    pub shared_table: bool,
    /// What a child was not given is closed by one call (5.11), else number by number.
    pub close_range: bool,
    /// Groups are signalled through the pidfd (6.9), else by number while the leader is kept unreaped.
    pub group_signals: bool,
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, there) in [
            ("clone3", self.clone3),
            ("clear_handlers", self.clear_handlers),
            ("shared_table", self.shared_table),
            ("close_range", self.close_range),
            ("group_signals", self.group_signals),
        ] {
            writeln!(f, "{name:<15}{}", if there { "yes" } else { "no" })?;
        }
        Ok(())
    }
}

/// Asks the kernel, by calls that do nothing.
pub fn capabilities() -> Capabilities {
    let probed = crate::sys::probe();
    let allowed = |there: bool, refused: &AtomicBool| there && !refused.load(Ordering::Relaxed);
    Capabilities {
        clone3: allowed(probed.clone3, &REFUSED.clone3),
        clear_handlers: allowed(probed.clone3, &REFUSED.clone3) && !REFUSED.clear_handlers.load(Ordering::Relaxed),
        shared_table: allowed(probed.close_range, &REFUSED.shared_table),
        close_range: allowed(probed.close_range, &REFUSED.close_range),
        group_signals: probed.group_signals && process::group_flag_works(),
    }
}
