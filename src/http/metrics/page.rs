//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write;

use crate::status::Histogram;

pub type Labels<'a> = [(&'a str, &'a str)];

#[derive(Default)]
pub struct Page {
    pub text: String,
}

impl Page {
    pub fn counter(&mut self, name: &str, help: &str) {
        self.head(name, help, "counter");
    }

    pub fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, help, "gauge");
    }

    pub fn histogram(&mut self, name: &str, help: &str) {
        self.head(name, help, "histogram");
    }

    /// A gauge without labels.
    pub fn one(&mut self, name: &str, help: &str, value: f64) {
        self.gauge(name, help);
        self.sample(name, &[], value);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub fn sample(&mut self, name: &str, labels: &Labels<'_>, value: f64) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{}\"", escape(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    pub fn buckets<const N: usize>(&mut self, name: &str, labels: &Labels<'_>, histogram: &Histogram<N>) {
        let (buckets, count) = histogram.cumulative();
        let bucket = format!("{name}_bucket");
        let buckets = buckets.into_iter().map(|(bound, count)| (bound.to_string(), count));
        for (bound, count) in buckets.chain([("+Inf".to_owned(), count)]) {
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&bucket, &labels, count as f64);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.sample(&format!("{name}_count"), labels, count as f64);
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
