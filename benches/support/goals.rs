//! The project's goals, each a ratio within one run: its bound, its figure, and whether it is met.

use super::figures::Spread;

/// Closer than this to the bound is "at the goal".
const CLOSE: f64 = 0.03;

#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Debug)]
pub struct Goal {
    /// `P1` and so on.
    pub id: &'static str,
    pub text: String,
    pub bound: Bound,
    pub figure: Option<Spread>,
}

impl Goal {
    pub fn verdict(&self) -> &'static str {
        let Some(Spread { median, .. }) = self.figure else {
            return "not measured";
        };
        let (met, distance) = match self.bound {
            Bound::AtMost(bound) => (median <= bound, median / bound - 1.0),
            Bound::AtLeast(bound) => (median >= bound, 1.0 - median / bound),
        };
        if distance.abs() <= CLOSE {
            "at the goal"
        } else if met {
            "met"
        } else {
            "missed"
        }
    }

    fn parts(&self) -> (String, String) {
        let bound = match self.bound {
            Bound::AtMost(bound) => format!("at most {bound}"),
            Bound::AtLeast(bound) => format!("at least {bound}"),
        };
        (bound, self.figure.map_or("-".into(), |s| format!("{:.3} [{:.3} to {:.3}]", s.median, s.low, s.high)))
    }

    /// For people.
    pub fn line(&self) -> String {
        let (bound, figure) = self.parts();
        format!("{:<4} {:<74} {bound:<16} {figure:<28} {}", self.id, self.text, self.verdict())
    }

    /// Of a table in Markdown.
    pub fn row(&self) -> String {
        let (bound, figure) = self.parts();
        format!("| {} | {} | {bound} | {figure} | {} |", self.id, self.text, self.verdict())
    }
}
