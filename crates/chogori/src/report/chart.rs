//! Line charts as SVG without fixed colours or size: the page's style sheet gives both, in light and dark.

use anyhow::anyhow;
use plotters::prelude::*;

use super::series::{Points, thin};

/// What a line means; the style sheet knows the colour of each (`ink-1` and so on).
#[derive(Clone, Copy, PartialEq)]
pub enum Ink {
    /// The measured values, where a smoothed line stands before them.
    Faint = 3,
    /// The first thing to look at.
    Main = 4,
    /// The second.
    Second = 5,
    /// A limit.
    Limit = 6,
}

const LABELS: u8 = 1;
const GRID: u8 = 2;

/// Plotters writes colours as attributes; `#010101`, `#020202`, ... stand for the style sheet's.
fn placeholder(number: u8) -> RGBColor {
    RGBColor(number, number, number)
}

/// The CSS variable behind an ink.
pub fn variable(ink: Ink) -> String {
    format!("var(--ink-{})", ink as u8)
}

/// Rules that turn the placeholders into the variables `--ink-1` to `--ink-6`.
pub fn style() -> String {
    let rule = |n: u8| {
        let colour = format!("#{n:02X}{n:02X}{n:02X}");
        format!("svg [stroke=\"{colour}\"]{{stroke:var(--ink-{n})}}svg [fill=\"{colour}\"]{{fill:var(--ink-{n})}}")
    };
    (1..=6).map(rule).collect()
}

/// One line, or dots where `dots` says so.
pub struct Line {
    /// For the legend.
    pub label: String,
    /// Its meaning.
    pub ink: Ink,
    /// (step, value)
    pub points: Points,
    /// Whether each point was measured on its own and gets a dot.
    pub dots: bool,
}

impl Line {
    /// A plain line of at most 600 points.
    pub fn new(label: &str, ink: Ink, points: &[(f64, f64)]) -> Self {
        Line { label: label.into(), ink, points: thin(points, 600), dots: false }
    }

    /// With a dot at each point.
    pub fn dotted(self) -> Self {
        Line { dots: true, ..self }
    }
}

/// Lines over steps.
pub struct Chart {
    /// Drawn in this order.
    pub lines: Vec<Line>,
    /// Whether the vertical axis begins at 0.
    pub from_zero: bool,
    /// The horizontal axis ends here.
    pub last_step: f64,
    /// How values are written at the axis.
    pub format: fn(f64) -> String,
}

// Plotters places things at whole pixels, so it draws four times as large as a phone shows it.
const SIZE: (u32, u32) = (1680, 960);
const FONT: f64 = 60.0;

impl Chart {
    /// The chart as an `<svg>` element.
    pub fn svg(&self) -> anyhow::Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| anyhow!("cannot draw a chart: {error}"))?;
        // Only the view box stays: the page decides the width.
        let size = format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1);
        Ok(svg.replacen(&size, "", 1))
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let (low, high) = self.range();
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .margin_top(32)
            .margin_right(40)
            .x_label_area_size(92)
            .y_label_area_size(200)
            .build_cartesian_2d(0.0..self.last_step.max(1.0), low..high)?;
        let labels = ("sans-serif", FONT).into_font().color(&placeholder(LABELS));
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(6)
            .y_labels(6)
            .light_line_style(TRANSPARENT)
            .bold_line_style(placeholder(GRID).stroke_width(3))
            .axis_style(placeholder(GRID).stroke_width(3))
            .set_all_tick_mark_size(14)
            .label_style(labels)
            .x_label_formatter(&|step| count(*step))
            .y_label_formatter(&|value| (self.format)(*value))
            .draw()?;
        for line in &self.lines {
            let width = if line.ink == Ink::Faint { 3 } else { 7 };
            let colour = placeholder(line.ink as u8);
            chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(width)))?;
            if line.dots {
                chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 11, colour.filled())))?;
            }
        }
        root.present()?;
        Ok(())
    }

    /// The vertical range: all values, and a little air.
    fn range(&self) -> (f64, f64) {
        let values = self.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let low = if self.from_zero || low > high { low.min(0.0) } else { low };
        let high = high.max(low);
        let air = if high > low { 0.06 * (high - low) } else { 0.5 };
        (if self.from_zero { low } else { low - air }, high + air)
    }
}

/// A count in few letters: 950, 12k, 1.5M, 15.5T.
pub fn count(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        x if x >= 1e12 => (value / 1e12, "T"),
        x if x >= 1e9 => (value / 1e9, "B"),
        x if x >= 1e6 => (value / 1e6, "M"),
        x if x >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    format!("{}{unit}", plain(scaled))
}

/// Three significant digits, without zeros at the end.
pub fn plain(value: f64) -> String {
    let digits_before = if value.abs() < 1.0 { 0.0 } else { value.abs().log10().floor() };
    let decimals = (2.0 - digits_before).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A rate such as 2e-4.
pub fn rate(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{:.2e}", value).replace(".00e", "e").replace("0e", "e") }
}
