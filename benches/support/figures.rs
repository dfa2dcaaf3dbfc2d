//! What comes out of a case: samples, their middle and spread, ratios pair by pair. Pure.

use std::collections::BTreeMap;

use super::subject::Answer;

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub samples: usize,
}

impl Spread {
    /// In another unit.
    pub fn scaled(self, by: f64) -> Spread {
        Spread { median: self.median * by, low: self.low * by, high: self.high * by, ..self }
    }

    /// Above what there is anyway.
    pub fn minus(self, base: f64) -> Spread {
        Spread { median: self.median - base, low: self.low - base, high: self.high - base, ..self }
    }

    pub fn of(mut samples: Vec<f64>) -> Option<Spread> {
        samples.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let place = (samples.len() - 1) as f64 * q;
            let (below, above) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        (!samples.is_empty()).then(|| Spread { median: at(0.5), low: at(0.25), high: at(0.75), samples: samples.len() })
    }
}

/// The samples of one entrant, by round.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// The figure of the case; `None` where it failed.
    pub figures: Vec<Option<f64>>,
    pub answers: Vec<Answer>,
}

impl Series {
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(self.figures.iter().flatten().copied().collect())
    }

    /// The median of another number of the answers.
    pub fn median_of(&self, key: &str) -> Option<f64> {
        let numbers = self.answers.iter().filter_map(|answer| answer.number(key)).collect();
        Spread::of(numbers).map(|spread| spread.median)
    }
}

/// The outcome of one case, by entrant.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub series: BTreeMap<String, Series>,
}

impl Figures {
    pub fn spread(&self, entrant: &str) -> Option<Spread> {
        self.series.get(entrant)?.spread()
    }

    /// Another number of an entrant's answers.
    pub fn of(&self, entrant: &str, key: &str) -> Option<Spread> {
        Spread::of(self.series.get(entrant)?.answers.iter().filter_map(|answer| answer.number(key)).collect())
    }

    /// `over / under`, of the two figures of each round.
    pub fn ratio(&self, over: &str, under: &str) -> Option<Spread> {
        self.ratio_of(over, under, |series, round| series.figures[round])
    }

    /// As [`Figures::ratio`], of another number of the answers.
    pub fn ratio_by(&self, key: &str, over: &str, under: &str) -> Option<Spread> {
        self.ratio_of(over, under, |series, round| series.answers.get(round)?.number(key))
    }

    /// Which of ours has the lower figure: each goal is for the fastest documented use.
    pub fn lower<'a>(&self, ours: &[&'a str]) -> &'a str {
        let median = |name: &&str| self.spread(name).map_or(f64::INFINITY, |spread| spread.median);
        ours.iter().copied().min_by(|a, b| median(a).total_cmp(&median(b))).unwrap_or_default()
    }

    /// Which of ours has the higher figure.
    pub fn higher<'a>(&self, ours: &[&'a str]) -> &'a str {
        let median = |name: &&str| self.spread(name).map_or(0.0, |spread| spread.median);
        ours.iter().copied().max_by(|a, b| median(a).total_cmp(&median(b))).unwrap_or_default()
    }

    fn ratio_of(&self, over: &str, under: &str, figure: impl Fn(&Series, usize) -> Option<f64>) -> Option<Spread> {
        let (over, under) = (self.series.get(over)?, self.series.get(under)?);
        let rounds = over.figures.len().min(under.figures.len());
        let ratios = (0..rounds).filter_map(|round| Some(figure(over, round)? / figure(under, round)?));
        Spread::of(ratios.filter(|ratio| ratio.is_finite()).collect())
    }
}
