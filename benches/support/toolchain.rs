//! The programs that take part, each built by its own toolchain when the benchmark starts. What cannot be built is skipped, with a line.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where what is built goes: below `target`, so that nothing of it is taken for a source.
const BUILT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches");

/// No libc, no more pages than it takes, nothing that the loader looks at.
const TINY: &str = "-O2 -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie -fno-asynchronous-unwind-tables -s \
                    -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,max-page-size=4096 -Wl,-z,norelro";
const RUST_PEERS: [&str; 6] = ["std", "tokio-ct", "tokio-mt", "async-process", "subprocess", "duct"];

/// The command line of each contender, and what the machine lacks.
#[derive(Debug, Default)]
pub struct Programs {
    pub tiny: PathBuf,
    pub contenders: BTreeMap<String, Vec<String>>,
    pub skipped: Vec<String>,
}

impl Programs {
    /// # Errors
    ///
    /// Without the tiny child there is nothing to run.
    pub fn build() -> Result<Programs, String> {
        std::fs::create_dir_all(BUILT).map_err(|e| format!("{BUILT}: {e}"))?;
        let mut programs = Programs { tiny: built("tiny"), ..Programs::default() };
        let tiny: Vec<&str> = TINY.split_whitespace().collect();
        compile(&tiny, "floor/tiny.c", "tiny", &[]).map_err(|why| format!("the tiny child: {why}"))?;
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        for name in ["pidloop", "pidloop-wait", "pidloop-async", "pidloop-context", "pidloop-reactor"] {
            programs.add(name, vec![own.display().to_string(), "--worker".into(), name.into()]);
        }
        programs.add_built("floor", compile(&["-O2", "-pthread"], "floor/floor.c", "floor", &[]));
        programs.add_rust_peers();
        programs.add_built("go", build_go());
        programs.add_python();
        programs.add_built("libuv", compile(&["-O2", "-pthread"], "peers/libuv/peer.c", "libuv", &["-luv"]));
        Ok(programs)
    }

    fn add(&mut self, name: &str, line: Vec<String>) {
        self.contenders.insert(name.to_owned(), line);
    }

    fn add_built(&mut self, name: &str, result: Result<PathBuf, String>) {
        match result {
            Ok(path) => self.add(name, vec![path.display().to_string()]),
            Err(why) => self.skip(name, &why),
        }
    }

    fn skip(&mut self, name: &str, why: &str) {
        let last = why.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        self.skipped.push(format!("{name}: {last}"));
    }

    fn add_rust_peers(&mut self) {
        let manifest = format!("{SOURCES}/peers/rust/Cargo.toml");
        let target = built("peers");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo
            .args(["build", "--release", "--locked", "--quiet", "--manifest-path", &manifest, "--target-dir"])
            .arg(&target);
        match run(&mut cargo) {
            Ok(()) => {
                let peers = target.join("release/peers").display().to_string();
                RUST_PEERS.into_iter().for_each(|name| self.add(name, vec![peers.clone(), name.into()]));
            }
            Err(why) => RUST_PEERS.into_iter().for_each(|name| self.skip(name, &why)),
        }
    }

    fn add_python(&mut self) {
        match run(Command::new("python3").args(["-c", "import subprocess"])) {
            Ok(()) => self.add("python", vec!["python3".into(), format!("{SOURCES}/peers/python/peer.py")]),
            Err(why) => self.skip("python", &why),
        }
    }
}

fn built(name: &str) -> PathBuf {
    Path::new(BUILT).join(name)
}

/// With the C compiler, if the source or the header beside it is newer than the program.
fn compile(flags: &[&str], source: &str, name: &str, libraries: &[&str]) -> Result<PathBuf, String> {
    let source = Path::new(SOURCES).join(source);
    let program = built(name);
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    run(Command::new(&compiler).args(flags).arg("-o").arg(&program).arg(source).args(libraries))?;
    Ok(program)
}

fn build_go() -> Result<PathBuf, String> {
    let program = built("go");
    run(Command::new("go").current_dir(format!("{SOURCES}/peers/go")).args(["build", "-o"]).arg(&program).arg("."))?;
    Ok(program)
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// The first line that a program prints.
pub fn first_line(program: &str, args: &[impl AsRef<OsStr>]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
