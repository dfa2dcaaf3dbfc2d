//! The peers that are written in Rust, each as a contender of its own: `peers std`. Knows the worker's side of a benchmark.
#![allow(dead_code, unreachable_pub, reason = "shared with the benchmarks")]

mod async_process;
mod blocking;
mod options;
mod tokio;
#[path = "../../../support/worker.rs"]
mod worker;

use worker::serve;

fn main() -> std::io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("std") => serve(&blocking::Std),
        Some("subprocess") => serve(&blocking::Subprocess),
        Some("duct") => serve(&blocking::Duct),
        Some("tokio-ct") => serve(&tokio::Tokio::current_thread()?),
        Some("tokio-mt") => serve(&tokio::Tokio::multi_thread()?),
        Some("async-process") => serve(&async_process::AsyncProcess),
        other => panic!("no such peer: {other:?}"),
    }
}

/// The version that Cargo.lock has.
fn locked(package: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let version =
        lock.split(&format!("name = \"{package}\"\nversion = \"")).nth(1).and_then(|rest| rest.split('"').next());
    version.unwrap_or("unknown").to_owned()
}
