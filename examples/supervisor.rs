//! A supervisor: keeps a program running, starts it again when it fails, with growing pauses; on SIGTERM or Ctrl-C asks it to end, asks
//! again, and kills it.
//!
//! ```sh
//! cargo run --example supervisor -- sh -c 'sleep 1; exit 1'
//! ```

use std::time::Duration;

use pidloop::{Cancel, Command, Context, Signal, Step};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A run of this length was no failure to start.
const HEALTHY: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let program = args.next().ok_or("usage: supervisor COMMAND [ARGUMENT]...")?;
    let stop = Context::on_signal(&[Signal::SIGTERM, Signal::SIGINT])?;
    let mut command = Command::new(program);
    command
        .args(args)
        .group()
        .context(&stop)
        // After the last step SIGKILL, always.
        .cancel(Cancel::Steps(vec![
            (Step::Signal(Signal::SIGTERM), Duration::from_secs(5)),
            (Step::Signal(Signal::SIGTERM), Duration::from_secs(2)),
        ]));
    let mut pause = PAUSE_MIN;
    while !stop.is_cancelled() {
        // The description can be spawned again and again.
        let exit = command.spawn()?.wait()?;
        if let Some(cause) = exit.cause() {
            eprintln!("ended: {exit} ({cause})");
            break;
        }
        if exit.success() {
            eprintln!("ended by itself");
            break;
        }
        pause = if exit.elapsed() > HEALTHY { PAUSE_MIN } else { PAUSE_MAX.min(pause * 2) };
        eprintln!("failed: {exit}; again in {pause:?}");
        sleep_unless(&stop, pause);
    }
    Ok(())
}

/// Sleeps, but not through a stop.
fn sleep_unless(stop: &Context, pause: Duration) {
    let (woken, wake) = std::sync::mpsc::channel();
    let mut call = stop.after_cancel(move || woken.send(()).unwrap_or_default());
    let _ = wake.recv_timeout(pause);
    call.stop();
}
