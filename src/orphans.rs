//! Processes that become children of this one because their parents have died: found, and adopted. Knows drivers, and the kernel's lists of our
//! children; what is done with an adopted process is the loop's to do.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::adopt::Adopt;
use crate::command::Cancel;
use crate::context::Context;
use crate::driver::default_core;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process;
use crate::reactor::{adopt, known_pids};
use crate::sys::process::{generation, with_signals_blocked};
use crate::tell::{Level, tell};

/// How soon is looked again when somebody new was found: whom he leaves comes next.
const SOON: Duration = Duration::from_millis(10);
/// How long an orphan may be there, dead or alive, before it is found.
const LATEST: Duration = Duration::from_secs(1);

/// Which orphans are adopted, and how they must stop: for [`adopt_orphans`].
#[derive(Clone, Debug)]
pub struct Orphans {
    all: bool,
    contexts: Vec<Context>,
    cancel: Cancel,
    wait_delay: Option<Duration>,
}

impl Orphans {
    /// Every child of this process that the library has not started. Only for a process in which no other code starts any: nobody can tell a
    /// child of that code from an orphan, and its status would be taken.
    pub fn all() -> Orphans {
        Orphans { all: true, contexts: Vec::new(), cancel: Cancel::default(), wait_delay: None }
    }

    /// Those that are in a cgroup which the library has made ([`Command::cgroup_scope`](crate::Command::cgroup_scope)): nobody else's child is in
    /// there. Children that other code starts are left alone, and so are orphans of other children.
    pub fn of_cgroups() -> Orphans {
        Orphans { all: false, ..Orphans::all() }
    }

    /// Stops them when `context` ends. What one of them leaves when it dies is adopted in its turn, and stopped at once: a tree ends from above.
    pub fn context(&mut self, context: &Context) -> &mut Orphans {
        self.contexts.push(context.clone());
        self
    }

    /// As [`Command::cancel`](crate::Command::cancel).
    pub fn cancel(&mut self, cancel: Cancel) -> &mut Orphans {
        self.cancel = cancel;
        self
    }

    /// As [`Command::wait_delay`](crate::Command::wait_delay).
    pub fn wait_delay(&mut self, delay: Duration) -> &mut Orphans {
        self.wait_delay = Some(delay);
        self
    }

    fn adopt(&self, pid: u32) -> Result<()> {
        let mut process = Adopt::pid(pid)?;
        // A number that somebody else has reaped meanwhile may be a stranger's.
        if !process::is_our_child(process.as_fd()) {
            return Err(Error::new(ErrorKind::NoSuchChild));
        }
        for context in &self.contexts {
            process.context(context);
        }
        process.cancel(self.cancel.clone());
        if let Some(delay) = self.wait_delay {
            process.wait_delay(delay);
        }
        adopt(default_core()?, &process).map(drop)
    }
}

/// Adopts the orphans of this process's descendants on the default driver, which reaps them when they die and stops them with their contexts;
/// until what is returned is dropped.
///
/// Makes this process a subreaper (`PR_SET_CHILD_SUBREAPER`), unless it is PID 1: whoever loses its parent below becomes its child. That
/// concerns the whole process, so it is off unless asked for here.
///
/// The kernel tells nobody of that: a thread looks at the list of this process's children, every second, and sooner after it has found somebody.
/// A dead orphan is a zombie for so long. Orphans that have their program from a fork of this very process are adopted when they execute
/// another one, or are dead. They have no handle; an [event](crate::Events) tells of each.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] if orphans are being adopted already; [`ErrorKind::NoProcessSlots`]; what `prctl(2)` says.
pub fn adopt_orphans(orphans: &Orphans) -> Result<Adoption> {
    let core = default_core()?;
    if ACTIVE.swap(generation(), Ordering::AcqRel) == generation() {
        return Err(Error::new(ErrorKind::InvalidInput).saying("orphans are being adopted already"));
    }
    let was_subreaper = is_subreaper().unwrap_or(false);
    let shared = Arc::new(Shared::default());
    let adoption = Adoption { shared: shared.clone(), was_subreaper, generation: generation() };
    core.check_ours()?;
    set_subreaper(true).map_err(|error| Error::os(Stage::Register, error).saying("PR_SET_CHILD_SUBREAPER"))?;
    let orphans = orphans.clone();
    with_signals_blocked(|| {
        thread::Builder::new().name("pidloop-orphans".into()).spawn(move || look(&orphans, &shared))
    })
    .map_err(|error| Error::os(Stage::Clone, error).saying("a thread that looks for orphans"))?;
    Ok(adoption)
}

/// One such thread is enough: the process that has it, 0 for none.
static ACTIVE: AtomicU64 = AtomicU64::new(0);

/// Adopts orphans until it is dropped. Those that it has are watched and reaped all the same; later ones go to the next subreaper above, or to
/// PID 1, unless this process was a subreaper before.
#[derive(Debug)]
#[must_use = "dropped at once it adopts nobody"]
pub struct Adoption {
    shared: Arc<Shared>,
    was_subreaper: bool,
    generation: u64,
}

#[derive(Debug, Default)]
struct Shared {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Drop for Adoption {
    fn drop(&mut self) {
        // A forked copy has neither the thread nor the children.
        if self.generation != generation() {
            return;
        }
        *self.shared.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.changed.notify_all();
        if !self.was_subreaper {
            let _ = set_subreaper(false);
        }
        ACTIVE.store(0, Ordering::Release);
    }
}

fn is_subreaper() -> io::Result<bool> {
    Ok(rustix::process::child_subreaper()?.is_some())
}

fn set_subreaper(on: bool) -> io::Result<()> {
    let any = on.then(rustix::process::getpid);
    Ok(rustix::process::set_child_subreaper(any)?)
}

fn look(orphans: &Orphans, shared: &Shared) {
    let mut pause = SOON;
    let mut over = shared.over.lock().unwrap_or_else(PoisonError::into_inner);
    while !*over {
        drop(over);
        pause = if scan(orphans) > 0 { SOON } else { LATEST.min(pause * 2) };
        over = shared.over.lock().unwrap_or_else(PoisonError::into_inner);
        if !*over {
            over = shared.changed.wait_timeout(over, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Adopts whoever is new; says how many.
///
/// The list first, what is known second: a child of the library's has its place before it is there, so whoever is in the list and
/// unknown is not one of them, if it has ever run.
fn scan(orphans: &Orphans) -> usize {
    let children = process::children();
    let known: HashSet<u32> = known_pids();
    let ours = std::fs::read_link("/proc/self/exe").ok();
    let strangers = children.into_iter().filter(|pid| !known.contains(pid));
    let meant = strangers.filter(|pid| has_run(*pid, &ours) && (orphans.all || is_in_a_cgroup_of_ours(*pid)));
    let adopted = meant.filter(|pid| match orphans.adopt(*pid) {
        Ok(()) => true,
        // One of the library's that was reaped since the list was read, or was adopted by its caller.
        Err(error) if matches!(error.kind(), ErrorKind::NoSuchChild | ErrorKind::InvalidInput) => false,
        Err(error) => {
            tell(Level::Warn, format_args!("orphan {pid}: {error}"));
            false
        }
    });
    adopted.count()
}

/// Whether it is more than a copy of this process that may not have run yet, as a child of the library's between clone and exec.
fn has_run(pid: u32, ours: &Option<PathBuf>) -> bool {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
    process::is_zombie(pid) || process::has_begun(pid) || exe.is_ok_and(|exe| ours.as_ref() != Some(&exe))
}

/// By the name of one of its directories, which a zombie has, too, and which outlives the directory.
fn is_in_a_cgroup_of_ours(pid: u32) -> bool {
    let mark = format!("/{}", crate::cgroup::prefix());
    let list = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    list.lines().any(|line| line.starts_with("0::") && line.contains(&mark))
}
