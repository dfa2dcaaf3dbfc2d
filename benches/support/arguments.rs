//! The command line of a benchmark: `cargo bench --bench spawn -- --quick tiny/64`.

use std::path::PathBuf;

const USAGE: &str =
    "usage: cargo bench --bench NAME -- [--quick] [--pairs N] [--only CONTENDER,…] [--json FILE] [--markdown FILE] [--list] [CASE…]

  --quick       fewer pairs and smaller loads: under a minute
  --pairs N     interleaved rounds of each case (full: 15, quick: 5)
  --only A,B    these contenders alone
  --json FILE   appends the figures as JSON lines
  --markdown FILE
                appends the tables as Markdown
  --list        the names of the cases
  CASE          cases whose name contains one of these";

#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub quick: bool,
    pub pairs: Option<usize>,
    pub only: Vec<String>,
    pub json: Option<PathBuf>,
    pub markdown: Option<PathBuf>,
    pub list: bool,
    pub cases: Vec<String>,
    /// Given by `cargo bench`, not by `cargo test`.
    pub bench: bool,
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut parsed = Arguments::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value\n\n{USAGE}"));
            match word.as_str() {
                "--quick" => parsed.quick = true,
                "--pairs" => parsed.pairs = Some(value()?.parse().map_err(|e| format!("--pairs: {e}"))?),
                "--only" => parsed.only = value()?.split(',').map(str::to_owned).collect(),
                "--json" => parsed.json = Some(value()?.into()),
                "--markdown" => parsed.markdown = Some(value()?.into()),
                "--list" => parsed.list = true,
                "--bench" => parsed.bench = true,
                "--help" | "-h" => return Err(USAGE.into()),
                flag if flag.starts_with('-') => return Err(format!("unknown: {flag}\n\n{USAGE}")),
                _ => parsed.cases.push(word),
            }
        }
        Ok(parsed)
    }
}
