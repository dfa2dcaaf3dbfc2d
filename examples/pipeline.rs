//! `a | b | c` with a deadline for all of it: what each command did, whoever of them is to blame.
//!
//! ```sh
//! cargo run --example pipeline -- src/lib.rs
//! ```

use std::time::Duration;

use pidloop::{Command, Pipefail, Pipeline, Stdio};

/// The words that a file has most of.
fn frequent_words(file: &str, deadline: Duration) -> pidloop::Result<Vec<u8>> {
    let mut words = Pipeline::new([
        Command::new("tr").args(["-cs", "A-Za-z", "\\n"]),
        &mut Command::new("sort"),
        Command::new("uniq").arg("-c"),
        Command::new("sort").args(["-rn"]),
        Command::new("head").args(["-n", "5"]),
    ]);
    let input = std::fs::File::open(file).map(Stdio::from);
    words.stdin(input.unwrap_or_else(|_| Stdio::null())).timeout(deadline).pipefail(Pipefail::ExceptSigpipe);
    let output = words.output()?;
    for (command, exit) in words.commands().iter().zip(output.exit().exits()) {
        println!("{command}: {exit} after {} us of CPU", exit.usage().map_or(0, |usage| usage.user_time.as_micros()));
    }
    output.exit().check()?;
    Ok(output.into_stdout())
}

fn main() -> pidloop::Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "/proc/self/status".into());
    print!("{}", String::from_utf8_lossy(&frequent_words(&file, Duration::from_secs(10))?));

    // A reader that never reads: the deadline ends the writer, too.
    let endless =
        Command::new("yes").pipe_to(Command::new("sleep").arg("60")).timeout(Duration::from_millis(200)).run();
    println!("{}", endless.unwrap_err());
    // A command that is not there: the one before it is gone when this returns.
    println!("{}", Command::new("yes").pipe_to(&Command::new("no-such-program")).run().unwrap_err());
    Ok(())
}
