//! Who may start now, and who waits for that: limits, shares and priorities. Knows drivers and contexts by number, and nothing of what
//! is started.
//!
//! Each thing with a limit is a place. Who is admitted holds a [`Permit`], and one of the slots of each place in its line, until it drops the
//! permit. Who is not waits at one place that is full; when a slot there comes free one is taken from it, and if it then finds another place full
//! it waits there. So a place that has room has nobody waiting, and one exit admits one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::spawner::{Job, Ticket};
use crate::sys::PerProcess;
use crate::sys::process::generation;

/// How many may wait at a place, unless it says otherwise.
const QUEUE_MAX: usize = 1 << 17;
/// Of so many that a tenant is given one goes to whoever has waited longest, whatever its priority: nobody waits for ever.
const OLDEST_EVERY: u64 = 8;
/// How often who waits for what has run out tries again.
const PULSE: Duration = Duration::from_millis(50);
/// A child's pidfd, both ends of its three streams while it is started, an eventfd for each.
const FDS_CHILD_MAX: u64 = 10;
/// How finely shares are told apart.
const SHARE_BITS: u32 = 16;

/// Names a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    Driver(u64),
    Context(u64),
    /// Descriptors and process slots, as far as they go: nobody knows how far before they run out.
    Resources,
}

impl Key {
    /// Whichever driver that is: its limits are those of its successor.
    pub(crate) const DEFAULT_DRIVER: Key = Key::Driver(0);

    pub(crate) fn next_driver() -> Key {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Key::Driver(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a driver or a context stands: what it has admitted, and what waits.
///
/// Counted from when it was given its first limit or weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Load {
    /// Children of it that live, and spawns of it that are under way.
    pub running: usize,
    /// Spawns that wait for it: because of its own limit, not of that of another one in their line.
    pub queued: usize,
    /// How many may live at a time; `None`: no limit.
    pub max_running: Option<usize>,
}

impl Load {
    /// How many more may be started now, as far as this limit goes; `usize::MAX` if there is none.
    pub fn room(&self) -> usize {
        self.max_running.map_or(usize::MAX, |limit| limit.saturating_sub(self.running))
    }
}

/// Who waits. One of the two is called, once, with no lock held.
pub(crate) trait Applicant: Send {
    /// By whoever gave a slot back.
    fn admitted(self: Box<Self>, permit: Permit);

    /// It was made to leave the queue; by whoever did that, on any thread.
    fn left(self: Box<Self>);
}

impl fmt::Debug for dyn Applicant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("applicant")
    }
}

/// What somebody asks for.
pub(crate) struct Application {
    /// Its place in the queue, should it have to wait.
    pub(crate) number: Number,
    pub(crate) line: Line,
    pub(crate) priority: i32,
}

/// Names who waits; in the order of their coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Number(u64);

impl Number {
    pub(crate) fn next() -> Number {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Number(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Leaves the queue, if it is there: not yet, or not any more, are nothing.
    pub(crate) fn leave(self) -> Option<Box<dyn Applicant>> {
        let mut state = POOL.get().state();
        let left = state.remove(self)?;
        drop(state);
        Some(left.applicant)
    }
}

/// Whose limits count for a child, and who is charged with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Those with a limit; each once.
    places: Vec<Key>,
    /// Whose share it is part of.
    tenant: Key,
}

impl Line {
    /// Of a child of `driver` with these contexts, each before those above it. `None`: nobody in it has a limit.
    ///
    /// `patient`: it would rather wait than fail where something runs out.
    pub(crate) fn of(driver: Key, contexts: impl Iterator<Item = Key>, patient: bool) -> Option<Line> {
        let state = POOL.get().state();
        let (mut places, mut weighted, mut limited) = (Vec::new(), None, None);
        for key in contexts.chain([driver]) {
            let Some(place) = state.places.get(&key) else { continue };
            if place.limit.is_some() && !places.contains(&key) {
                places.push(key);
                limited = limited.or(Some(key));
            }
            weighted = weighted.or(place.weight.map(|_| key));
        }
        if patient || RESERVE.load(Ordering::Relaxed) > 0 {
            places.push(Key::Resources);
        }
        (!places.is_empty()).then(|| Line { places, tenant: weighted.or(limited).unwrap_or(driver) })
    }
}

/// A slot in each place of a line; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    /// `None`: given back.
    line: Option<Line>,
    generation: u64,
}

impl Permit {
    /// Gives the slots back, and others get them. Who holds a lock tells those later.
    pub(crate) fn give_back(&mut self) {
        // A forked copy: the slots are the parent's.
        if let Some(line) = self.line.take().filter(|_| self.generation == generation()) {
            POOL.get().state().release(&line);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
        if self.generation == generation() {
            tell_the_admitted();
        }
    }
}

/// With no lock held.
fn tell_the_admitted() {
    POOL.get().tell_the_admitted();
}

/// What has been said of a driver or a context.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setting {
    MaxRunning(Option<usize>),
    MaxQueued(usize),
    Weight(u32),
}

/// Somebody has a limit or a weight. Relaxed: a spawn that does not see it yet was earlier.
static USED: AtomicBool = AtomicBool::new(false);

/// Whether there is anything to ask for.
pub(crate) fn is_used() -> bool {
    USED.load(Ordering::Relaxed)
}

pub(crate) fn set(key: Key, setting: Setting) {
    USED.store(true, Ordering::Relaxed);
    let pool = POOL.get();
    let mut state = pool.state();
    let place = state.places.entry(key).or_default();
    match setting {
        Setting::MaxRunning(limit) => place.limit = limit,
        Setting::MaxQueued(limit) => place.max_queued = limit,
        Setting::Weight(weight) => place.weight = Some(weight.max(1)),
    }
    state.reposition(key);
    state.admit_from(key);
    drop(state);
    pool.tell_the_admitted();
}

// ── what runs out ──

/// How many descriptors are left alone; 0: nobody asked for that. Relaxed: a number and nothing behind it.
static RESERVE: AtomicU64 = AtomicU64::new(0);

/// How many descriptors this process has, and may have: [`fd_budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FdBudget {
    /// The soft limit on open files; `u64::MAX`: none.
    pub limit: u64,
    /// How many are open, whoever opened them.
    pub used: u64,
    /// How many are to be left alone: [`set_fd_reserve`].
    pub reserve: u64,
}

impl FdBudget {
    /// How many may still be opened.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// Whether a child's worth of them can be had above the reserve.
    fn allows_a_child(&self) -> bool {
        self.left() >= self.reserve.saturating_add(FDS_CHILD_MAX)
    }
}

/// Counts this process's descriptors: one call of `stat(2)` (Linux 6.2), before that by reading `/proc/self/fd`, which takes its time where
/// there are thousands. Where neither can be had: as if none were open.
pub fn fd_budget() -> FdBudget {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let counted = rustix::fs::stat("/proc/self/fd").map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let used = match counted {
        // The one that reads is among them.
        0 => std::fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1)),
        counted => counted,
    };
    FdBudget { limit, used, reserve: RESERVE.load(Ordering::Relaxed) }
}

/// Leaves so many descriptors alone: where a spawn would go below that it waits, as for a limit, until children have ended or others have
/// closed theirs, which is looked at every 50 ms. For hosts that must be able to accept one more connection. 0, unless set: none. Each
/// spawn then asks the kernel how many are open.
///
/// A [`Reactor`](crate::Reactor) that its caller turns refuses such a spawn ([`ErrorKind::NoRoom`]).
pub fn set_fd_reserve(descriptors: u64) {
    RESERVE.store(descriptors, Ordering::Relaxed);
    USED.store(true, Ordering::Relaxed);
    pulse();
}

/// A patient spawn that has a slot found that something has run out: there are too many by one.
pub(crate) fn has_run_out() {
    let mut state = POOL.get().state();
    let place = state.places.entry(Key::Resources).or_default();
    place.limit = Some(place.running.saturating_sub(1));
    state.pulse_step = 1;
}

/// Who waits for resources tries again, a few at a time: more of them as long as that goes well.
pub(crate) fn pulse() {
    let pool = POOL.get();
    let mut state = pool.state();
    state.pulsing = false;
    let step = state.pulse_step;
    state.pulse_step = step.saturating_mul(2).max(1);
    if let Some(place) = state.places.get_mut(&Key::Resources) {
        place.limit = place.limit.filter(|_| place.queued > 0).map(|limit| limit.saturating_add(step));
        state.admit_from(Key::Resources);
        state.pulse_later();
        state.discard(Key::Resources);
    }
    drop(state);
    pool.tell_the_admitted();
}

/// For a thread that waits: where no other could be had for that.
pub(crate) fn pulse_if_nobody_does() {
    let mut state = POOL.get().state();
    state.pulse_later();
    let waits = state.places.get(&Key::Resources).is_some_and(|place| place.queued > 0);
    let nobody_does = waits && !state.pulsing;
    drop(state);
    if nobody_does {
        pulse();
    }
}

/// Comes when it is due.
struct Pulse;

impl Job for Pulse {
    fn begin(self: Box<Self>) {
        pulse();
    }

    fn left(self: Box<Self>) {}
}

/// Nobody has it any more: nobody waits for it. Who still has a slot of it gives that back.
pub(crate) fn forget(key: Key) {
    if !is_used() {
        return;
    }
    let mut state = POOL.get().state();
    let Some(place) = state.places.get_mut(&key) else { return };
    (place.limit, place.weight, place.max_queued) = (None, None, QUEUE_MAX);
    state.discard(key);
}

pub(crate) fn load(key: Key) -> Load {
    let state = POOL.get().state();
    state.places.get(&key).map_or_else(Load::default, |place| Load {
        running: place.running,
        queued: place.queued,
        max_running: place.limit,
    })
}

/// A permit, if there is room now; else the place that is full.
pub(crate) fn try_admit(line: &Line) -> std::result::Result<Permit, Key> {
    let mut state = POOL.get().state();
    match state.full_place(line) {
        Some(full) => Err(full),
        None => Ok(state.admit(line)),
    }
}

/// Tells `applicant` when it is admitted, at once if there is room.
pub(crate) fn apply(application: Application, applicant: Box<dyn Applicant>) -> Result<()> {
    let Application { number, line, priority } = application;
    let mut state = POOL.get().state();
    let Some(full) = state.full_place(&line) else {
        let permit = state.admit(&line);
        drop(state);
        applicant.admitted(permit);
        return Ok(());
    };
    let place = state.places.entry(full).or_default();
    if place.queued >= place.max_queued {
        let max = place.max_queued;
        drop(state);
        drop(applicant);
        return Err(Error::new(ErrorKind::QueueFull).saying(format!("{max} spawns are waiting")));
    }
    state.wait(full, number, Waiter { line, priority, applicant });
    Ok(())
}

#[derive(Default)]
struct Pool(Mutex<State>);

/// In a forked copy nobody waits, and there are no limits.
static POOL: PerProcess<Pool> = PerProcess::new();

#[derive(Default)]
struct State {
    places: HashMap<Key, Place>,
    /// Where who waits, and as whose.
    waiting: HashMap<Number, (Key, Key, i32)>,
    /// Admitted, and not told yet.
    admitted: VecDeque<(Box<dyn Applicant>, Permit)>,
    /// Somebody is telling them.
    telling: bool,
    /// Goes up with each that is admitted.
    admissions: u64,
    /// Who waits for resources will be looked after.
    pulsing: bool,
    /// How many more the next pulse lets try.
    pulse_step: usize,
}

/// A driver or a context: as one whose slots are taken, and as a tenant that has a share of others' slots.
struct Place {
    limit: Option<usize>,
    max_queued: usize,
    running: usize,
    queued: usize,
    /// Who waits here, by tenant; and the tenants by who is to be served next.
    queues: HashMap<Key, Queue>,
    order: BTreeSet<(u64, u64, Key)>,
    // As a tenant.
    weight: Option<u32>,
    /// How many slots it has been given.
    share: usize,
    /// When it was given the last one.
    served: u64,
    /// How many it has been given in all.
    turns: u64,
    /// Where it waits.
    waits_at: Vec<Key>,
}

impl Default for Place {
    fn default() -> Place {
        Place {
            limit: None,
            max_queued: QUEUE_MAX,
            running: 0,
            queued: 0,
            queues: HashMap::new(),
            order: BTreeSet::new(),
            weight: None,
            share: 0,
            served: 0,
            turns: 0,
            waits_at: Vec::new(),
        }
    }
}

impl Place {
    fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.running >= limit)
    }

    /// The lowest is served next: who has the least for its weight, and among equals who was served longest ago.
    fn rank(&self) -> (u64, u64) {
        let weight = u64::from(self.weight.unwrap_or(1));
        (((self.share as u64) << SHARE_BITS) / weight, self.served)
    }

    fn is_needed(&self) -> bool {
        let said = self.limit.is_some() || self.weight.is_some() || self.max_queued != QUEUE_MAX;
        said || self.running > 0 || self.share > 0 || self.queued > 0 || !self.waits_at.is_empty()
    }
}

/// Those of one tenant that wait at one place.
#[derive(Default)]
struct Queue {
    by_priority: BTreeMap<(Reverse<i32>, Number), Waiter>,
    by_age: BTreeMap<Number, i32>,
    /// Under which rank it stands in the order of its place.
    rank: Option<(u64, u64)>,
}

struct Waiter {
    line: Line,
    priority: i32,
    applicant: Box<dyn Applicant>,
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One after the other, by one thread: an applicant that gives its permit back at once makes this longer, not deeper.
    fn tell_the_admitted(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.telling, true) {
            return;
        }
        while let Some((applicant, permit)) = state.admitted.pop_front() {
            drop(state);
            let told = std::panic::AssertUnwindSafe(|| applicant.admitted(permit));
            // Of ours; should one panic the others are told all the same.
            let _ = std::panic::catch_unwind(told);
            state = self.state();
        }
        state.telling = false;
    }
}

impl State {
    fn full_place(&self, line: &Line) -> Option<Key> {
        line.places.iter().copied().find(|key| self.is_full(*key))
    }

    fn is_full(&self, key: Key) -> bool {
        let by_limit = self.places.get(&key).is_some_and(Place::is_full);
        by_limit || key == Key::Resources && RESERVE.load(Ordering::Relaxed) > 0 && !fd_budget().allows_a_child()
    }

    /// Exits alone may not tell: it may be others who have taken what is missing.
    fn pulse_later(&mut self) {
        let waits = self.places.get(&Key::Resources).is_some_and(|place| place.queued > 0);
        if waits && !self.pulsing {
            // Where no thread can be had those who sleep look by themselves.
            self.pulsing = Ticket::new(Instant::now() + PULSE).queue(Box::new(Pulse)).is_ok();
        }
    }

    fn release(&mut self, line: &Line) {
        for key in &line.places {
            if let Some(place) = self.places.get_mut(key) {
                place.running -= 1;
            }
        }
        if let Some(tenant) = self.places.get_mut(&line.tenant) {
            tenant.share -= 1;
        }
        self.reposition(line.tenant);
        line.places.iter().for_each(|key| self.admit_from(*key));
        line.places.iter().chain([&line.tenant]).for_each(|key| self.discard(*key));
    }

    fn admit(&mut self, line: &Line) -> Permit {
        for key in &line.places {
            self.places.entry(*key).or_default().running += 1;
        }
        self.admissions += 1;
        let admissions = self.admissions;
        let tenant = self.places.entry(line.tenant).or_default();
        tenant.share += 1;
        tenant.turns += 1;
        tenant.served = admissions;
        self.reposition(line.tenant);
        Permit { line: Some(line.clone()), generation: generation() }
    }

    /// The places in whose orders it stands learn of its new rank.
    fn reposition(&mut self, tenant: Key) {
        let Some(place) = self.places.get(&tenant) else { return };
        let rank = place.rank();
        for at in place.waits_at.clone() {
            let Some(place) = self.places.get_mut(&at) else { continue };
            let Some(queue) = place.queues.get_mut(&tenant) else { continue };
            if let Some((share, served)) = queue.rank.replace(rank) {
                place.order.remove(&(share, served, tenant));
            }
            place.order.insert((rank.0, rank.1, tenant));
        }
    }

    fn wait(&mut self, at: Key, number: Number, waiter: Waiter) {
        let (tenant, priority) = (waiter.line.tenant, waiter.priority);
        self.waiting.insert(number, (at, tenant, priority));
        let place = self.places.entry(at).or_default();
        place.queued += 1;
        let queue = place.queues.entry(tenant).or_default();
        queue.by_priority.insert((Reverse(priority), number), waiter);
        queue.by_age.insert(number, priority);
        let tenant_place = self.places.entry(tenant).or_default();
        if !tenant_place.waits_at.contains(&at) {
            tenant_place.waits_at.push(at);
            self.reposition(tenant);
        }
        if at == Key::Resources {
            self.pulse_later();
        }
    }

    fn remove(&mut self, number: Number) -> Option<Waiter> {
        let (at, tenant, priority) = self.waiting.remove(&number)?;
        let place = self.places.get_mut(&at)?;
        place.queued -= 1;
        let queue = place.queues.get_mut(&tenant)?;
        queue.by_age.remove(&number);
        let waiter = queue.by_priority.remove(&(Reverse(priority), number));
        if queue.by_age.is_empty() {
            if let Some((share, served)) = queue.rank {
                place.order.remove(&(share, served, tenant));
            }
            place.queues.remove(&tenant);
            if let Some(tenant) = self.places.get_mut(&tenant) {
                tenant.waits_at.retain(|other| *other != at);
            }
            self.discard(tenant);
            self.discard(at);
        }
        waiter
    }

    /// Whose turn it is at a place.
    fn next_at(&self, at: Key) -> Option<Number> {
        let place = self.places.get(&at)?;
        let (_, _, tenant) = place.order.first()?;
        let turns = self.places.get(tenant).map_or(0, |tenant| tenant.turns);
        let queue = place.queues.get(tenant)?;
        if turns % OLDEST_EVERY == OLDEST_EVERY - 1 {
            return queue.by_age.first_key_value().map(|(number, _)| *number);
        }
        queue.by_priority.first_key_value().map(|((_, number), _)| *number)
    }

    /// As long as there is room.
    fn admit_from(&mut self, at: Key) {
        while self.places.get(&at).is_some_and(|place| place.queued > 0) && !self.is_full(at) {
            let Some(number) = self.next_at(at) else { return };
            let Some(waiter) = self.remove(number) else { return };
            match self.full_place(&waiter.line) {
                Some(full) => self.wait(full, number, waiter),
                None => {
                    let permit = self.admit(&waiter.line);
                    self.admitted.push_back((waiter.applicant, permit));
                }
            }
        }
    }

    fn discard(&mut self, key: Key) {
        if self.places.get(&key).is_some_and(|place| !place.is_needed()) {
            self.places.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Nobody;

    impl Applicant for Nobody {
        fn admitted(self: Box<Self>, _: Permit) {}

        fn left(self: Box<Self>) {}
    }

    fn check(state: &State, holding: &[Line]) {
        for (key, place) in &state.places {
            let held = holding.iter().filter(|line| line.places.contains(key)).count();
            let share = holding.iter().filter(|line| line.tenant == *key).count();
            assert_eq!((place.running, place.share), (held, share), "{key:?}");
            let waiting = state.waiting.values().filter(|(at, ..)| at == key).count();
            assert_eq!(place.queued, waiting, "{key:?}");
            assert!(place.queued == 0 || place.is_full(), "{key:?} has room, and somebody waits");
            let ordered: Vec<Key> = place.order.iter().map(|(.., tenant)| *tenant).collect();
            assert!(ordered.len() == place.queues.len() && ordered.iter().all(|key| place.queues.contains_key(key)));
            for (tenant, queue) in &place.queues {
                assert!(queue.by_age.len() == queue.by_priority.len() && !queue.by_age.is_empty());
                assert_eq!(queue.rank, Some(state.places[tenant].rank()));
                assert!(state.places[tenant].waits_at.contains(key));
            }
        }
    }

    /// Whoever comes, goes, is admitted, in whatever order: what has room has nobody waiting, and all counts are right.
    #[test]
    fn what_has_room_has_nobody_waiting() {
        let keys = [Key::Driver(1), Key::Context(1), Key::Context(2), Key::Context(3), Key::Context(4)];
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |end: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as usize % end
        };
        let (mut state, mut holding, mut waiting) = (State::default(), Vec::new(), HashMap::new());
        for round in 0..3000 {
            match next(8) {
                0..=3 => {
                    let places: Vec<Key> = keys.iter().copied().filter(|_| next(2) == 0).collect();
                    if places.is_empty() {
                        continue;
                    }
                    let line = Line { tenant: keys[next(5)], places };
                    match state.full_place(&line) {
                        None => {
                            std::mem::forget(state.admit(&line));
                            holding.push(line);
                        }
                        Some(full) => {
                            let number = Number(round);
                            let (priority, applicant) = (next(3) as i32, Box::new(Nobody));
                            state.wait(full, number, Waiter { line: line.clone(), priority, applicant });
                            waiting.insert(number, line);
                        }
                    }
                }
                4 | 5 if !holding.is_empty() => {
                    let line = holding.swap_remove(next(holding.len()));
                    state.release(&line);
                }
                6 if !waiting.is_empty() => {
                    let number = *waiting.keys().min().unwrap();
                    assert!(state.remove(number).is_some());
                    waiting.remove(&number);
                }
                _ => {
                    let key = keys[next(5)];
                    let place = state.places.entry(key).or_default();
                    place.limit = Some(next(4)).filter(|limit| *limit > 0 || round % 3 > 0);
                    place.weight = Some(1 + next(3) as u32);
                    state.reposition(key);
                    state.admit_from(key);
                }
            }
            for (_, mut permit) in state.admitted.drain(..) {
                holding.extend(permit.line.take());
            }
            waiting.retain(|number, _| state.waiting.contains_key(number));
            check(&state, &holding);
        }
    }
}
