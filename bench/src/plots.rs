//! The report's plots, as SVG.

use std::path::Path;

use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 420);
/// Colours that can be told apart by most people (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(150, 150, 150),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
];

/// Values of one name: median, lowest, highest.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// The values by group; missing measurements are left out.
    pub(crate) values: Vec<Option<(f64, f64, f64)>>,
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Bars in groups, with the range of all runs as a line on each, on a logarithmic scale.
pub(crate) fn bars(path: &Path, title: &str, groups: &[String], series: &[Series]) -> Drawn {
    let values = || series.iter().flat_map(|one| one.values.iter().flatten());
    let top = values().map(|(_, _, high)| *high).fold(f64::MIN_POSITIVE, f64::max) * 1.5;
    let bottom =
        values().map(|(_, low, _)| *low).filter(|low| *low > 0.0).fold(top, f64::min) / 2.0;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..groups.len() as f64, (bottom..top).log_scale())?;
    let name = |x: &f64| {
        let group = groups.get(x.floor() as usize).filter(|_| (x.fract() - 0.5).abs() < 0.01);
        group.cloned().unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(groups.len() * 2 + 1)
        .x_label_formatter(&name)
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    let width = 0.9 / series.len().max(1) as f64;
    for (index, one) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let left = |group: usize| group as f64 + 0.05 + index as f64 * width;
        let present =
            one.values.iter().enumerate().filter_map(|(group, value)| Some((group, (*value)?)));
        let present: Vec<_> = present.collect();
        chart
            .draw_series(present.iter().map(|(group, (median, ..))| {
                Rectangle::new(
                    [(left(*group), bottom), (left(*group) + width * 0.9, *median)],
                    colour.filled(),
                )
            }))?
            .label(&one.name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
        chart.draw_series(present.iter().map(|(group, (_, low, high))| {
            let middle = left(*group) + width * 0.45;
            PathElement::new([(middle, low.max(bottom)), (middle, *high)], BLACK)
        }))?;
    }

    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Lines over a number that grows by factors of ten, on logarithmic scales.
pub(crate) fn lines(
    path: &Path,
    title: &str,
    what: &str,
    series: &[(String, Vec<(f64, f64)>)],
) -> Drawn {
    let points = || series.iter().flat_map(|(_, points)| points.iter());
    let right = points().map(|(x, _)| *x).fold(1.0, f64::max) * 1.2;
    let top = points().map(|(_, y)| *y).fold(1000.0, f64::max) * 2.0;
    let bottom = points().map(|(_, y)| *y).fold(top, f64::min) / 2.0;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((1.0..right).log_scale(), (bottom..top).log_scale())?;
    chart.configure_mesh().x_desc(what).y_desc("ns per event").draw()?;
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[(index + 2) % COLOURS.len()];
        chart
            .draw_series(
                LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3),
            )?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
    }

    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
