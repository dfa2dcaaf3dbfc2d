//! The programs that take part, each built by its own toolchain when the benchmark starts. What cannot be built is skipped, with a line.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cc::{self, BUILT, SOURCES, compile, run};

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
        let tiny = cc::tiny().map_err(|why| format!("the tiny child: {why}"))?;
        let mut programs = Programs { tiny, ..Programs::default() };
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        for name in ["pidloop", "pidloop-wait", "pidloop-async", "pidloop-context", "pidloop-reactor", "pidloop-nested"]
        {
            programs.add(name, vec![own.display().to_string(), "--worker".into(), name.into()]);
        }
        programs.add_built("floor", cc::floor());
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

fn build_go() -> Result<PathBuf, String> {
    let program = built("go");
    run(Command::new("go").current_dir(format!("{SOURCES}/peers/go")).args(["build", "-o"]).arg(&program).arg("."))?;
    Ok(program)
}

/// The first line that a program prints.
pub fn first_line(program: &str, args: &[impl AsRef<OsStr>]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
