//! A reactor in tokio's own loop, by `AsyncFd`: no thread of ours, and no hop from one thread to another at an exit. Knows tokio.
//!
//! ```sh
//! cargo run --example in_tokio
//! ```

use std::error::Error;
use std::time::Duration;

use pidloop::{Command, Reactor, Stdio};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

async fn run() -> Result<(), Box<dyn Error>> {
    // Since tokio 1.54 `unsafe { AsyncFd::register_with_interest(…) }`: what that asks for is true of a `Reactor`, which keeps its
    // descriptor open, and the same, for as long as it lives.
    #[allow(deprecated)]
    let mut jobs = AsyncFd::with_interest(Reactor::new()?, Interest::READABLE)?;
    for word in ["one", "two", "three"] {
        let mut job = Command::new("echo");
        job.arg(word).stdout(Stdio::captured()).timeout(Duration::from_secs(10));
        jobs.get_mut().spawn(&job)?;
    }
    while !jobs.get_ref().is_empty() {
        let mut ready = jobs.readable_mut().await?;
        // Cleared first: what comes during the turn is not lost.
        ready.clear_ready();
        let jobs = ready.get_inner_mut();
        jobs.turn(Some(Duration::ZERO))?;
        while let Some(ended) = jobs.next_exit() {
            ended.exit().check()?;
            print!("{}", String::from_utf8_lossy(&ended.into_output().stdout));
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}
