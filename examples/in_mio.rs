//! A reactor in a mio loop: one more source. Knows mio; no thread, no callback.
//!
//! ```sh
//! cargo run --example in_mio
//! ```

use std::error::Error;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use pidloop::{Command, Reactor, Stdio};

const JOBS: Token = Token(1);

fn main() -> Result<(), Box<dyn Error>> {
    let mut host = Poll::new()?;
    let mut jobs = Reactor::new()?;
    host.registry().register(&mut SourceFd(&jobs.as_raw_fd()), JOBS, Interest::READABLE)?;
    for word in ["one", "two", "three"] {
        jobs.spawn(Command::new("echo").arg(word).stdout(Stdio::captured()).timeout(Duration::from_secs(10)))?;
    }
    let mut events = Events::with_capacity(64);
    while !jobs.is_empty() {
        match host.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        if events.iter().any(|event| event.token() == JOBS) {
            jobs.turn(Some(Duration::ZERO))?;
        }
        while let Some(ended) = jobs.next_exit() {
            ended.exit().check()?;
            print!("{}", String::from_utf8_lossy(&ended.into_output().stdout));
        }
    }
    // A `SourceFd` does not own its descriptor: out of the loop before it is closed.
    host.registry().deregister(&mut SourceFd(&jobs.as_raw_fd()))?;
    Ok(())
}
