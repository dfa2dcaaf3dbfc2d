//! One context for a request: everything that was started for it ends with it, grandchildren included, whether the request is answered,
//! runs out of time, or the server shuts down.
//!
//! ```sh
//! cargo run --example request
//! ```

use std::time::Duration;

use pidloop::{Command, Context, Leftovers, Stdio};

/// Two programs work for a request; the answer is the first one's.
fn answer(server: &Context, name: &str, seconds: &str) -> pidloop::Result<String> {
    let request = server.with_timeout(Duration::from_secs(2));
    // However this function is left, nothing that it started stays.
    let _ended = request.drop_guard();
    let script = "sleep 60 >/dev/null & sleep $1; echo the answer to $0";
    let worker = Command::new("sh")
        .args(["-c", script, name, seconds])
        .stdout(Stdio::captured())
        .group()
        // It may end by itself and leave something behind: that ends, too.
        .group_leftovers(Leftovers::Kill)
        .context(&request)
        .spawn()?;
    let watcher = Command::new("sleep").arg("60").group().context(&request).spawn()?;
    println!("{name}: processes {} and {}", worker.id(), watcher.id());
    let output = worker.wait_with_output()?;
    request.cancel();
    println!("{name}: the watcher ended: {}", watcher.wait()?);
    output.exit().check()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn main() -> pidloop::Result<()> {
    let server = Context::new();
    for (name, seconds) in [("fast", "0"), ("slow", "60")] {
        match answer(&server, name, seconds) {
            Ok(text) => println!("{name}: {text}"),
            Err(error) => println!("{name}: {error}"),
        }
    }
    server.cancel();
    println!("late: {}", answer(&server, "late", "0").unwrap_err());
    Ok(())
}
