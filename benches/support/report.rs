//! The report: a text for people, JSON lines for programs. Knows figures, not how they came about.

use std::fs::File;
use std::io::Write;

use serde_json::json;

use super::Case;
use super::arguments::Arguments;
use super::figures::{Figures, Spread};
use super::goals::Goal;
use super::toolchain::first_line;

pub struct Report {
    bench: &'static str,
    quick: bool,
    json: Option<File>,
    markdown: Option<File>,
    silent: bool,
}

impl Report {
    pub fn silent() -> Report {
        Report { bench: "", quick: false, json: None, markdown: None, silent: true }
    }

    pub fn open(bench: &'static str, arguments: &Arguments) -> Result<Report, String> {
        let open = |path| File::options().append(true).create(true).open(path);
        let json = arguments.json.as_ref().map(open).transpose().map_err(|e| format!("--json: {e}"))?;
        let markdown = arguments.markdown.as_ref().map(open).transpose().map_err(|e| format!("--markdown: {e}"))?;
        Ok(Report { bench, quick: arguments.quick, json, markdown, silent: false })
    }

    /// The command that measures this case again.
    fn repeat(&self, case: &str) -> String {
        let quick = if self.quick { "--quick " } else { "" };
        format!("cargo bench --bench {} -- {quick}{case}", self.bench)
    }

    fn write_json(&mut self, value: serde_json::Value) {
        if let Some(file) = &mut self.json {
            if let Err(error) = writeln!(file, "{value}") {
                println!("the JSON file: {error}");
            }
        }
    }

    fn write_markdown(&mut self, line: String) {
        if let Some(file) = &mut self.markdown {
            if let Err(error) = writeln!(file, "{line}") {
                println!("the Markdown file: {error}");
            }
        }
    }

    pub fn header(&mut self, versions: Vec<(String, String)>, skipped: &[String]) {
        let (machine, kernel) = (machine(), first_line("uname", &["-srm"]));
        let rustc = first_line("rustc", &["--version"]);
        let load = load_average();
        println!("{}, {} mode", self.bench, if self.quick { "quick" } else { "full" });
        println!("machine   {machine}");
        println!("kernel    {kernel}");
        println!("compiler  {rustc}");
        println!("load      {load} before");
        let list: Vec<String> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        println!("versions  {}", list.join(", "));
        for line in skipped {
            println!("skipped   {line}");
        }
        let versions: serde_json::Map<_, _> = versions.into_iter().map(|(n, v)| (n, v.into())).collect();
        self.write_json(json!({
            "bench": self.bench, "quick": self.quick, "machine": machine, "kernel": kernel, "compiler": rustc,
            "load": load, "versions": versions, "skipped": skipped,
        }));
    }

    pub fn case(&mut self, case: &Case, figures: &Figures, skipped: &[String]) {
        let pairs = figures.series.values().map(|series| series.figures.len()).max().unwrap_or(0);
        println!("\n{}/{}   {}, {pairs} rounds   {}", self.bench, case.name, case.unit.name(), self.repeat(&case.name));
        let width = case.entrants.iter().map(|e| e.label.len()).max().unwrap_or(0).max(10);
        println!(
            "  {:<width$} {:>9} {:>19} {:>9} {:>9} {:>9}   x {}",
            "", "median", "quartiles", "cpu us", "p50 us", "p99 us", case.reference
        );
        let title = format!("`{}/{}`, {}, {pairs} rounds", self.bench, case.name, case.unit.name());
        self.write_markdown(format!("\n{title}: `{}`\n", self.repeat(&case.name)));
        self.write_markdown(format!("| | median | quartiles | over {} |\n|---|---|---|---|", case.reference));
        for entrant in &case.entrants {
            let Some(series) = figures.series.get(&entrant.label) else {
                continue;
            };
            let Some(spread) = series.spread() else {
                continue;
            };
            let ratio = figures.ratio(&entrant.label, &case.reference);
            let cpu = series.median_of("cpu").zip(series.median_of("n")).map(|(cpu, n)| cpu / n);
            println!(
                "  {:<width$} {:>9} {:>19} {:>9} {:>9} {:>9}   {}",
                entrant.label,
                short(spread.median),
                format!("{} to {}", short(spread.low), short(spread.high)),
                micros(cpu),
                micros(series.median_of("p50")),
                micros(series.median_of("p99")),
                ratio.map_or(String::new(), |r| format!("{:.3} [{:.3} to {:.3}]", r.median, r.low, r.high)),
            );
            self.write_markdown(format!(
                "| {} | {} | {} to {} | {} |",
                entrant.label,
                short(spread.median),
                short(spread.low),
                short(spread.high),
                ratio.map_or("-".into(), |r| format!("{:.2} ({:.2} to {:.2})", r.median, r.low, r.high)),
            ));
            let also: serde_json::Map<_, _> =
                case.also.iter().filter_map(|key| Some(((*key).to_owned(), series.median_of(key)?.into()))).collect();
            if !also.is_empty() {
                let pairs: Vec<String> = also.iter().map(|(key, value)| format!("{key} {value}")).collect();
                println!("  {:<width$} {}", "", pairs.join(", "));
            }
            let samples: Vec<_> = series.figures.iter().flatten().collect();
            self.write_json(json!({
                "bench": self.bench, "case": case.name, "entrant": entrant.label, "unit": case.unit.name(),
                "figure": spread_json(Some(spread)), "samples": samples, "reference": case.reference,
                "ratio": spread_json(ratio), "cpu_us": cpu.map(|ns| ns / 1e3),
                "p50_us": series.median_of("p50").map(|ns| ns / 1e3), "p99_us": series.median_of("p99").map(|ns| ns / 1e3),
                "also": also,
                "repeat": self.repeat(&case.name),
            }));
        }
        for line in skipped {
            println!("  skipped: {line}");
            self.write_json(json!({ "bench": self.bench, "case": case.name, "skipped": line }));
        }
        let _ = std::io::stdout().flush();
    }

    pub fn goals(&mut self, goals: &[Goal]) {
        if self.silent || goals.is_empty() {
            return;
        }
        self.write_markdown("\n| | goal | bound | figure | |\n|---|---|---|---|---|".into());
        println!("\ngoals{}", if self.quick { "   (of the quick mode: a hint, no verdict)" } else { "" });
        for goal in goals {
            println!("  {}", goal.line());
            self.write_markdown(goal.row());
            self.write_json(json!({
                "bench": self.bench, "goal": goal.id, "text": goal.text, "bound": format!("{:?}", goal.bound),
                "figure": spread_json(goal.figure), "verdict": goal.verdict(),
            }));
        }
        println!("load      {} after", load_average());
    }
}

fn spread_json(spread: Option<Spread>) -> serde_json::Value {
    spread.map_or(
        serde_json::Value::Null,
        |s| json!({ "median": s.median, "low": s.low, "high": s.high, "samples": s.samples }),
    )
}

/// Three digits are more than the noise allows.
fn short(figure: f64) -> String {
    match figure.abs() {
        f if f >= 1000.0 => format!("{figure:.0}"),
        f if f >= 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// Of nanoseconds.
fn micros(ns: Option<f64>) -> String {
    ns.map_or("-".into(), |ns| short(ns / 1e3))
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, m)| m);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    format!("{cpus} x {model}, {} GiB", kib.unwrap_or(0) >> 20)
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
