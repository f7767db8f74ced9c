//! The log as a file, for machines without journald: a new one each day, and whenever it has become
//! large; those before are compressed, and go after thirty days.
//!
//! ```text
//! anechoic.log    anechoic.log.2026-01-30.gz    anechoic.log.2026-01-29.1.gz    …
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use flate2::{Compression, write::GzEncoder};
use tracing_subscriber::fmt::MakeWriter;

use crate::change::Micros;
use crate::http::status::timestamp;
use crate::status::now;
use crate::value::MICROS_PER_DAY;

const SIZE_MAX: u64 = 256 << 20;
const KEPT_DAYS: i64 = 30;

/// Cheap to clone: all write to one file.
#[derive(Debug, Clone)]
pub struct LogFile(Arc<Mutex<Rotating>>);

#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    file: File,
    day: i64,
    size: u64,
    size_max: u64,
}

impl LogFile {
    /// Goes on in the file that is there.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Self::open_at(path, now(), SIZE_MAX)
    }

    fn open_at(path: &Path, now: Micros, size_max: u64) -> std::io::Result<Self> {
        let file = append(path)?;
        let (size, changed) = (file.metadata()?.len(), file.metadata()?.modified()?);
        // What is in it is of the day on which it was written last.
        let written = changed.duration_since(std::time::UNIX_EPOCH).map_or(now, |since| since.as_micros() as Micros);
        let day = if size == 0 { day_of(now) } else { day_of(written).min(day_of(now)) };
        Ok(LogFile(Arc::new(Mutex::new(Rotating { path: path.to_owned(), file, day, size, size_max }))))
    }

    fn write_at(&self, bytes: &[u8], now: Micros) -> std::io::Result<()> {
        let mut log = self.0.lock().expect("nobody panics while writing the log");
        if log.size > 0 && (day_of(now) != log.day || log.size + bytes.len() as u64 > log.size_max) {
            log.rotate(now)?;
        }
        log.file.write_all(bytes)?;
        log.size += bytes.len() as u64;
        Ok(())
    }
}

impl Rotating {
    fn rotate(&mut self, now: Micros) -> std::io::Result<()> {
        let day = name_of(self.day);
        let numbered = |number: u32| match number {
            0 => format!(".{day}"),
            number => format!(".{day}.{number}"),
        };
        let beside = |end: String| PathBuf::from(format!("{}{end}", self.path.display()));
        let free = |number: &u32| !beside(numbered(*number) + ".gz").exists() && !beside(numbered(*number)).exists();
        let to = beside(numbered((0..).find(free).expect("one is free")));
        fs::rename(&self.path, &to)?;
        (self.file, self.day, self.size) = (append(&self.path)?, day_of(now), 0);
        let (path, oldest) = (self.path.clone(), name_of(day_of(now) - KEPT_DAYS));
        // Nobody who logs waits for it. What a kill leaves uncompressed is kept as it is.
        std::thread::spawn(move || {
            let _ = compress(&to);
            expire(&path, &oldest);
        });
        Ok(())
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).mode(0o640).open(path)
}

fn compress(path: &Path) -> std::io::Result<()> {
    let (zipped, fresh) = (format!("{}.gz", path.display()), format!("{}.new", path.display()));
    let out = File::options().create(true).truncate(true).write(true).mode(0o640).open(&fresh)?;
    let mut zip = GzEncoder::new(out, Compression::default());
    std::io::copy(&mut File::open(path)?, &mut zip)?;
    zip.finish()?.sync_all()?;
    fs::rename(fresh, zipped)?;
    fs::remove_file(path)
}

/// Removes the files of days before `oldest`.
fn expire(path: &Path, oldest: &str) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!("{}.", name.to_string_lossy());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let day = name.strip_prefix(&prefix).and_then(|rest| rest.get(..10)).filter(|day| is_day(day));
        if day.is_some_and(|day| day < oldest) {
            let _ = fs::remove_file(entry.path()); // the next day tries again
        }
    }
}

fn is_day(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, byte)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() })
}

fn day_of(at: Micros) -> i64 {
    at.div_euclid(MICROS_PER_DAY)
}

fn name_of(day: i64) -> String {
    timestamp(day * MICROS_PER_DAY + 1).map_or_else(String::new, |text| text[..10].to_owned())
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write_at(bytes, now()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogFile;

    fn make_writer(&'a self) -> LogFile {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use flate2::read::GzDecoder;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    #[track_caller]
    fn until(dir: &Path, expected: &[&str]) {
        let began = Instant::now();
        while names(dir) != expected {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", names(dir));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_new_file_each_day_and_for_each_size_and_the_old_ones_go_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anechoic.log");
        fs::write(dir.path().join("anechoic.log.notes"), "not ours").unwrap();
        let today = now();
        let log = LogFile::open_at(&path, today, 25).unwrap();

        log.write_at(b"first\n", today).unwrap();
        log.write_at(b"grows beyond it\n", today).unwrap();
        log.write_at(b"of the same day\n", today).unwrap();
        log.write_at(b"of the next\n", today + MICROS_PER_DAY).unwrap();
        let day = name_of(day_of(today));
        let (one, two) = (format!("anechoic.log.{day}.1.gz"), format!("anechoic.log.{day}.gz"));
        until(dir.path(), &["anechoic.log", &one, &two, "anechoic.log.notes"]);
        let mut text = String::new();
        GzDecoder::new(File::open(dir.path().join(&two)).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "first\ngrows beyond it\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "of the next\n");

        log.write_at(b"long after\n", today + 32 * MICROS_PER_DAY).unwrap();
        let last = format!("anechoic.log.{}.gz", name_of(day_of(today) + 1));
        until(dir.path(), &["anechoic.log", "anechoic.log.notes"]);
        assert!(!dir.path().join(last).exists());
    }

    #[test]
    fn a_file_that_is_there_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("anechoic.log");
        for text in ["one\n", "two\n"] {
            LogFile::open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        }

        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
