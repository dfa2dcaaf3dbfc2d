//! The programs in C that benchmarks and tests need, built by the machine's C compiler when they run. Knows no benchmark.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Where what is built goes: below `target`, so that nothing of it is taken for a source.
pub const BUILT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench");
pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches");

/// No libc, no more pages than it takes, nothing that the loader looks at.
const TINY: [&str; 13] = [
    "-O2",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pie",
    "-no-pie",
    "-fno-asynchronous-unwind-tables",
    "-s",
    "-Wl,--build-id=none",
    "-Wl,-z,noseparate-code",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,norelro",
];

/// The child that does nothing, or one thing.
pub fn tiny() -> Result<PathBuf, String> {
    compile(&TINY, "floor/tiny.c", "tiny", &[])
}

/// Where [`tiny`] puts it.
pub fn tiny_path() -> PathBuf {
    Path::new(BUILT).join("tiny")
}

pub fn floor() -> Result<PathBuf, String> {
    compile(&["-O2", "-pthread"], "floor/floor.c", "floor", &[])
}

/// Compiles it once in this process: its threads would otherwise write into one another's file.
pub fn compile(flags: &[&str], source: &str, name: &str, libraries: &[&str]) -> Result<PathBuf, String> {
    static COMPILED: Mutex<Option<HashMap<String, Result<PathBuf, String>>>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = compiled.get_or_insert_default().entry(name.to_owned());
    known.or_insert_with(|| compile_anew(flags, source, name, libraries)).clone()
}

fn compile_anew(flags: &[&str], source: &str, name: &str, libraries: &[&str]) -> Result<PathBuf, String> {
    std::fs::create_dir_all(BUILT).map_err(|e| format!("{BUILT}: {e}"))?;
    let (source, program) = (Path::new(SOURCES).join(source), Path::new(BUILT).join(name));
    // Moved into its place whole: another process may be running it.
    let fresh = Path::new(BUILT).join(format!("{name}.{}", std::process::id()));
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    run(Command::new(&compiler).args(flags).arg("-o").arg(&fresh).arg(source).args(libraries))?;
    std::fs::rename(&fresh, &program).map_err(|e| format!("{}: {e}", program.display()))?;
    Ok(program)
}

/// Runs a tool to its end; an error is what it said.
pub fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
