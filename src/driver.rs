//! The thread that turns a reactor, and the default one that starts on first use. Knows a loop by `turn` and its tables; knows no
//! child's life.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use crate::admission::{self, Key, Load, Setting};
use crate::command::Command;
use crate::context::{Context, ListenKey, Listener, Tell, Watcher};
use crate::error::{Error, Result, Stage};
use crate::events::Events;
use crate::reactor::admit::Room;
use crate::reactor::core::Core;
use crate::reactor::{Inbox, Loop, Reactor, ShuttingDown, Survivor, shut_down};
use crate::stats::Stats;
use crate::sys::Leaked;
use crate::sys::process::with_signals_blocked;
use crate::tell::{Level, tell};
use crate::token::Token;

/// A reactor thread of its own, for programs that want their children apart.
///
/// `Command::spawn` needs none: it uses the default driver, whose thread starts on first use and lives as long as the process.
///
/// Dropping it never blocks: children with [`Command::kill_on_drop`](crate::Command::kill_on_drop) get SIGKILL, all others go on
/// under the default driver.
pub struct Driver {
    seat: Seat,
}

/// Where a loop can be reached that some thread turns.
struct Seat {
    core: Arc<Core>,
    inbox: Inbox,
    /// The loop, until its thread takes it.
    parked: Arc<Mutex<Option<Loop>>>,
    started: AtomicBool,
    /// Held while the thread is started: one is enough.
    starting: Mutex<()>,
}

impl Driver {
    /// Starts a reactor thread, with all signals blocked but those that a fault of its own raises.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoDescriptors`](crate::ErrorKind::NoDescriptors), [`NoMemory`](crate::ErrorKind::NoMemory),
    /// [`NoProcessSlots`](crate::ErrorKind::NoProcessSlots).
    pub fn new() -> Result<Driver> {
        let driver = Driver { seat: Seat::new(Loop::new(false)?) };
        driver.seat.start()?;
        Ok(driver)
    }

    /// Ends all its children: no more spawns; they may end by themselves for `grace`; then each is stopped as its
    /// [`Cancel`](crate::Cancel) says, with [`Cause::ShutDown`](crate::Cause::ShutDown); after `kill_after` more SIGKILL. Says who is left, when
    /// for a second nobody has ended. Blocks as long as that takes.
    ///
    /// Later spawns fail with [`ErrorKind::ShutDown`](crate::ErrorKind::ShutDown).
    pub fn shutdown(&self, grace: Duration, kill_after: Duration) -> Vec<Survivor> {
        self.seat.shutdown(grace, kill_after)
    }

    /// As [`Driver::shutdown`], without blocking; for any runtime. Nothing happens before the future is polled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes no further step: nothing is started any more, the stops that were sent go on, a SIGKILL that was still to
    /// come is not sent.
    pub fn shutdown_async(
        &self,
        grace: Duration,
        kill_after: Duration,
    ) -> impl Future<Output = Vec<Survivor>> + Send + use<> {
        shut_down_async(self.core().clone(), [grace, kill_after])
    }

    /// How many children may live at a time; `None`: as many as there is room for. A spawn beyond the limit waits: the call, or the future. It
    /// leaves the queue when one of its contexts is cancelled, its deadline passes, the future is dropped or the driver shuts down. A call from a
    /// waker, on the driver's own thread, would wait for itself: it fails ([`ErrorKind::NoRoom`](crate::ErrorKind::NoRoom)).
    ///
    /// Those count that are started from now on, from the moment they are admitted until their end is seen. A limit of zero holds everything
    /// back until it is raised. See [`Context::set_max_running`] for tenants, [`Command::priority`] for the order.
    pub fn set_max_running(&self, limit: impl Into<Option<usize>>) {
        self.core().limit(Setting::MaxRunning(limit.into()));
    }

    /// How many may wait for it at a time; 131,072 unless set. One more is refused: [`ErrorKind::QueueFull`](crate::ErrorKind::QueueFull).
    pub fn set_max_queued(&self, limit: usize) {
        self.core().limit(Setting::MaxQueued(limit));
    }

    /// Waits until there is room for `command` under its limits; for any runtime. Nothing is reserved by that: it takes a turn in the queue, and
    /// who spawns then may have to wait all the same.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::QueueFull`](crate::ErrorKind::QueueFull); [`ErrorKind::ShutDown`](crate::ErrorKind::ShutDown) as soon as the driver takes no
    /// more; [`ErrorKind::Forked`](crate::ErrorKind::Forked). A cancelled context does not end it: select it with
    /// [`Context::cancelled`](crate::Context::cancelled).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue.
    pub fn room_async(&self, command: &Command) -> impl Future<Output = Result<()>> + Send + use<> {
        Room::new(self.core(), command)
    }

    /// How many of its children live, how many may, and how many spawns wait for that.
    pub fn load(&self) -> Load {
        admission::load(self.core().key)
    }

    /// What it has counted and timed since it was made.
    pub fn stats(&self) -> Stats {
        self.core().recorder.snapshot()
    }

    /// A queue of at most `capacity` events: what happens to its children from now on. Any number of them may be asked for.
    ///
    /// In a forked copy of the process it has ended.
    pub fn events(&self, capacity: usize) -> Events {
        self.core().subscribe(capacity)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.seat.core
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A forked copy: the thread and its children are the parent's.
        if !self.seat.core.is_ours() {
            return;
        }
        // Before its thread hears of it: whoever shuts the default driver down next means these children, too.
        let heir = if self.seat.core.live() > 0 { Seat::default().ok() } else { None };
        if let Some(heir) = heir {
            heir.core.take_over(&self.seat.core);
        }
        self.seat.core.orphan();
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Drop for Reactor {
    /// What it still has goes on under the default driver.
    fn drop(&mut self) {
        if let Some(turning) = self.turning.take() {
            leave_to_default(turning);
        }
    }
}

/// As [`Driver::shutdown`], for the default driver. Ok to call when nothing was ever spawned.
pub fn shutdown(grace: Duration, kill_after: Duration) -> Vec<Survivor> {
    // Where no thread can be had there may be children all the same, whose callers wait for them: they end without one.
    match Seat::default().or_else(|_| Seat::at_rest()) {
        Ok(seat) => seat.shutdown(grace, kill_after),
        // What cannot even start has no children.
        Err(_) => Vec::new(),
    }
}

/// As [`shutdown`], without blocking; for any runtime. Where the driver can have no thread nobody tells the time: then no more is spawned, and
/// all who live are survivors.
///
/// # Cancel safety
///
/// As [`Driver::shutdown_async`].
pub async fn shutdown_async(grace: Duration, kill_after: Duration) -> Vec<Survivor> {
    if let Ok(seat) = Seat::default() {
        return shut_down_async(seat.core.clone(), [grace, kill_after]).await;
    }
    match Seat::at_rest() {
        Ok(seat) => {
            seat.core.close();
            ShuttingDown::new(&seat.core).survivors()
        }
        Err(_) => Vec::new(),
    }
}

async fn shut_down_async(core: Arc<Core>, limits: [Duration; 2]) -> Vec<Survivor> {
    let mut ending = ShuttingDown::new(&core);
    let mut is_empty = false;
    while let Some(span) = ending.next(limits, is_empty) {
        // Watched by the default driver, as every deadline that has no child.
        let mut time = Context::new().with_timeout(span).cancelled();
        let mut empty = Empty { core: &core, awaited: None };
        is_empty = poll_fn(|cx| match Pin::new(&mut empty).poll(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => Pin::new(&mut time).poll(cx).map(|()| false),
        })
        .await;
    }
    ending.survivors()
}

/// Waits until a core that is closing, and those it has taken over, have no child left.
struct Empty<'a> {
    core: &'a Core,
    /// The one that has children, and our place among those who wait for it.
    awaited: Option<(Arc<Core>, u64)>,
}

impl Future for Empty<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        // A forked copy: a lock may be held for ever.
        let family = if self.core.is_ours() { self.core.family() } else { Vec::new() };
        for core in family {
            let known = self.awaited.take();
            let mut key = known.as_ref().filter(|(known, _)| Arc::ptr_eq(known, &core)).map(|(_, key)| *key);
            let kept = key.is_some();
            let waits = core.wake_when_empty(&mut key, cx.waker());
            match known {
                Some((former, old)) if !(kept && waits) => former.forget_waker(old),
                _ => {}
            }
            if let (true, Some(key)) = (waits, key) {
                self.awaited = Some((core, key));
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Empty<'_> {
    fn drop(&mut self) {
        if let Some((core, key)) = self.awaited.take() {
            core.forget_waker(key);
        }
    }
}

/// As [`Driver::set_max_running`], for the default driver, and whatever driver should take its place.
pub fn set_max_running(limit: impl Into<Option<usize>>) {
    admission::set(Key::DEFAULT_DRIVER, Setting::MaxRunning(limit.into()));
}

/// As [`Driver::set_max_queued`], for the default driver.
pub fn set_max_queued(limit: usize) {
    admission::set(Key::DEFAULT_DRIVER, Setting::MaxQueued(limit));
}

/// As [`Driver::load`], of the default driver.
pub fn load() -> Load {
    admission::load(Key::DEFAULT_DRIVER)
}

/// As [`Driver::stats`], of the default driver.
///
/// # Errors
///
/// As [`Driver::new`]: it is started, if it was not yet.
pub fn stats() -> Result<Stats> {
    default_core().map(|core| core.recorder.snapshot())
}

/// As [`Driver::events`], of the default driver.
///
/// # Errors
///
/// As [`Driver::new`]: it is started, if it was not yet.
pub fn events(capacity: usize) -> Result<Events> {
    default_core().map(|core| core.subscribe(capacity))
}

/// The tables of the default driver.
pub(crate) fn default_core() -> Result<&'static Arc<Core>> {
    Seat::default().map(|seat| &seat.core)
}

/// As [`default_core`], for a child that its caller waits for and reaps: nobody need turn the loop for it.
pub(crate) fn default_core_at_rest() -> Result<&'static Arc<Core>> {
    Seat::at_rest().map(|seat| &seat.core)
}

/// The current default driver; replaced when its thread has died or the process was forked.
static DEFAULT: Leaked<Seat> = Leaked::new();

impl Seat {
    fn new(turning: Loop) -> Seat {
        Seat {
            core: turning.core().clone(),
            inbox: turning.inbox(),
            parked: Arc::new(Mutex::new(Some(turning))),
            started: AtomicBool::new(false),
            starting: Mutex::new(()),
        }
    }

    /// The default one, with its thread.
    fn default() -> Result<&'static Seat> {
        let seat = Seat::known_or(|new| new.start())?;
        seat.start()?;
        Ok(seat)
    }

    /// The default one; nobody may turn its loop.
    fn at_rest() -> Result<&'static Seat> {
        Seat::known_or(|_| Ok(()))
    }

    /// `prepare` is called with a new one before others can find it: should that fail nothing is left of it.
    fn known_or(prepare: impl Fn(&Seat) -> Result<()>) -> Result<&'static Seat> {
        loop {
            let known = DEFAULT.get();
            match known {
                Some(seat) if seat.core.is_ours() && !seat.core.is_dead() => return Ok(seat),
                _ => {}
            }
            let seat = Seat::new(Loop::default_driver()?);
            prepare(&seat)?;
            let core = seat.core.clone();
            if !DEFAULT.replace(known, Box::new(seat)) {
                // Somebody else was first: ours ends.
                core.orphan();
            }
        }
    }

    /// Starts the thread that turns the loop, unless there is one. If that fails the loop stays, for the next one who needs it.
    fn start(&self) -> Result<()> {
        if self.started.load(Ordering::Acquire) {
            return Ok(());
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.started.load(Ordering::Acquire) {
            start_thread(self.parked.clone())?;
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn shutdown(&self, grace: Duration, kill_after: Duration) -> Vec<Survivor> {
        let core = &self.core;
        shut_down(core, grace, kill_after, |until| core.wait_until_empty(until))
    }
}

fn start_thread(parked: Arc<Mutex<Option<Loop>>>) -> Result<()> {
    let main = move || {
        let turning = parked.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(parked);
        if let Some(turning) = turning {
            run(turning);
        }
    };
    with_signals_blocked(|| thread::Builder::new().name("pidloop".into()).spawn(main))
        .map(drop)
        .map_err(|e| Error::os(Stage::Clone, e).saying("the reactor thread"))
}

/// Turns a loop for as long as its owner is there.
fn run(mut turning: Loop) {
    let mut replaced = false;
    loop {
        match catch_unwind(AssertUnwindSafe(|| turn_until_orphaned(&mut turning))) {
            Ok(Ok(())) => return leave_to_default(turning),
            Ok(Err(error)) => {
                tell(Level::Error, format_args!("the reactor thread ends: {error}"));
                return turning.die();
            }
            Err(_) if replaced => {
                tell(Level::Error, format_args!("the reactor thread panicked again and ends"));
                return turning.die();
            }
            Err(_) => {
                tell(Level::Error, format_args!("the reactor thread panicked and starts again"));
                replaced = true;
                turning.recover();
            }
        }
    }
}

fn turn_until_orphaned(turning: &mut Loop) -> Result<()> {
    while !turning.core().is_orphaned() {
        turning.turn(None)?;
        #[cfg(test)]
        tests::panic_if_asked(turning);
    }
    Ok(())
}

/// The owner of a loop is gone: its epoll set is nested in the default driver's, which goes on with its children.
fn leave_to_default(turning: Loop) {
    if !turning.core().is_ours() {
        // A forked copy: the parent's loop still turns. Closing our copies of its descriptors silences nothing there.
        return;
    }
    turning.core().orphan();
    if turning.is_idle() {
        if let Some(heir) = DEFAULT.get() {
            heir.core.forget(turning.core());
        }
        return;
    }
    hand_over(turning);
}

fn hand_over(mut turning: Loop) {
    let error = loop {
        match Seat::default() {
            Ok(seat) => {
                let core = turning.core().clone();
                seat.core.take_over(&core);
                match seat.inbox.push(turning) {
                    Ok(()) => return seat.core.wake(),
                    // It died a moment ago: the next default driver.
                    Err(back) => turning = *back,
                }
                seat.core.forget(&core);
            }
            Err(error) => break error,
        }
    };
    tell(Level::Warn, format_args!("the default driver cannot take over ({error}): a helper thread does"));
    crate::helpers::run(Box::new(move || turning.turn_to_the_end()));
}

// ── contexts, for those who only wait for them ──

/// Keeps a context registered in the default driver, so that its deadline and its descriptors are noticed although no child is
/// attached.
#[derive(Debug)]
struct Watch {
    core: &'static Arc<Core>,
    token: Token,
}

impl Watch {
    fn new(context: &Context) -> Option<Watch> {
        let watch = || -> Result<Watch> {
            let core = default_core()?;
            Ok(Watch { core, token: core.watch(context)? })
        };
        // Without it an explicit cancel is still noticed.
        watch().inspect_err(|error| tell(Level::Warn, format_args!("a context is not watched: {error}"))).ok()
    }
}

/// What a listener keeps: the watches of those contexts in its line that may end without anybody's call. One that only a call ends costs
/// nothing.
fn vigil() -> Arc<dyn Fn(&Context) + Send + Sync> {
    let watches = Mutex::new(Vec::new());
    Arc::new(move |context| {
        if let Some(watch) = Watch::new(context) {
            watches.lock().unwrap_or_else(PoisonError::into_inner).push(watch);
        }
    })
}

/// Listens first and reads then what there is to watch: a descriptor that is handed out meanwhile is seen by one of the two.
pub(crate) fn listen(context: &Context, tell: Tell) -> std::result::Result<ListenKey, Listener> {
    let vigil = vigil();
    let key = context.listen(Listener { tell, watcher: Watcher::Call(vigil.clone()) })?;
    if let Some(context) = context.may_end_by_itself() {
        vigil(&context);
    }
    Ok(key)
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.core.is_ours() {
            self.core.unwatch(self.token);
        }
    }
}

impl Context {
    /// Waits until it is cancelled or its deadline passes; Go's `<-ctx.Done()`. Needs no particular runtime.
    ///
    /// In a forked copy of the process that made it the future is pending for ever, unless the context has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled { context: self.clone(), listening: None }
    }

    /// Calls `f` on a helper thread when it is cancelled or its deadline passes, at once if it is already; Go's
    /// `context.AfterFunc`. Dropping what it returns does not stop it.
    ///
    /// It is forgotten when nothing can end the context any more: no handle of it or of one above is left, and no deadline or descriptor.
    /// Until then it is kept: call it off when it is not wanted any more.
    ///
    /// There are 16 helper threads: a closure that never returns takes one of them away. In a forked copy of the process that made the
    /// context none is called.
    pub fn after_cancel(&self, f: impl FnOnce() + Send + 'static) -> AfterCancel {
        let key = match listen(self, Tell::Call(Box::new(f))) {
            Ok(key) => Some(key),
            Err(listener) => {
                if !self.is_inherited() {
                    listener.tell.tell();
                }
                None
            }
        };
        AfterCancel { context: self.clone(), key }
    }
}

/// What [`Context::cancelled`] returns.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct Cancelled {
    context: Context,
    listening: Option<(ListenKey, Waker)>,
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if self.context.look().is_some() {
            self.stop_listening();
            return Poll::Ready(());
        }
        if self.listening.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let waker = cx.waker().clone();
        let listening = listen(&self.context, Tell::Wake(waker.clone()));
        // The new one first: what is watched for both stays registered.
        self.stop_listening();
        match listening {
            Ok(key) => self.listening = Some((key, waker)),
            Err(_) if self.context.is_inherited() => {}
            Err(_) => return Poll::Ready(()),
        }
        Poll::Pending
    }
}

impl Cancelled {
    fn stop_listening(&mut self) {
        if let Some((key, _)) = self.listening.take() {
            self.context.unlisten(key);
        }
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.stop_listening();
    }
}

/// What [`Context::after_cancel`] returns: the way to call it off.
#[derive(Debug)]
pub struct AfterCancel {
    context: Context,
    key: Option<ListenKey>,
}

impl AfterCancel {
    /// Calls it off; false if the closure has been started, or was called off before. Does not wait for it.
    pub fn stop(&mut self) -> bool {
        self.key.take().is_some_and(|key| self.context.unlisten(key))
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    use std::time::Instant;

    use super::*;
    use crate::command::Command;
    use crate::error::ErrorKind;
    use crate::signal::Signal;

    /// How many panics the loop with this address is still to have.
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static VICTIM: AtomicPtr<Core> = AtomicPtr::new(ptr::null_mut());

    pub(super) fn panic_if_asked(turning: &Loop) {
        let victim = VICTIM.load(Ordering::SeqCst).cast_const();
        if ptr::eq(victim, Arc::as_ptr(turning.core()))
            && PANICS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            panic!("as asked");
        }
    }

    fn panic_in(driver: &Driver, times: usize) {
        VICTIM.store(Arc::as_ptr(driver.core()).cast_mut(), Ordering::SeqCst);
        PANICS.store(times, Ordering::SeqCst);
        driver.core().wake();
    }

    /// One test: the victim is one variable.
    #[test]
    fn a_loop_that_panics_goes_on_once_and_then_says_that_it_died() {
        let driver = Driver::new().unwrap();
        let ctx = Context::new();
        let child =
            driver.spawn(Command::new("sleep").arg("60").context(&ctx).stdout(crate::Stdio::captured())).unwrap();
        panic_in(&driver, 1);
        while PANICS.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        ctx.cancel();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.exit().signal(), Some(Signal::SIGKILL));

        let (stderr, mut lines) = crate::Stdio::lines(1);
        let mut command = Command::new("sleep");
        let child = driver.spawn(command.arg("60").stdout(crate::Stdio::captured()).stderr(stderr)).unwrap();
        let pid = child.id();
        panic_in(&driver, 1);
        let error = child.wait_with_output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReactorDied);
        assert_eq!((lines.next(), lines.end()), (None, Some(crate::QueueEnd::Abandoned)));
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        assert_eq!(driver.spawn(&Command::new("true")).unwrap_err().kind(), ErrorKind::ReactorDied);
        Command::new("true").run().unwrap();
    }

    /// In a process of its own: the default loop is everybody's.
    #[test]
    fn a_default_loop_that_died_is_followed_by_a_fresh_one() {
        const VARIABLE: &str = "PIDLOOP_TEST_DEFAULT_DIES";
        if std::env::var(VARIABLE).is_err() {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["a_default_loop_that_died", "--nocapture"]).env(VARIABLE, "1");
            assert!(again.status().unwrap().success());
            return;
        }
        let child = Command::new("sleep").arg("60").stdout(crate::Stdio::captured()).spawn().unwrap();
        let (read, _write) = crate::pipe::pipe().unwrap();
        let mut reader = crate::AsyncReader::from_fd(read).unwrap();
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        VICTIM.store(Arc::as_ptr(default_core().unwrap()).cast_mut(), Ordering::SeqCst);
        PANICS.store(2, Ordering::SeqCst);
        default_core().unwrap().wake();
        while PANICS.load(Ordering::SeqCst) > 0 {
            default_core().unwrap().wake();
            thread::yield_now();
        }
        assert_eq!(child.wait_with_output().unwrap_err().kind(), ErrorKind::ReactorDied);
        let mut bytes = [0; 8];
        let error = futures::executor::block_on(reader.read(&mut bytes)).unwrap_err();
        assert_eq!(error.get_ref().unwrap().downcast_ref::<Error>().unwrap().kind(), ErrorKind::ReactorDied);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let ctx = Context::new();
        let child = Command::new("sleep").arg("60").context(&ctx).stdout(crate::Stdio::captured()).spawn().unwrap();
        ctx.cancel();
        assert_eq!(child.wait_with_output().unwrap().exit().signal(), Some(Signal::SIGKILL));
    }

    #[test]
    fn a_deadline_is_a_long_way_off() {
        // `Instant + Duration::MAX` overflows; nothing here may add without checking.
        assert!(Instant::now().checked_add(Duration::MAX).is_none());
        Command::new("true").timeout(Duration::MAX).wait_delay(Duration::MAX).run().unwrap();
    }
}
