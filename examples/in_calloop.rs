//! A reactor in a calloop event loop, as Wayland clients and compositors have one. Knows calloop; no thread.
//!
//! ```sh
//! cargo run --example in_calloop
//! ```

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use calloop::generic::Generic;
use calloop::{EventLoop, Interest, Mode, PostAction};
use pidloop::{Command, Reactor, Stdio};

/// What calloop hands to each callback.
struct State {
    jobs: Reactor,
}

impl State {
    fn on_readable(&mut self) -> pidloop::Result<()> {
        self.jobs.turn(Some(Duration::ZERO))?;
        while let Some(ended) = self.jobs.next_exit() {
            ended.exit().check()?;
            print!("{}", String::from_utf8_lossy(&ended.into_output().stdout));
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut host: EventLoop<'_, State> = EventLoop::try_new()?;
    let mut state = State { jobs: Reactor::new()? };
    // A duplicate for the source, which owns what it watches; the reactor stays within reach of every callback.
    let epoll = state.jobs.as_fd().try_clone_to_owned()?;
    let source = Generic::new(epoll, Interest::READ, Mode::Level);
    let token = host
        .handle()
        .insert_source(source, |_, _, state| {
            state.on_readable().map_err(io::Error::from)?;
            Ok(PostAction::Continue)
        })
        .map_err(|refused| refused.error)?;
    for word in ["one", "two", "three"] {
        let mut job = Command::new("echo");
        job.arg(word).stdout(Stdio::captured()).timeout(Duration::from_secs(10));
        state.jobs.spawn(&job)?;
    }
    while !state.jobs.is_empty() {
        host.dispatch(None, &mut state)?;
    }
    host.handle().remove(token);
    Ok(())
}
