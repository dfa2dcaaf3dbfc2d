//! The promise that a cancel reaches whom it should, once and with the right cause, at its full size: a thousand contexts in a tree, cancelled
//! from sixteen threads in random order, under ten thousand children. Knows the public API alone.

mod common;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::{SOON, children_of_ours, eventually, in_own_process, open_descriptors, sh, skip, spawn_ready, threads};
use pidloop::{Cancel, Cause, Child, ChildStdout, Command, Context, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const CONTEXTS: usize = 1000;
const CHILDREN: usize = 10_000;
const THREADS: usize = 16;
/// Every so many children one is stopped by a closure that counts, and one by SIGTERMs that it counts itself.
const COUNTING: usize = 100;

/// Different at each run; small and fast (xorshift).
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(RandomState::new().hash_one(std::process::id()) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn shuffled(&mut self, end: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..end).collect();
        (1..end).for_each(|at| order.swap(at, self.below(at + 1)));
        order
    }
}

/// Contexts, each with the place of its parent among those before it.
struct Tree {
    contexts: Vec<Context>,
    parents: Vec<Option<usize>>,
}

impl Tree {
    fn new(random: &mut Random) -> Tree {
        let mut tree = Tree { contexts: vec![Context::new()], parents: vec![None] };
        for place in 1..CONTEXTS {
            let parent = random.below(place);
            tree.contexts.push(tree.contexts[parent].child_context());
            tree.parents.push(Some(parent));
        }
        tree
    }

    /// Whether the context at `place` may have ended because that at `by` was cancelled: itself, or one above that nobody above had
    /// cancelled before.
    fn may_end(&self, place: usize, by: usize) -> bool {
        let mut line = std::iter::successors(Some(place), |place| self.parents[*place]);
        line.any(|above| above == by) && name(self.contexts[by].cause()) == by
    }
}

/// The number of the context that a cause names.
fn name(cause: Option<Cause>) -> usize {
    cause.expect("cancelled").to_string().strip_prefix("context ").unwrap().parse().unwrap()
}

/// Children, in order; and what is counted of some of them.
struct Crowd {
    children: Vec<Child>,
    calls: Vec<(usize, Arc<AtomicUsize>)>,
    shells: Vec<(usize, ChildStdout)>,
    /// What the shells wait for.
    input: (File, File),
}

impl Crowd {
    /// Those with these numbers.
    fn new(tree: &Tree, places: Range<usize>) -> Crowd {
        let mut crowd = Crowd { children: Vec::new(), calls: Vec::new(), shells: Vec::new(), input: common::pipe() };
        for place in places {
            let context = &tree.contexts[place % CONTEXTS];
            let child = match place % COUNTING {
                1 => crowd.counted_by_a_closure(place, context),
                2 => crowd.counted_by_itself(place, context),
                _ => Command::new("/bin/sleep").arg("600").context(context).kill_on_drop(true).spawn().unwrap(),
            };
            crowd.children.push(child);
        }
        crowd
    }

    /// All of them, started by several threads at once.
    fn whole(tree: &Tree) -> Vec<Crowd> {
        const SHARE: usize = CHILDREN / THREADS;
        thread::scope(|scope| {
            let starters: Vec<_> =
                (0..THREADS).map(|i| scope.spawn(move || Crowd::new(tree, i * SHARE..(i + 1) * SHARE))).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        })
    }

    fn counted_by_a_closure(&mut self, place: usize, context: &Context) -> Child {
        let calls = Arc::new(AtomicUsize::new(0));
        self.calls.push((place, calls.clone()));
        let count = Cancel::call(move |target| {
            calls.fetch_add(1, Ordering::SeqCst);
            target.signal(Signal::SIGKILL)
        });
        Command::new("/bin/sleep").arg("600").context(context).cancel(count).kill_on_drop(true).spawn().unwrap()
    }

    fn counted_by_itself(&mut self, place: usize, context: &Context) -> Child {
        let mut command = sh("trap 'echo term' TERM; echo ready; while :; do read line; done");
        command.stdin(self.input.0.try_clone().unwrap()).context(context).kill_on_drop(true);
        command.cancel(Cancel::Signal(Signal::SIGTERM)).wait_delay(Duration::from_millis(500));
        let (child, stdout) = spawn_ready(&mut command);
        self.shells.push((place, stdout));
        child
    }
}

/// Raises the limit of descriptors, if it may be raised that far; says why not.
fn make_room() -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let needed = (CHILDREN + CONTEXTS + 1000) as u64;
    if limit.maximum.is_some_and(|hard| hard < needed) {
        return Err(format!("needs {needed} descriptors"));
    }
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<usize>().ok());
    if number("/proc/sys/kernel/pid_max").is_some_and(|most| most < 2 * CHILDREN) {
        return Err(format!("needs {} process ids", 2 * CHILDREN));
    }
    if getrlimit(Resource::Nproc).current.is_some_and(|most| most < 2 * CHILDREN as u64) {
        return Err(format!("needs {} processes", 2 * CHILDREN));
    }
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).map_err(|error| error.to_string())
}

#[test]
fn a_thousand_contexts_end_ten_thousand_children_once_each() {
    const NAME: &str = "a_thousand_contexts_end_ten_thousand_children_once_each";
    in_own_process(NAME, || {
        if let Err(why) = make_room() {
            return skip(NAME, &why);
        }
        Command::new("true").context(&Context::new()).spawn().unwrap().wait().unwrap();
        let (before, threads_before) = (open_descriptors().len(), threads());
        let mut random = Random::new();
        let tree = Tree::new(&mut random);
        let crowds = Crowd::whole(&tree);
        eventually("the threads that started them are gone", || threads() == threads_before);

        let order = random.shuffled(CONTEXTS);
        let barrier = Barrier::new(THREADS);
        thread::scope(|scope| {
            for share in order.chunks(CONTEXTS.div_ceil(THREADS)) {
                let (tree, barrier) = (&tree, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for place in share {
                        tree.contexts[*place].cancel_with(format!("context {place}"));
                        assert!(tree.contexts[*place].is_cancelled());
                    }
                });
            }
        });

        for (place, child) in crowds.iter().flat_map(|crowd| &crowd.children).enumerate() {
            let exit = child.wait_timeout(SOON).unwrap().unwrap_or_else(|| panic!("child {place} is still there"));
            assert_eq!(exit.signal(), Some(Signal::SIGKILL), "child {place}");
            let by = name(exit.cause().cloned());
            assert_eq!(by, name(tree.contexts[place % CONTEXTS].cause()), "child {place}");
            assert!(tree.may_end(place % CONTEXTS, by), "child {place} by context {by}");
        }
        let first: std::collections::HashSet<usize> =
            tree.contexts.iter().map(|context| name(context.cause())).collect();
        println!("{} of {CONTEXTS} cancels were the first", first.len());

        for (place, calls) in crowds.iter().flat_map(|crowd| &crowd.calls) {
            assert_eq!(calls.load(Ordering::SeqCst), 1, "child {place}");
        }
        for (place, mut stdout) in crowds.into_iter().flat_map(|crowd| crowd.shells) {
            let mut said = String::new();
            stdout.read_to_string(&mut said).unwrap();
            assert_eq!(said, "term\n", "child {place}");
        }
        drop(tree);
        eventually("all is given back", || open_descriptors().len() <= before && children_of_ours().is_empty());
    });
}
