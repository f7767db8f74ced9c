//! What the process costs, as the kernel tells it, under the names that every exporter uses.

use super::page::Page;
use crate::telemetry::metric;

/// Counted since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    pub cpu_seconds: f64,
    pub resident_bytes: f64,
    pub virtual_bytes: f64,
    pub threads: f64,
    pub open_files: f64,
}

impl Process {
    /// Of this process; `None` where there is no /proc.
    pub fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let open_files = std::fs::read_dir("/proc/self/fd").ok()?.count() as f64;
        // SAFETY: both ask for constants.
        let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
        Self::of(&stat, ticks as f64, page as f64, open_files)
    }

    /// The fields behind the name, which may hold anything but ends with the last parenthesis.
    fn of(stat: &str, ticks: f64, page: f64, open_files: f64) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Process {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page,
            open_files,
        })
    }
}

pub fn render(page: &mut Page, process: Option<Process>) {
    let Some(process) = process else { return };
    page.counter(metric::PROCESS_CPU, "Processor time that the agent used, user and system");
    page.sample(metric::PROCESS_CPU, &[], process.cpu_seconds);
    page.one(metric::PROCESS_RESIDENT, "Memory of the agent that is in RAM", process.resident_bytes);
    page.one(metric::PROCESS_VIRTUAL, "Address space of the agent", process.virtual_bytes);
    page.one(metric::PROCESS_FILES, "Files and sockets that the agent has open", process.open_files);
    page.one(metric::PROCESS_THREADS, "Threads of the agent", process.threads);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_with_parentheses() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 9 0 1000 104857600 2560 18446744073709551615";

        let process = Process::of(stat, 100.0, 4096.0, 12.0).unwrap();

        let expected = Process {
            cpu_seconds: 2.0,
            resident_bytes: 10_485_760.0,
            virtual_bytes: 104_857_600.0,
            threads: 9.0,
            open_files: 12.0,
        };
        assert_eq!(process, expected);
        assert!(Process::now().unwrap().resident_bytes > 1_000_000.0);
    }
}
