//! System calls per child, of a contender and its children, counted by strace: the one figure without noise. Knows strace's table.

use std::path::PathBuf;

use super::cc::BUILT;
use super::subject::Subject;

/// The difference between two runs is what the children cost.
const FEW: u64 = 10;
const MANY: u64 = 110;

/// # Errors
///
/// Where strace is not there, or may not trace.
pub fn per_child(line: &[String], job: &str) -> Result<f64, String> {
    let (few, many) = (count(line, job, FEW)?, count(line, job, MANY)?);
    Ok((many - few) / (MANY - FEW) as f64)
}

fn count(line: &[String], job: &str, n: u64) -> Result<f64, String> {
    let table = PathBuf::from(format!("{BUILT}/calls-{}", std::process::id()));
    let strace = ["strace", "-f", "-qq", "-c", "-o"].map(str::to_owned);
    let whole: Vec<String> = strace.into_iter().chain([table.display().to_string()]).chain(line.to_vec()).collect();
    let mut subject = Subject::start(&whole, false)?;
    subject.ask(&format!("{job} n={n}"))?;
    // It writes its table when the contender has ended.
    drop(subject);
    let text = std::fs::read_to_string(&table).map_err(|e| format!("strace: {e}"))?;
    let _ = std::fs::remove_file(&table);
    let calls = |line: &str| -> Option<f64> {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.last() != Some(&"total")).then(|| words.get(3)?.parse().ok()).flatten()
    };
    let all: Vec<f64> = text.lines().filter_map(calls).collect();
    if all.is_empty() {
        return Err(format!("strace said: {}", text.lines().next().unwrap_or("nothing")));
    }
    Ok(all.iter().sum())
}
