//! A reactor in a loop on the crate `polling`, which smol's async-io stands on. Knows polling; no thread, no callback.
//!
//! ```sh
//! cargo run --example in_polling
//! ```

use std::error::Error;
use std::os::fd::AsRawFd;
use std::time::Duration;

use pidloop::{Command, Reactor, Stdio};
use polling::{Event, Events, Poller};

const JOBS: usize = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let host = Poller::new()?;
    let mut jobs = Reactor::new()?;
    // SAFETY: it is deleted below, before it is dropped; on an error both go, and nobody waits any more.
    unsafe { host.add(jobs.as_raw_fd(), Event::readable(JOBS)) }?;
    for word in ["one", "two", "three"] {
        jobs.spawn(Command::new("echo").arg(word).stdout(Stdio::captured()).timeout(Duration::from_secs(10)))?;
    }
    let mut events = Events::new();
    while !jobs.is_empty() {
        events.clear();
        host.wait(&mut events, None)?;
        if events.iter().any(|event| event.key == JOBS) {
            jobs.turn(Some(Duration::ZERO))?;
            // The usual mode reports once and is asked for again: what came meanwhile is reported at once.
            host.modify(&jobs, Event::readable(JOBS))?;
        }
        while let Some(ended) = jobs.next_exit() {
            ended.exit().check()?;
            print!("{}", String::from_utf8_lossy(&ended.into_output().stdout));
        }
    }
    host.delete(&jobs)?;
    Ok(())
}
