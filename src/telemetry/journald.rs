//! Lines for systemd's journal, which brings time, unit and priority by itself.
//!
//! The priority stands in front of each line, as sd-daemon(3) has it; a list of findings is several
//! lines of one priority.

use std::fmt;
use std::os::fd::AsFd;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer, format};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub struct Lines(Format<Full, ()>);

impl Lines {
    pub fn new() -> Self {
        Lines(format().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(ctx, Writer::new(&mut text), event)?;
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        text.trim_end().lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// Whether what goes to stderr goes to the journal: it names the stream that it gave us.
pub fn listens() -> bool {
    let stderr = std::io::stderr();
    let file = stderr.as_fd().try_clone_to_owned().map(std::fs::File::from).and_then(|file| file.metadata());
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| file.is_ok_and(|file| is(&stream, &file)))
}

/// `device:inode`
fn is(stream: &str, file: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    stream == format!("{}:{}", file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn each_line_has_its_priority_and_neither_time_nor_level() {
        let mut file = tempfile::tempfile().unwrap();
        let writer = file.try_clone().unwrap();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(Lines::new())
            .with_writer(std::sync::Mutex::new(writer));
        tracing::subscriber::with_default(log.finish(), || {
            let _span = tracing::info_span!("apply", system = "shop").entered();
            tracing::warn!(rows = 3, "two\nlines");
            tracing::info!("one");
        });

        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "<4>apply{system=\"shop\"}: two\n<4>lines rows=3\n<6>apply{system=\"shop\"}: one\n");
    }

    #[test]
    fn the_journal_is_known_by_the_stream_that_it_gave() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap().metadata().unwrap();

        assert!(is(&format!("{}:{}", file.dev(), file.ino()), &file));
        assert!(!is("8:1", &file));
    }
}
