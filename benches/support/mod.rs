//! What all benchmarks share: cases, whose entrants are measured in turn, round by round, and the report. Knows no question; each file
//! of `benches` asks one.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each benchmark uses a part of it")]

mod arguments;
mod calls;
mod cc;
mod contender;
mod figures;
pub mod flood;
mod goals;
mod report;
mod subject;
mod toolchain;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::exit;

use arguments::Arguments;
pub use figures::{Figures, Spread};
pub use goals::Bound::{AtLeast, AtMost};
use goals::{Bound, Goal};
use report::Report;
pub use subject::{Answer, Subject};
use toolchain::Programs;

/// Those who take part in most cases, in the order of the tables.
pub const ALL: [&str; 13] = [
    "floor",
    "pidloop",
    "pidloop-async",
    "pidloop-reactor",
    "std",
    "tokio-ct",
    "tokio-mt",
    "async-process",
    "subprocess",
    "duct",
    "go",
    "python",
    "libuv",
];
/// Without the two of ours that differ only where many are in flight.
pub const PEERS: [&str; 9] =
    ["std", "tokio-ct", "tokio-mt", "async-process", "subprocess", "duct", "go", "python", "libuv"];
const PAIRS: usize = 15;
const PAIRS_QUICK: usize = 5;

/// One who is measured in a case: a contender in a state.
#[derive(Clone, Debug)]
pub struct Entrant {
    pub label: String,
    contender: String,
    pinned: bool,
    /// Jobs that bring it into its state, once.
    prepare: Vec<String>,
    /// Jobs of each round; the figure is of the last one.
    pub jobs: Vec<String>,
}

impl Entrant {
    pub fn new(contender: &str, job: impl Into<String>) -> Entrant {
        Entrant {
            label: contender.to_owned(),
            contender: contender.to_owned(),
            pinned: false,
            prepare: Vec::new(),
            jobs: vec![job.into()],
        }
    }

    /// In a state that its label tells.
    pub fn after(mut self, what: &str, job: impl Into<String>) -> Entrant {
        self.label = format!("{}, {what}", self.label);
        self.prepare.push(job.into());
        self
    }

    pub fn then(mut self, job: impl Into<String>) -> Entrant {
        self.jobs.push(job.into());
        self
    }

    pub fn pinned(mut self) -> Entrant {
        self.pinned = true;
        self
    }

    pub fn called(mut self, label: impl Into<String>) -> Entrant {
        self.label = label.into();
        self
    }
}

/// What is measured of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Wall time over the number of children.
    MicrosPerChild,
    /// A number of nanoseconds of the answer.
    Micros(&'static str),
    /// Wall time in all.
    Millis,
    GigabytesPerSecond,
    /// A number of the answer as it is.
    Plain(&'static str, &'static str),
}

impl Unit {
    fn name(self) -> String {
        match self {
            Unit::MicrosPerChild => "us/child".into(),
            Unit::Micros(key) => format!("us, {key}"),
            Unit::Millis => "ms".into(),
            Unit::GigabytesPerSecond => "GB/s".into(),
            Unit::Plain(_, name) => name.into(),
        }
    }

    fn figure(self, answer: &Answer) -> Option<f64> {
        let number = |key| answer.number(key);
        match self {
            Unit::MicrosPerChild => Some(number("ns")? / number("n")?.max(1.0) / 1e3),
            Unit::Micros(key) => Some(number(key)? / 1e3),
            Unit::Millis => Some(number("ns")? / 1e6),
            Unit::GigabytesPerSecond => Some(number("bytes")? / number("ns")?),
            Unit::Plain(key, _) => number(key),
        }
    }
}

/// Entrants that are compared with each other.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub unit: Unit,
    /// Whom the ratios of the table are to.
    pub reference: String,
    pub entrants: Vec<Entrant>,
    /// Instead of the usual number.
    pub pairs: Option<usize>,
    /// More numbers of the answers, for a line below the table.
    pub also: Vec<&'static str>,
    /// Every entrant has the machine's memory and process numbers to itself: it is started for its turn, and ended.
    pub alone: bool,
}

impl Case {
    pub fn new(name: impl Into<String>, unit: Unit, reference: &str) -> Case {
        Case {
            name: name.into(),
            unit,
            reference: reference.to_owned(),
            entrants: Vec::new(),
            pairs: None,
            also: Vec::new(),
            alone: false,
        }
    }

    pub fn pairs(mut self, pairs: usize) -> Case {
        self.pairs = Some(pairs);
        self
    }

    pub fn also(mut self, keys: &[&'static str]) -> Case {
        self.also = keys.to_vec();
        self
    }

    pub fn with(mut self, entrants: impl IntoIterator<Item = Entrant>) -> Case {
        self.entrants.extend(entrants);
        self
    }

    /// The same job for each of these contenders.
    pub fn for_each(self, contenders: &[&str], job: &str) -> Case {
        let entrants: Vec<_> = contenders.iter().map(|name| Entrant::new(name, job)).collect();
        self.with(entrants)
    }

    pub fn pinned(mut self) -> Case {
        self.entrants = self.entrants.into_iter().map(Entrant::pinned).collect();
        self
    }

    pub fn alone(mut self) -> Case {
        self.alone = true;
        self
    }
}

/// One benchmark: its programs, its processes, what it has found.
pub struct Bench {
    name: &'static str,
    arguments: Arguments,
    programs: Programs,
    subjects: BTreeMap<String, Subject>,
    report: Report,
    goals: Vec<Goal>,
}

/// Runs a benchmark, or one of the contenders it starts.
pub fn run(name: &'static str, ask: fn(&mut Bench)) {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == "--worker").is_some() {
        let served = contender::serve_as(&words.next().unwrap_or_default());
        exit(served.map_or_else(
            |error| {
                eprintln!("{error}");
                1
            },
            |()| 0,
        ));
    }
    let arguments = Arguments::parse(words).unwrap_or_else(|why| {
        eprintln!("{why}");
        exit(2)
    });
    if !arguments.bench && !arguments.list {
        println!("a benchmark: cargo bench --bench {name}");
        return;
    }
    let result = Bench::new(name, arguments).map(|mut bench| {
        ask(&mut bench);
        bench.finish();
    });
    if let Err(why) = result {
        println!("skipped: {name}: {why}");
    }
}

impl Bench {
    fn new(name: &'static str, arguments: Arguments) -> Result<Bench, String> {
        if arguments.list {
            let report = Report::silent();
            return Ok(Bench {
                name,
                arguments,
                programs: Programs::default(),
                subjects: BTreeMap::new(),
                report,
                goals: vec![],
            });
        }
        raise_descriptor_limit();
        let programs = Programs::build()?;
        let mut report = Report::open(name, &arguments)?;
        let versions = programs.contenders.iter().filter_map(|(name, line)| {
            let about = Subject::start(line, false).and_then(|mut subject| subject.ask("about")).ok()?;
            Some((name.clone(), about.text("version")?.to_owned()))
        });
        report.header(versions.collect(), &programs.skipped);
        Ok(Bench { name, arguments, programs, subjects: BTreeMap::new(), report, goals: Vec::new() })
    }

    pub fn quick(&self) -> bool {
        self.arguments.quick
    }

    /// `full`, or `quick` in the quick mode.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick() { quick } else { full }
    }

    /// The child that does nothing.
    pub fn tiny(&self) -> String {
        self.programs.tiny.display().to_string()
    }

    /// A file for the children that write down the time.
    pub fn stamp_file(&self) -> String {
        let path = PathBuf::from(format!("/dev/shm/pidloop-bench-{}", std::process::id()));
        let _ = std::fs::write(&path, [0; 8]);
        path.display().to_string()
    }

    pub fn is_asked_for(&self, case: &str) -> bool {
        let words = &self.arguments.cases;
        words.is_empty() || words.iter().any(|word| case.contains(word.as_str()))
    }

    fn takes_part(&self, contender: &str) -> bool {
        let only = &self.arguments.only;
        self.programs.contenders.contains_key(contender)
            && (only.is_empty() || only.iter().any(|name| name == contender))
    }

    /// Measures a case; its figures are empty if it was not asked for.
    pub fn measure(&mut self, case: Case) -> Figures {
        self.measure_by(case, |subject, entrant, _| {
            let mut last = Answer::default();
            for job in &entrant.jobs {
                last = subject.ask(job)?;
            }
            Ok(last)
        })
    }

    /// As [`Bench::measure`], by something else than asking.
    pub fn measure_by(
        &mut self,
        case: Case,
        sample: impl Fn(&mut Subject, &Entrant, usize) -> Result<Answer, String>,
    ) -> Figures {
        if self.arguments.list {
            println!("{}", case.name);
        }
        if self.arguments.list || !self.is_asked_for(&case.name) {
            return Figures::default();
        }
        let mut entrants = case.entrants.clone();
        entrants.retain(|entrant| self.takes_part(&entrant.contender));
        let mut figures = Figures::default();
        let mut skipped = Vec::new();
        let pairs = self.arguments.pairs.or(case.pairs).unwrap_or(self.pick(PAIRS, PAIRS_QUICK));
        // Round 0 warms up, and shows who cannot take part.
        for round in 0..=pairs {
            // Forth and back, so that nobody always comes after the same one.
            let order: Vec<Entrant> =
                if round % 2 == 0 { entrants.clone() } else { entrants.iter().rev().cloned().collect() };
            for entrant in order {
                let result = self.subject(&entrant).and_then(|subject| sample(subject, &entrant, round));
                if case.alone || result.is_err() {
                    self.subjects.remove(&key(&entrant));
                }
                match result {
                    Err(why) if round == 0 => {
                        skipped.push(format!("{}: {why}", entrant.label));
                        entrants.retain(|other| other.label != entrant.label);
                    }
                    result if round > 0 => {
                        let series = figures.series.entry(entrant.label.clone()).or_default();
                        series.figures.push(result.as_ref().ok().and_then(|answer| case.unit.figure(answer)));
                        series.answers.push(result.unwrap_or_default());
                    }
                    _ => {}
                }
            }
        }
        self.report.case(&case, &figures, &skipped);
        figures
    }

    /// Counts the system calls that a child costs each of these contenders, with its own.
    pub fn count_calls(&mut self, name: &str, contenders: &[&str], job: &str) -> Figures {
        let lines = self.programs.contenders.clone();
        let case = Case::new(name, Unit::Plain("calls", "system calls/child"), "pidloop").for_each(contenders, job);
        // They do not scatter.
        self.measure_by(case.pairs(1), |_, entrant, _| {
            let mut answer = Answer::default();
            answer.set("calls", calls::per_child(&lines[&entrant.contender], job)?);
            Ok(answer)
        })
    }

    fn subject(&mut self, entrant: &Entrant) -> Result<&mut Subject, String> {
        let key = key(entrant);
        if !self.subjects.contains_key(&key) {
            let line = self.programs.contenders.get(&entrant.contender).ok_or("it is not here")?;
            let mut subject = Subject::start(line, entrant.pinned)?;
            for job in &entrant.prepare {
                subject.ask(job)?;
            }
            self.subjects.insert(key.clone(), subject);
        }
        self.subjects.get_mut(&key).ok_or_else(|| "it is not here".into())
    }

    /// Ends all processes: what the next case needs of the machine is free.
    pub fn release(&mut self) {
        self.subjects.clear();
    }

    pub fn goal(&mut self, id: &'static str, text: impl Into<String>, bound: Bound, figure: Option<Spread>) {
        let everything = self.arguments.cases.is_empty() && self.arguments.only.is_empty();
        if figure.is_none() && !everything {
            return;
        }
        self.goals.push(Goal { id, text: text.into(), bound, figure });
    }

    fn finish(mut self) {
        self.release();
        if !self.arguments.list {
            self.report.goals(&self.goals);
            let _ = std::fs::remove_file(self.stamp_file());
        }
    }
}

/// Entrants in the same state share a process.
fn key(entrant: &Entrant) -> String {
    format!("{} {} {:?}", entrant.contender, entrant.pinned, entrant.prepare)
}

/// For us and for those we start; Go does the same by itself.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// How many bytes of memory the machine has left.
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    line.unwrap_or(0) * 1024
}
