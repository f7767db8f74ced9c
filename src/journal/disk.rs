//! The few system calls on which the journal's promises rest.
//!
//! Space is allocated before it is written, so that a full disk shows when a segment is
//! made and not in the middle of a commit. A failed fdatasync is never tried again: the
//! kernel may have dropped the pages and would report success (the caller gives up).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::file::unwritable;

/// A directory that only we may enter.
pub fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens for reading and writing, created with mode 0600 where absent.
pub fn open_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A file that must not exist yet.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Makes created, renamed and removed names durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(test)]
    if let Some(error) = fault::take(fault::Fault::Write) {
        file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
        return Err(error);
    }
    file.write_all_at(bytes, offset)
}

pub fn sync_data(file: &File) -> io::Result<()> {
    #[cfg(test)]
    if let Some(error) = fault::take(fault::Fault::Sync) {
        return Err(error);
    }
    file.sync_data()
}

/// Makes the file at least `len` bytes long, with blocks allocated where the file system can.
pub fn preallocate(file: &File, len: u64) -> io::Result<()> {
    #[cfg(test)]
    if let Some(error) = fault::take(fault::Fault::Allocate) {
        return Err(error);
    }
    match fallocate(file, 0, 0, len) {
        Err(error) if unsupported(&error) && file.metadata()?.len() < len => file.set_len(len),
        Err(error) if unsupported(&error) => Ok(()),
        done => done,
    }
}

/// Overwrites `from..to` with zeros.
pub fn zero(file: &File, from: u64, to: u64) -> io::Result<()> {
    match fallocate(file, libc::FALLOC_FL_ZERO_RANGE, from, to - from) {
        Err(error) if unsupported(&error) => {
            let zeros = vec![0; 1 << 20];
            let mut at = from;
            while at < to {
                let n = (to - at).min(zeros.len() as u64);
                file.write_all_at(&zeros[..n as usize], at)?;
                at += n;
            }
            Ok(())
        }
        done => done,
    }
}

fn fallocate(file: &File, mode: i32, from: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: a plain system call on a descriptor that `file` keeps open.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, from as libc::off_t, len as libc::off_t) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

/// Removes a file; one that is gone already is as good.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives an I/O error its place and its recovery: time mends a full disk, a person the rest.
pub trait OnDisk<T> {
    fn on_disk(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> OnDisk<T> for io::Result<T> {
    fn on_disk(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::retry(format!("no space left to {doing} {}", path.display()))
                    .hint("free disk space under agent.data_dir, or lower journal.max_size")
                    .because(error)
            }
            io::ErrorKind::PermissionDenied => Error::stop(
                format!("cannot {doing} {}", path.display()),
                "give the agent's user rights on agent.data_dir",
            )
            .because(error),
            _ => {
                let hint = unwritable(&error, "check the disk, then start again");
                Error::stop(format!("cannot {doing} {}", path.display()), hint).because(error)
            }
        })
    }
}

/// Faults for tests: the next call of a kind on this thread fails.
#[cfg(test)]
pub mod fault {
    use std::cell::Cell;
    use std::io;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Fault {
        Write,
        Sync,
        Allocate,
    }

    thread_local! {
        static NEXT: Cell<Option<(Fault, i32)>> = const { Cell::new(None) };
    }

    pub fn inject(fault: Fault, errno: i32) {
        NEXT.set(Some((fault, errno)));
    }

    pub fn take(fault: Fault) -> Option<io::Error> {
        let (wanted, errno) = NEXT.get()?;
        (wanted == fault).then(|| {
            NEXT.set(None);
            io::Error::from_raw_os_error(errno)
        })
    }
}
