//! A plot of few points as SVG: along the bottom by magnitude, upwards from zero, two curves of
//! which each has its scale on its own side. Readable on light and on dark ground.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
/// Around the plot: beside it the scales, below it what the points are.
const SIDE: f64 = 70.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 50.0;
const STEPS: u32 = 4;

pub struct Curve<'a> {
    pub name: &'a str,
    pub color: &'a str,
    /// In the order of the plot's points.
    pub values: Vec<f64>,
}

pub fn svg(title: &str, points: &[(f64, String)], left: &Curve<'_>, right: &Curve<'_>) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>{title}</title>\n\
         <style>text{{fill:#555}}.axis{{stroke:#888;stroke-width:1}}.grid{{stroke:#8884;stroke-width:1}}\
         @media(prefers-color-scheme:dark){{text{{fill:#bbb}}}}</style>\n"
    );
    let (first, last) = (points[0].0.ln(), points[points.len() - 1].0.ln());
    let span = if last > first { last - first } else { 1.0 };
    let x = |at: f64| SIDE + 20.0 + (at.ln() - first) / span * (WIDTH - 2.0 * SIDE - 40.0);
    let floor = HEIGHT - BOTTOM;
    for (at, name) in points {
        let x = x(*at);
        writeln!(out, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>", floor + 20.0).unwrap();
    }
    for step in 0..=STEPS {
        let y = floor - (floor - TOP) * f64::from(step) / f64::from(STEPS);
        let class = if step == 0 { "axis" } else { "grid" };
        writeln!(out, "<path class=\"{class}\" d=\"M{SIDE} {y:.1}H{:.1}\"/>", WIDTH - SIDE).unwrap();
    }
    for (curve, edge, anchor) in [(left, SIDE - 8.0, "end"), (right, WIDTH - SIDE + 8.0, "start")] {
        let top = ceiling(curve.values.iter().copied().fold(0.0, f64::max));
        for step in 0..=STEPS {
            let part = f64::from(step) / f64::from(STEPS);
            let y = floor - (floor - TOP) * part + 4.0;
            let label = short(top * part);
            writeln!(out, "<text x=\"{edge}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>").unwrap();
        }
        let place = |(value, (at, _)): (&f64, &(f64, String))| (x(*at), floor - value / top * (floor - TOP));
        let places: Vec<(f64, f64)> = curve.values.iter().zip(points).map(place).collect();
        let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let color = curve.color;
        writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>", path.join("L")).unwrap();
        for (x, y) in places {
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{color}\"/>").unwrap();
        }
        let (at, name) = (if anchor == "end" { 8.0 } else { WIDTH - 8.0 }, curve.name);
        let anchor = if anchor == "end" { "start" } else { "end" };
        writeln!(out, "<text x=\"{at}\" y=\"16\" text-anchor=\"{anchor}\" style=\"fill:{color}\">{name}</text>")
            .unwrap();
    }
    writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{title}</text>\n</svg>", WIDTH / 2.0, HEIGHT - 8.0)
        .unwrap();
    out
}

/// The next number that divides well.
fn ceiling(value: f64) -> f64 {
    let unit = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().map(|times| times * unit).find(|top| *top >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", round(value / 1e6)),
        value if value >= 1e3 => format!("{}k", round(value / 1e3)),
        value => round(value),
    }
}

fn round(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}
