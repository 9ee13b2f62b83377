//! The page: a summary, then each question that a training run raises, with its plot.

use std::fmt::Write;

use train::recipe::Pretrain;

use super::chart::{self, Chart, Ink, Line, count, plain, rate};
use super::heat::{DIVERGING, Heat, RISING};
use super::series::{Series, smooth};

/// What a page is made of.
pub struct Page<'a> {
    /// The run's name.
    pub name: &'a str,
    /// Its metrics.
    pub series: &'a Series,
    /// Its recipe, if it can be read.
    pub recipe: Option<&'a Pretrain>,
    /// The text of the recipe.
    pub resolved: &'a str,
    /// Name and text of each sample.
    pub samples: Vec<(String, String)>,
}

impl Page<'_> {
    /// The whole document.
    pub fn html(&self) -> anyhow::Result<String> {
        let name = escape(self.name);
        let sections = [
            self.summary(),
            self.loss()?,
            self.pace()?,
            self.logits()?,
            self.balance()?,
            self.sample_texts(),
            self.recipe_text(),
        ];
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{name} · Chogori</title><style>{}{}</style></head><body><main>\n\
             <header><p class=\"kicker\">Chogori run</p><h1>{name}</h1></header>\n{}</main></body></html>\n",
            include_str!("page.css"),
            chart::style(),
            sections.concat()
        ))
    }

    fn summary(&self) -> String {
        let series = self.series;
        let mut tiles = String::new();
        let mut tile = |title: &str, value: Option<String>, note: String| {
            if let Some(value) = value {
                let _ = write!(tiles, "<div><dt>{title}</dt><dd>{}</dd><small>{}</small></div>", value, escape(&note));
            }
        };
        let last = |key: &str| series.last(key);
        let noted = |parts: &[(&str, Option<f64>)]| {
            let known = parts.iter().filter_map(|(name, value)| Some(format!("{name} {}", plain((*value)?))));
            known.collect::<Vec<_>>().join(" · ")
        };
        let baselines = [("gzip -9", last("bits_per_byte_gzip")), ("4-gram", last("bits_per_byte_4gram"))];
        tile("Held-out bits per byte", last("held_out_bits_per_byte").map(|x| format!("{x:.3}")), noted(&baselines));
        let losses = series.of("loss");
        let newest: Vec<f64> = losses.iter().rev().take(20).map(|(_, loss)| *loss).collect();
        let loss = (!newest.is_empty()).then(|| format!("{:.3}", newest.iter().sum::<f64>() / newest.len() as f64));
        tile("Loss, nats per token", loss, noted(&[("mean of the last 20 steps; held-out", last("held_out_loss"))]));
        tile("Tokens", last("tokens").map(count), format!("{} steps", series.last_step));
        tile("Wall time", last("seconds").map(duration), String::new());
        tile("Tokens per second", median(series.of("tokens_per_s")).map(count), "median".into());
        tile("Peak memory", last("peak_memory_bytes").map(bytes), String::new());
        if let Some(config) = self.recipe.and_then(|recipe| recipe.model().ok()) {
            let counts = config.parameter_counts();
            let active = format!("{} active per token", count(counts.activated() as f64));
            tile("Parameters", Some(count(counts.total() as f64)), active);
            let layers = format!("{} layers, width {}", config.num_hidden_layers, config.hidden_size);
            let experts = config.moe.as_ref().map_or_else(
                || "dense".to_owned(),
                |moe| format!("{} of {} experts per token", moe.num_experts_per_tok, moe.n_routed_experts),
            );
            tile("Model", Some(config.model_type.name().to_owned()), format!("{layers}, {experts}"));
        }
        format!("<dl class=\"tiles\">{tiles}</dl>\n")
    }

    fn loss(&self) -> anyhow::Result<String> {
        let points = self.series.of("loss");
        let mut lines = vec![
            Line::new("each step", Ink::Faint, points),
            Line::new("training", Ink::Main, &smooth(points, (points.len() / 20).min(400))),
        ];
        let held_out = self.series.of("held_out_loss");
        if !held_out.is_empty() {
            lines.push(Line::new("held-out", Ink::Second, held_out).dotted());
        }
        let mut figures = self.figure("Loss", "nats per token", lines, false, plain)?;
        let bits = self.series.of("held_out_bits_per_byte");
        if bits.len() > 1 {
            let lines = vec![Line::new("held-out", Ink::Second, bits).dotted()];
            figures += &self.figure("Bits per byte", "held-out text", lines, false, plain)?;
        }
        Ok(section("What it learned", "", &figures).replacen("figures", "figures large", 1))
    }

    fn pace(&self) -> anyhow::Result<String> {
        let one = |key: &str| vec![Line::new("", Ink::Main, self.series.of(key))];
        let figures = [
            self.figure("Learning rate", "", one("lr"), true, rate)?,
            self.figure("Gradient norm", "before clipping", one("gradient_norm"), true, plain)?,
            self.figure("Tokens per second", "", one("tokens_per_s"), true, count)?,
        ];
        Ok(section("How it went", "", &figures.concat()))
    }

    fn logits(&self) -> anyhow::Result<String> {
        let series = self.series;
        let tau = self.recipe.and_then(|recipe| recipe.optimizer.tau());
        let max_logit = series.of("max_logit");
        let highest = max_logit.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let mut lines = vec![Line::new("largest of all heads", Ink::Main, max_logit)];
        // A cap far above everything would flatten the curve.
        let near = tau.filter(|tau| highest > tau / 3.0);
        if let (Some(tau), Some((last, _))) = (near, max_logit.last()) {
            let label = format!("cap τ = {}", plain(tau));
            lines.push(Line::new(&label, Ink::Limit, &[(0.0, tau), (*last, tau)]));
        }
        let mut figures = self.figure("Largest attention logit", "", lines, true, plain)?;
        let clipped: f64 = series.of("clip_events").iter().map(|(_, heads)| *heads).sum();
        if clipped > 0.0 {
            let lines = vec![Line::new("", Ink::Main, series.of("clip_events"))];
            figures += &self.figure("QK-Clip events", "heads clipped per step", lines, true, plain)?;
            let lines = vec![Line::new("", Ink::Main, series.of("heads_ever_clipped"))];
            let percent = |share| format!("{} %", plain(100.0 * share));
            figures += &self.figure("Heads ever clipped", "share of all heads", lines, true, percent)?;
        }
        if let Some((heat, heads)) = &series.max_logits {
            let top = near.unwrap_or(heat.max().unwrap_or(1.0).max(f64::MIN_POSITIVE));
            let image = heat.png(&RISING, *heads, |value| value / top);
            let top_label = if near.is_some() { format!("τ = {}", plain(top)) } else { plain(top) };
            let legend = legend("rising", ["0", &top_label]);
            let title = "<b>Largest logit of each head</b> a row per head, grouped by layer, steps from left to right";
            let layers = heat.rows() / heads;
            let names: Vec<String> = (0..layers).map(|layer| layer.to_string()).collect();
            figures += &self.heat_figure(title, &legend, &image, heat, &names);
        }
        Ok(section("Attention logits", &about_clipping(tau, clipped), &figures))
    }

    fn balance(&self) -> anyhow::Result<String> {
        let series = self.series;
        if series.expert_load.is_empty() {
            return Ok(String::new());
        }
        let [mean, worst] = &series.max_violation;
        let lines = vec![
            Line::new("worst layer", Ink::Faint, worst),
            Line::new("mean of layers", Ink::Main, &smooth(mean, mean.len() / 60)),
        ];
        let mut figures =
            self.figure("MaxVio", "largest load of an expert over the mean, less 1", lines, true, plain)?;
        let lines = vec![Line::new("mean of layers", Ink::Main, &series.load_variation)];
        figures += &self.figure("Spread of loads", "standard deviation over mean", lines, true, plain)?;
        let legend = legend("diverging", ["a quarter of the mean", "4 times"]);
        let _ = write!(
            figures,
            "</div><p class=\"note\">Load of each expert, a row each {legend}</p><div class=\"figures\">"
        );
        for (layer, heat) in &series.expert_load {
            let image = heat.png(&DIVERGING, usize::MAX, |load| 0.5 + 0.25 * load.max(1e-9).log2());
            figures += &self.heat_figure(&format!("<b>Layer {layer}</b>"), "", &image, heat, &[]);
        }
        let told = "Each token chooses its experts; the selection bias pulls their loads towards the mean.";
        Ok(section("Expert balance", told, &figures))
    }

    fn sample_texts(&self) -> String {
        let newest = self.samples.len().saturating_sub(1);
        let sample = |(i, (name, text)): (usize, &(String, String))| {
            let open = if i == newest { " open" } else { "" };
            format!("<details{open}><summary>{}</summary><pre>{}</pre></details>", escape(name), escape(text))
        };
        let texts: String = self.samples.iter().enumerate().map(sample).collect();
        if texts.is_empty() { texts } else { format!("<section><h2>Samples</h2>{texts}</section>\n") }
    }

    fn recipe_text(&self) -> String {
        if self.resolved.is_empty() {
            return String::new();
        }
        let text = escape(self.resolved);
        format!(
            "<section><h2>Recipe</h2><details><summary>as resolved</summary><pre>{text}</pre></details></section>\n"
        )
    }

    /// A line chart with its title and legend; nothing if there are no values.
    fn figure(
        &self,
        title: &str,
        note: &str,
        lines: Vec<Line>,
        from_zero: bool,
        format: fn(f64) -> String,
    ) -> anyhow::Result<String> {
        if lines.iter().all(|line| line.points.is_empty()) {
            return Ok(String::new());
        }
        let entry = |line: &Line| {
            let colour = chart::variable(line.ink);
            format!("<span class=\"key\"><i style=\"background:{colour}\"></i>{}</span>", escape(&line.label))
        };
        let keys: String = lines.iter().filter(|line| !line.label.is_empty()).map(entry).collect();
        let svg = Chart { lines, from_zero, last_step: self.series.last_step as f64, format }.svg()?;
        Ok(format!("<figure><figcaption><b>{title}</b> {note}{keys}</figcaption>{svg}</figure>\n"))
    }

    /// A heat map with names beside its groups of rows and steps under it.
    fn heat_figure(&self, title: &str, legend: &str, image: &str, heat: &Heat, names: &[String]) -> String {
        // Names that would overlap are left out: 14 pixels for each.
        let height = (heat.rows() * 7 + names.len()).clamp(60, 900);
        let every = (names.len() * 14).div_ceil(height).max(1);
        let name = |(i, name): (usize, &String)| {
            if i % every == 0 { format!("<span>{name}</span>") } else { "<span></span>".into() }
        };
        let names: String = names.iter().enumerate().map(name).collect();
        let wide = if names.is_empty() { "heat" } else { "heat wide" };
        let last = count(self.series.last_step as f64);
        format!(
            "<figure class=\"{wide}\"><figcaption>{title}{legend}</figcaption><div class=\"map\" style=\"height:{height}px\">\
             <div class=\"names\">{names}</div><img alt=\"heat map\" src=\"{image}\"></div>\
             <div class=\"steps\"><span>0</span><span>step {last}</span></div></figure>\n"
        )
    }
}

/// What the figures of attention logits are about, and whether there was anything to clip.
fn about_clipping(tau: Option<f64>, clipped: f64) -> String {
    let Some(tau) = tau else { return "Without QK-Clip, nothing bounds the logits.".into() };
    let so_far = if clipped > 0.0 { "" } else { " No head has reached τ so far." };
    format!(
        "Muon lets attention logits grow. After a step in which a head's largest logit exceeds τ&nbsp;=&nbsp;{}, QK-Clip \
         scales the head's query and key weights back to it.{so_far}",
        plain(tau)
    )
}

fn section(title: &str, told: &str, figures: &str) -> String {
    if figures.is_empty() {
        return String::new();
    }
    format!("<section><h2>{title}</h2><p>{told}</p><div class=\"figures\">{figures}</div></section>\n")
}

fn legend(palette: &str, ends: [&str; 2]) -> String {
    format!("<span class=\"scale\">{} <i class=\"{palette}\"></i> {}</span>", ends[0], ends[1])
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn median(points: &[(f64, f64)]) -> Option<f64> {
    let mut values: Vec<f64> = points.iter().map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{} s", plain(seconds)),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..172_800 => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3600 % 24),
    }
}

fn bytes(bytes: f64) -> String {
    match bytes / f64::from(1 << 20) {
        mib if mib < 1000.0 => format!("{} MiB", plain(mib)),
        mib => format!("{} GiB", plain(mib / 1024.0)),
    }
}
