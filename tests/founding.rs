//! Promise 4, the case pidloop exists for: a cancelled context stops the child although nobody waits for it. Knows nothing of how.

mod common;

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::SOON;
use pidloop::{Cause, Command, Context, Signal, Stdio};

/// A01: writes fail and the reader ends at EOF within a second; only then somebody waits.
#[test]
fn a01_a_cancelled_context_stops_a_child_that_nobody_waits_for() {
    let ctx = Context::new();
    let (theirs, mut ours) = common::pipe();
    let child = {
        let mut command = Command::new("cat");
        command.stdin(theirs).stdout(Stdio::piped()).context(&ctx);
        command.spawn().unwrap()
    };
    let mut stdout = child.take_stdout().unwrap();
    let (first_seen, first) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut echo = [0; 4];
        stdout.read_exact(&mut echo).unwrap();
        first_seen.send(()).unwrap();
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).map(|_| rest)
    });
    ours.write_all(b"echo").unwrap();
    first.recv_timeout(SOON).unwrap();

    ctx.cancel();
    let cancelled_at = Instant::now();
    while ours.write_all(b"echo").is_ok() {
        assert!(cancelled_at.elapsed() < Duration::from_secs(1), "it still reads");
        thread::yield_now();
    }
    drop(ours);
    let rest = reader.join().unwrap().unwrap();
    assert!(rest.len() % 4 == 0 && cancelled_at.elapsed() < Duration::from_secs(1));

    let exit = child.wait().unwrap();
    assert_eq!((exit.signal(), exit.cause()), (Some(Signal::SIGKILL), Some(&Cause::Cancelled)));
    assert_eq!(exit.check().unwrap_err().kind(), pidloop::ErrorKind::Cancelled);
}

/// A02, A03: the same with a piped stdin.
#[test]
fn a02_a03_a_cancelled_context_breaks_the_piped_stdin() {
    let ctx = Context::new();
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).context(&ctx).spawn().unwrap();
    let mut stdin = child.take_stdin().unwrap();
    stdin.write_all(b"echo").unwrap();
    ctx.cancel();
    common::eventually("writes fail", || stdin.write_all(b"echo").is_err());
    let exit = child.wait().unwrap();
    assert_eq!((exit.signal(), exit.code()), (Some(Signal::SIGKILL), None));
    assert_eq!(exit.to_string(), "signal: killed");
    assert_eq!(exit.check().unwrap_err().kind(), pidloop::ErrorKind::Cancelled);
}
