//! The program `pidloop`: runs many commands in parallel, as `xargs -P` and GNU parallel do. A client of the library like any other.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
