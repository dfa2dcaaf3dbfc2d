//! Promises 10 and 11 for those who are told what happens to children: in order, bounded, without secrets, by nobody's lock. Knows the
//! public API, fork(2), and `tracing` by its subscribers.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use common::{SOON, in_own_process, pipe, sh};
use pidloop::{Cancel, Command, Context, Driver, ErrorKind, Event, EventKind, Events, Reactor, Signal, Stage, Stdio};

struct Unparker(Thread);

impl Wake for Unparker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unparker(thread::current())));
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut task::Context::from_waker(&waker)) {
            return result;
        }
        thread::park_timeout(SOON);
    }
}

/// What is there, in words.
fn words(events: &mut Events) -> Vec<String> {
    std::iter::from_fn(|| events.try_next()).map(|event| event.kind.to_string()).collect()
}

#[test]
fn a_childs_life_is_told_in_order() {
    let driver = Driver::new().unwrap();
    let mut events = driver.events(100);
    let child = driver.spawn(sh("echo here; exit 3").stdout(Stdio::captured()).stderr(Stdio::captured())).unwrap();
    let pid = child.id();
    child.wait_with_output().unwrap();
    let seen: Vec<Event> = std::iter::from_fn(|| events.try_next()).collect();
    let mut told: Vec<String> = seen.iter().map(|event| event.kind.to_string()).collect();
    assert_eq!(told.remove(0), "spawned");
    told.sort();
    assert_eq!(told, ["closed its stderr", "closed its stdout", "exited: exit status 3"]);
    assert!(seen.iter().all(|event| event.pid == Some(pid) && event.child == seen[0].child && event.child.is_some()));
    assert_eq!(seen[0].to_string(), format!("/bin/sh -c 'echo here; exit 3' ({pid}): spawned"));

    let ctx = Context::new();
    let mut command = Command::new("sleep");
    let child = driver.spawn(command.arg("60").context(&ctx).cancel(Cancel::Signal(Signal::SIGTERM))).unwrap();
    ctx.cancel_with("enough");
    child.wait().unwrap();
    assert_eq!(words(&mut events), ["spawned", "stopping: enough", "exited: signal: terminated (enough)"]);

    driver.spawn(&Command::new("/does/not/exist")).unwrap_err();
    match events.try_next().unwrap() {
        Event { kind: EventKind::Failed { kind, stage, .. }, child: None, pid: None, .. } => {
            assert_eq!((kind, stage), (ErrorKind::NotFound, Some(Stage::Exec)));
        }
        event => panic!("{event}"),
    }
    assert_eq!((words(&mut events), events.lost()), (Vec::<String>::new(), 0));
}

#[test]
fn output_that_somebody_holds_is_told_of() {
    let mut reactor = Reactor::new().unwrap();
    let mut events = reactor.events(100);
    let (ours, theirs) = pipe();
    let mut command = sh("cat <&3 & exit 0");
    command.fd(3, ours).stdout(Stdio::captured()).wait_delay(Duration::from_millis(10));
    reactor.spawn(&command).unwrap();
    while reactor.next_exit().is_none() {
        reactor.turn(Some(SOON)).unwrap();
    }
    drop((theirs, command));
    assert_eq!(words(&mut events), ["spawned", "exited: exit status 0", "somebody still held its stdout"]);
}

#[test]
fn a_full_queue_keeps_what_it_has_and_counts_the_rest() {
    let driver = Driver::new().unwrap();
    let mut small = driver.events(3);
    let mut large = driver.events(1000);
    let mut nothing = driver.events(0);
    for _ in 0..3 {
        driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
    }
    assert_eq!(words(&mut small), ["spawned", "exited: exit status 0", "spawned"]);
    assert_eq!((small.lost(), large.lost(), nothing.lost()), (3, 0, 6));
    driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
    let lost: Vec<u64> = std::iter::from_fn(|| small.try_next()).map(|event| event.lost_before).collect();
    assert_eq!((lost, words(&mut large).len(), nothing.try_next().is_none()), (vec![3, 0], 8, true));
}

#[test]
fn secrets_are_not_told() {
    let driver = Driver::new().unwrap();
    let mut events = driver.events(100);
    let mut command = sh("read line; test $SECRET$line = $0$0");
    command.secret_arg("hunter2").env("SECRET", "hunter2").stdin(Stdio::bytes("hunter2\n"));
    driver.spawn(&command).unwrap().wait().unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| events.try_next()).collect();
    assert!(events.last().unwrap().kind.to_string().ends_with("exit status 0"));
    for event in events {
        let told = format!("{event}{event:?}");
        assert!(!told.contains("hunter2") && told.contains("***"), "{told}");
        #[cfg(feature = "serde")]
        assert!(!serde_json::to_string(&event).unwrap().contains("hunter2"));
    }
}

#[test]
fn whoever_waits_for_an_event_is_woken_and_sees_the_end() {
    let driver = Driver::new().unwrap();
    let mut events = driver.events(10);
    assert!(events.next_timeout(Duration::from_millis(1)).is_none());
    let mut tasks = driver.events(10);
    let reader = thread::spawn(move || events.map(|event| event.kind.to_string()).collect::<Vec<_>>());
    let task = thread::spawn(move || {
        block_on(async {
            let mut told = Vec::new();
            while let Some(event) = tasks.next_async().await {
                told.push(event.kind.to_string());
            }
            told
        })
    });
    driver.spawn(&sh("exit 7")).unwrap().wait().unwrap();
    drop(driver);
    for told in [reader.join().unwrap(), task.join().unwrap()] {
        assert_eq!(told, ["spawned", "exited: exit status 7"]);
    }
}

struct Panics(AtomicUsize);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("as asked");
    }
}

#[test]
fn a_waker_that_panics_and_a_reader_that_leaves_harm_nobody() {
    let driver = Driver::new().unwrap();
    let mut events = driver.events(10);
    let panics = Arc::new(Panics(AtomicUsize::new(0)));
    let waker = Waker::from(panics.clone());
    let ctx = Context::new();
    let child = driver.spawn(Command::new("sleep").arg("60").context(&ctx).stdout(Stdio::captured())).unwrap();
    assert!(events.try_next().is_some());
    assert!(events.poll_next_event(&mut task::Context::from_waker(&waker)).is_pending());
    ctx.cancel();
    child.wait_with_output().unwrap();
    assert_eq!(panics.0.load(Ordering::SeqCst), 1);
    assert!(events.poll_next_event(&mut task::Context::from_waker(&waker)).is_ready());
    drop(events);
    driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
    assert_eq!(panics.0.load(Ordering::SeqCst), 1);
}

#[test]
fn in_a_forked_copy_nothing_is_told() {
    in_own_process("in_a_forked_copy_nothing_is_told", || {
        let driver = Driver::new().unwrap();
        let mut events = driver.events(10);
        driver.spawn(&Command::new("true")).unwrap().wait().unwrap();
        // SAFETY: fork(2): this process has no lock of a test's; the copy asks and leaves.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let inert = events.next().is_none() && events.try_next().is_none() && driver.events(1).next().is_none();
            let none = block_on(events.next_async()).is_none() && events.lost() == 0;
            // SAFETY: _exit(2).
            unsafe { libc::_exit(if inert && none { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waitpid(2) for that child alone.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!((status, words(&mut events).len()), (0, 2));
    });
}

#[cfg(feature = "serde")]
#[test]
fn events_and_exits_are_written_as_data() {
    let driver = Driver::new().unwrap();
    let mut events = driver.events(100);
    let ctx = Context::new();
    let child = driver.spawn(Command::new("sleep").arg("60").context(&ctx)).unwrap();
    let pid = child.id();
    ctx.cancel_with("enough");
    child.wait().unwrap();
    let seen: Vec<serde_json::Value> =
        std::iter::from_fn(|| events.try_next()).map(|event| serde_json::to_value(&event).unwrap()).collect();
    assert_eq!((seen[0]["kind"].as_str(), seen[0]["pid"].as_u64()), (Some("spawned"), Some(pid.into())));
    assert_eq!(seen[1]["kind"]["stopping"]["cause"]["other"], "enough");
    let exit = &seen[2]["kind"]["exited"]["exit"];
    assert_eq!((exit["signal"].as_str(), exit["command"].as_str()), (Some("SIGKILL"), Some("sleep 60")));
    assert!(exit["usage"]["max_rss_bytes"].is_u64() && exit["code"].is_null());
    let signal: Signal = serde_json::from_str("\"term\"").unwrap();
    assert_eq!((signal, serde_json::to_string(&signal).unwrap()), (Signal::SIGTERM, "\"SIGTERM\"".into()));
    assert!(serde_json::from_str::<Signal>("\"SIGNOPE\"").is_err());
}

#[cfg(feature = "tracing")]
mod spans {
    use std::collections::HashMap;
    use std::fmt::Debug;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Metadata, Subscriber};

    use super::*;

    /// What became of each span, by its id.
    #[derive(Default)]
    struct Log {
        spans: Mutex<HashMap<u64, Seen>>,
        next: AtomicU64,
        current: Mutex<Vec<u64>>,
        panics: bool,
    }

    #[derive(Clone, Default)]
    struct Seen {
        name: &'static str,
        parent: Option<u64>,
        fields: HashMap<String, String>,
        closed_by: Option<String>,
    }

    struct Subscribed(Arc<Log>);

    struct Fields<'a>(&'a mut HashMap<String, String>);

    impl Visit for Fields<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0.insert(field.name().into(), format!("{value:?}"));
        }
    }

    impl Subscriber for Subscribed {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.is_span()
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            let id = self.0.next.fetch_add(1, Ordering::SeqCst) + 1;
            let mut seen = Seen { name: span.metadata().name(), ..Seen::default() };
            seen.parent = self.0.current.lock().unwrap().last().copied();
            span.record(&mut Fields(&mut seen.fields));
            self.0.spans.lock().unwrap().insert(id, seen);
            Id::from_u64(id)
        }

        fn record(&self, span: &Id, values: &Record<'_>) {
            assert!(!self.0.panics, "as asked");
            let mut spans = self.0.spans.lock().unwrap();
            values.record(&mut Fields(&mut spans.get_mut(&span.into_u64()).unwrap().fields));
        }

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &tracing::Event<'_>) {}

        fn enter(&self, span: &Id) {
            self.0.current.lock().unwrap().push(span.into_u64());
        }

        fn exit(&self, _: &Id) {
            self.0.current.lock().unwrap().pop();
        }

        fn try_close(&self, id: Id) -> bool {
            let name = thread::current().name().unwrap_or_default().to_owned();
            self.0.spans.lock().unwrap().get_mut(&id.into_u64()).unwrap().closed_by = Some(name);
            true
        }
    }

    fn closed(log: &Log, count: usize) -> Vec<Seen> {
        let closed = || -> Vec<Seen> {
            let spans = log.spans.lock().unwrap();
            spans.values().filter(|span| span.name == "child" && span.closed_by.is_some()).cloned().collect()
        };
        common::eventually("they are closed", || closed().len() >= count);
        closed()
    }

    #[test]
    fn a_child_is_a_span_below_the_current_one() {
        let log = Arc::new(Log::default());
        tracing::subscriber::with_default(Subscribed(log.clone()), || {
            let request = tracing::info_span!("request");
            let _entered = request.enter();
            let driver = Driver::new().unwrap();
            let ctx = Context::new();
            let child = driver.spawn(Command::new("sleep").arg("60").secret_arg("1").context(&ctx)).unwrap();
            ctx.cancel();
            child.wait().unwrap();
            let seen = closed(&log, 1).remove(0);
            let field = |name: &str| seen.fields.get(name).map(String::as_str);
            assert_eq!(field("command"), Some("\"sleep 60 ***\""));
            assert_eq!(field("pid"), Some(child.id().to_string().as_str()));
            assert_eq!((field("exit"), field("cause")), (Some("signal: killed"), Some("context cancelled")));
            assert_eq!(seen.parent, request.id().map(|id| id.into_u64()));
            // Not the loop's thread: a subscriber may take its time.
            assert_eq!(seen.closed_by.as_deref(), Some("pidloop-helper"));

            driver.spawn(&Command::new("/does/not/exist")).unwrap_err();
            let failed = closed(&log, 2).into_iter().find(|span| span.fields.contains_key("error")).unwrap();
            assert!(failed.fields["error"].contains("No such file"), "{:?}", failed.fields);
        });
    }

    #[test]
    fn a_subscriber_that_panics_harms_nobody() {
        let log = Arc::new(Log { panics: true, ..Log::default() });
        tracing::subscriber::with_default(Subscribed(log.clone()), || {
            let driver = Driver::new().unwrap();
            for _ in 0..3 {
                let child = driver.spawn(sh("exit 3").stdout(Stdio::captured())).unwrap();
                assert_eq!(child.wait_with_output().unwrap().exit().code(), Some(3));
            }
            closed(&log, 3);
        });
    }
}
