//! Lines over epochs or over values of C, and the diagram of a calibration, as SVG inside the page.

use std::fmt::Write;

use super::page::escape;
use crate::history::EpochScalars;
use crate::metrics::{N_BINS, Reliability};

/// One diagram.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What it is called.
    pub title: String,
    /// What goes to the right.
    pub x_label: String,
    /// How it goes there.
    pub x_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
    /// A place on the x axis that was chosen: the best epoch, the value of C.
    pub mark: Option<f64>,
}

/// One line; points that are not finite are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By powers of ten; points at or below zero are left out.
    Log,
}

/// A chart for each group of scalars, with a line for each of the group: of `loss/train` and `loss/val`, one called `loss`
/// with two lines. `mark` is the epoch whose weights were kept.
pub fn charts_of_history(epochs: &[EpochScalars], mark: Option<u64>) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for epoch in epochs {
        for (name, value) in &epoch.scalars {
            let (title, line) = name.split_once('/').unwrap_or((name, name));
            let at = charts.iter().position(|chart| chart.title == title);
            let at = at.unwrap_or_else(|| {
                charts.push(Chart {
                    title: title.to_owned(),
                    x_label: "epoch".to_owned(),
                    x_scale: Scale::Linear,
                    series: Vec::new(),
                    mark: mark.map(|epoch| epoch as f64),
                });
                charts.len() - 1
            });
            let series = &mut charts[at].series;
            let at = series.iter().position(|series| series.name == line);
            let at = at.unwrap_or_else(|| {
                series.push(Series {
                    name: line.to_owned(),
                    points: Vec::new(),
                });
                series.len() - 1
            });
            series[at].points.push((epoch.epoch as f64, *value));
        }
    }
    charts
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 42.0;
/// Colours of lines in the page's style.
const N_COLOURS: usize = 6;
/// Points of a line up to which each has a dot that shows its value.
const MAX_DOTS: usize = 80;

/// An axis: values to places.
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// An axis over all values, with a little room where they are one.
    fn over(values: impl Iterator<Item = f64>, scale: Scale, start: f64, end: f64) -> Axis {
        let measured = values
            .map(|value| Axis::measure(scale, value))
            .filter(|value| value.is_finite());
        let (from, to) = measured.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), value| {
            (from.min(value), to.max(value))
        });
        let (from, to) = match (from, to) {
            (from, to) if from > to => (0.0, 1.0),
            (from, to) if from == to => {
                let room = if from == 0.0 { 1.0 } else { from.abs() * 0.1 };
                (from - room, to + room)
            }
            range => range,
        };
        Axis {
            scale,
            from,
            to,
            start,
            end,
        }
    }

    fn measure(scale: Scale, value: f64) -> f64 {
        match scale {
            Scale::Linear => value,
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => f64::NAN,
        }
    }

    /// Where a value lies; not finite where it has no place.
    fn place(&self, value: f64) -> f64 {
        let share = (Axis::measure(self.scale, value) - self.from) / (self.to - self.from);
        self.start + share * (self.end - self.start)
    }

    /// Round values inside the axis, with their texts.
    fn ticks(&self) -> Vec<(f64, String)> {
        const N_TICKS: f64 = 6.0;
        let rough = (self.to - self.from) / N_TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let mut step = steps
            .into_iter()
            .find(|step| *step >= rough * (1.0 - 1e-9))
            .unwrap_or(power);
        if self.scale == Scale::Log {
            // Whole powers of ten only.
            step = step.ceil();
        }
        let slack = step * 1e-9;
        let (first, last) = (
            ((self.from - slack) / step).ceil(),
            ((self.to + slack) / step).floor(),
        );
        // Both are small: at most as many steps as there are ticks.
        (first as i64..=last as i64)
            .map(|at| at as f64 * step)
            .map(|value| match self.scale {
                Scale::Log => (10f64.powf(value), format!("1e{value}")),
                Scale::Linear => (value, tick_text(value, step)),
            })
            .collect()
    }
}

/// A round value with as many decimals as its step needs.
fn tick_text(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    match decimals {
        0..=4 if value.abs() < 1e6 => format!("{value:.decimals$}"),
        _ if value == 0.0 => "0".to_owned(),
        _ => format!("{value:.1e}"),
    }
}

impl Chart {
    /// The diagram as an `svg` element.
    pub(super) fn svg(&self) -> String {
        let points = || {
            self.series
                .iter()
                .flat_map(|series| series.points.iter().copied())
        };
        let finite = || points().filter(|(x, y)| x.is_finite() && y.is_finite());
        let x_axis = Axis::over(finite().map(|(x, _)| x), self.x_scale, LEFT, WIDTH - RIGHT);
        let y_axis = Axis::over(finite().map(|(_, y)| y), Scale::Linear, HEIGHT - BOTTOM, TOP);
        let mut svg = frame(&self.title);
        grid(&mut svg, &x_axis, &y_axis, &self.x_label);
        if let Some(mark) = self
            .mark
            .map(|mark| x_axis.place(mark))
            .filter(|at| at.is_finite())
        {
            let (bottom, top) = (HEIGHT - BOTTOM, TOP);
            let _ = write!(
                svg,
                "<line class=\"axis\" stroke-dasharray=\"4 3\" x1=\"{mark:.1}\" x2=\"{mark:.1}\" y1=\"{bottom}\" y2=\"{top}\"/>"
            );
        }
        for (at, series) in self.series.iter().enumerate() {
            let colour = at % N_COLOURS;
            let placed = series
                .points
                .iter()
                .map(|&(x, y)| (x_axis.place(x), y_axis.place(y), x, y));
            let placed: Vec<_> = placed
                .filter(|(x, y, ..)| x.is_finite() && y.is_finite())
                .collect();
            let line: Vec<String> = placed.iter().map(|(x, y, ..)| format!("{x:.1},{y:.1}")).collect();
            let _ = write!(
                svg,
                "<polyline fill=\"none\" stroke=\"var(--c{colour})\" stroke-width=\"1.8\" points=\"{}\"/>",
                line.join(" ")
            );
            if placed.len() <= MAX_DOTS {
                let name = escape(&series.name);
                for (px, py, x, y) in &placed {
                    let _ = write!(
                        svg,
                        "<circle fill=\"var(--c{colour})\" r=\"2.4\" cx=\"{px:.1}\" cy=\"{py:.1}\"><title>{name}: {} at {}</title></circle>",
                        figure(*y),
                        figure(*x)
                    );
                }
            }
        }
        if self.series.len() > 1 {
            legend(&mut svg, self.series.iter().map(|series| series.name.as_str()));
        }
        svg.push_str("</svg>");
        svg
    }
}

/// A bar for each bin, and the line where they would end.
pub(super) fn reliability(reliability: &Reliability) -> String {
    let all = || [0.0, 1.0].into_iter();
    let side = HEIGHT - BOTTOM - TOP;
    let x_axis = Axis::over(all(), Scale::Linear, LEFT, LEFT + 1.6 * side);
    let y_axis = Axis::over(all(), Scale::Linear, HEIGHT - BOTTOM, TOP);
    let mut svg = frame("calibration");
    grid(&mut svg, &x_axis, &y_axis, "probability");
    let n: usize = reliability.bins.iter().map(|bin| bin.n).sum();
    for (at, bin) in reliability.bins.iter().enumerate().filter(|(_, bin)| bin.n > 0) {
        let edge = |at: usize| x_axis.place(at as f64 / N_BINS as f64);
        let (left, right) = (edge(at), edge(at + 1));
        let (top, bottom) = (y_axis.place(bin.accuracy), y_axis.place(0.0));
        // Bins of few rows are pale: their bars say little.
        let opacity = 0.3 + 0.7 * (bin.n as f64 / n as f64 * N_BINS as f64).min(1.0);
        let _ = write!(
            svg,
            "<rect fill=\"var(--c0)\" opacity=\"{opacity:.2}\" x=\"{:.1}\" width=\"{:.1}\" y=\"{top:.1}\" height=\"{:.1}\"><title>{} rows: sure to {:.1} %, right in {:.1} %</title></rect>",
            left + 1.0,
            right - left - 2.0,
            bottom - top,
            bin.n,
            bin.confidence * 100.0,
            bin.accuracy * 100.0
        );
    }
    let (x0, x1) = (x_axis.place(0.0), x_axis.place(1.0));
    let (y0, y1) = (y_axis.place(0.0), y_axis.place(1.0));
    let _ = write!(
        svg,
        "<line stroke=\"var(--c1)\" stroke-width=\"1.5\" x1=\"{x0}\" y1=\"{y0}\" x2=\"{x1}\" y2=\"{y1}\"/></svg>"
    );
    svg
}

fn frame(title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\"><title>{}</title>",
        escape(title)
    )
}

fn grid(svg: &mut String, x_axis: &Axis, y_axis: &Axis, x_label: &str) {
    let (left, right) = (x_axis.start, x_axis.end);
    let (bottom, top) = (y_axis.start, y_axis.end);
    for (value, text) in y_axis.ticks() {
        let y = y_axis.place(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            left - 6.0,
            y + 4.0
        );
    }
    for (value, text) in x_axis.ticks() {
        let x = x_axis.place(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{top}\"/>\
             <text text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{text}</text>",
            bottom + 16.0
        );
    }
    let _ = write!(
        svg,
        "<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{bottom}H{right}\"/>\
         <text text-anchor=\"end\" x=\"{right}\" y=\"{:.1}\">{}</text>",
        bottom + 33.0,
        escape(x_label)
    );
}

fn legend<'n>(svg: &mut String, names: impl Iterator<Item = &'n str>) {
    /// Of an average letter, at the size of the text.
    const LETTER: f64 = 6.6;
    let mut x = LEFT;
    for (at, name) in names.enumerate() {
        let colour = at % N_COLOURS;
        let _ = write!(
            svg,
            "<rect fill=\"var(--c{colour})\" x=\"{x:.1}\" y=\"10\" width=\"14\" height=\"3\"/><text x=\"{:.1}\" y=\"15\">{}</text>",
            x + 19.0,
            escape(name)
        );
        x += 36.0 + LETTER * name.chars().count() as f64;
    }
}

/// Up to five significant digits.
fn figure(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-3..1e6).contains(&size) {
        let decimals = (4.0 - size.max(1e-3).log10().floor()).clamp(0.0, 7.0) as usize;
        let text = format!("{value:.decimals$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            false => text,
        }
    } else {
        format!("{value:.4e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(from: f64, to: f64, scale: Scale) -> Vec<String> {
        let axis = Axis::over([from, to].into_iter(), scale, 0.0, 1.0);
        axis.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            axis(0.0, 1.0, Scale::Linear),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(axis(1.0, 25.0, Scale::Linear), ["5", "10", "15", "20", "25"]);
        assert_eq!(
            axis(1e-6, 1e5, Scale::Log),
            ["1e-6", "1e-4", "1e-2", "1e0", "1e2", "1e4"]
        );
        assert_eq!(
            axis(0.031, 0.034, Scale::Linear),
            [
                "0.0310", "0.0315", "0.0320", "0.0325", "0.0330", "0.0335", "0.0340"
            ]
        );
        assert!(!axis(3.0, 3.0, Scale::Linear).is_empty());
        assert!(axis(0.0, 1e9, Scale::Linear).len() < 9);
        assert!(!axis(f64::NAN, f64::NAN, Scale::Linear).is_empty());
    }

    #[test]
    fn figures_are_short() {
        let figures = [0.0, 1.0, 0.43125, 1e-4, 123_456.7, -2.5].map(figure);
        assert_eq!(figures, ["0", "1", "0.43125", "1.0000e-4", "123457", "-2.5"]);
    }

    #[test]
    fn groups_of_scalars_are_charts() {
        let epochs: Vec<EpochScalars> = (1..=3)
            .map(|epoch| EpochScalars {
                epoch,
                scalars: vec![
                    ("loss/train".into(), 1.0 / epoch as f64),
                    ("loss/val".into(), f64::NAN),
                    ("lr".into(), 0.1),
                ],
            })
            .collect();
        let charts = charts_of_history(&epochs, Some(2));
        let titles: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["loss", "lr"]);
        assert_eq!(charts[0].series.len(), 2);
        assert_eq!(charts[0].series[0].points[2], (3.0, 1.0 / 3.0));
        let svg = charts[0].svg();
        assert_eq!(
            svg.matches("<circle").count(),
            3,
            "what is not finite has no place"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
