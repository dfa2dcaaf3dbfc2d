//! A pool: at most so many processes at a time, for a list of jobs of any length, from one thread. A job that takes too long is stopped;
//! one that fails says why.
//!
//! ```sh
//! cargo run --example pool
//! ```

use std::collections::HashMap;
use std::time::Duration;

use pidloop::{ChildId, Command, Ended, Limit, Reactor, Stdio};

const AT_A_TIME: usize = 4;

fn job(number: u32) -> Command {
    let script = match number % 10 {
        7 => "echo no luck >&2; exit 3",
        9 => "sleep 60",
        _ => "echo $(($0 * $0))",
    };
    let mut command = Command::new("sh");
    command
        .args(["-c", script, &number.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::captured_limited(Limit::head_tail(64 << 10, 64 << 10)))
        .stderr(Stdio::captured_limited(Limit::head_tail(0, 1000)))
        .group()
        .timeout(Duration::from_secs(3));
    command
}

fn report(number: u32, ended: Ended) {
    let (result, output) = (ended.exit().check(), ended.into_output());
    match result {
        Ok(()) => println!("{number}: {}", String::from_utf8_lossy(&output.stdout).trim_end()),
        Err(error) => println!("{error}: {}", String::from_utf8_lossy(&output.stderr).trim_end()),
    }
}

fn main() -> pidloop::Result<()> {
    let mut jobs = Reactor::new()?;
    let mut running: HashMap<ChildId, u32> = HashMap::new();
    let mut waiting = 1..=20;
    loop {
        while running.len() < AT_A_TIME {
            let Some(number) = waiting.next() else { break };
            running.insert(jobs.spawn(&job(number))?, number);
        }
        if running.is_empty() {
            return Ok(());
        }
        jobs.turn(None)?;
        while let Some(ended) = jobs.next_exit() {
            if let Some(number) = running.remove(&ended.id()) {
                report(number, ended);
            }
        }
    }
}
