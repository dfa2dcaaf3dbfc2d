//! A reactor in a bare epoll loop, beside whatever else the loop watches. Knows epoll; no thread, no callback.
//!
//! ```sh
//! cargo run --example in_epoll
//! ```

use std::error::Error;
use std::time::Duration;

use pidloop::{Command, Reactor, Stdio};
use rustix::event::epoll;

/// What the loop knows the reactor by.
const JOBS: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let host = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut jobs = Reactor::new()?;
    // Level- or edge-triggered: both will do.
    epoll::add(&host, &jobs, epoll::EventData::new_u64(JOBS), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
    for word in ["one", "two", "three"] {
        jobs.spawn(Command::new("echo").arg(word).stdout(Stdio::captured()).timeout(Duration::from_secs(10)))?;
    }
    let mut events = Vec::with_capacity(64);
    while !jobs.is_empty() {
        events.clear();
        rustix::io::retry_on_intr(|| epoll::wait(&host, rustix::buffer::spare_capacity(&mut events), None))?;
        if events.iter().any(|event: &epoll::Event| event.data.u64() == JOBS) {
            jobs.turn(Some(Duration::ZERO))?;
        }
        while let Some(ended) = jobs.next_exit() {
            ended.exit().check()?;
            print!("{}", String::from_utf8_lossy(&ended.into_output().stdout));
        }
    }
    // Out of the outer set before it goes: if it had children left its descriptor would live on with them.
    epoll::delete(&host, &jobs)?;
    Ok(())
}
