//! Files that children write their output into by themselves. Knows files, seals and nothing of who waits for what.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, fstat, memfd_create, open};
use rustix::io::Errno;

use crate::exit::Spool;

/// A stream's file, made for a child.
#[derive(Debug)]
pub(crate) struct Made {
    /// For reading, with a position of our own, if that could be had.
    pub(crate) ours: OwnedFd,
    pub(crate) theirs: OwnedFd,
    /// Where what the child writes begins.
    start: u64,
    /// It is nobody else's.
    is_new: bool,
}

impl Made {
    /// In memory. `memfd_create(2)`.
    pub(crate) fn in_memory() -> io::Result<Made> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let theirs = match memfd_create("pidloop-spool", flags | MemfdFlags::NOEXEC_SEAL) {
            // Before Linux 6.3.
            Err(Errno::INVAL) => memfd_create("pidloop-spool", flags),
            made => made,
        }?;
        // Two that write at once would overwrite one another: a memfd has no lock for its position.
        fcntl_setfl(&theirs, OFlags::APPEND)?;
        let ours = match reopen(theirs.as_fd(), OFlags::RDONLY) {
            Ok(ours) => ours,
            // No /proc here: then it shares the position of those who write, who append whatever it is.
            Err(_) => theirs.try_clone()?,
        };
        Ok(Made { ours, theirs, start: 0, is_new: true })
    }

    /// Behind what is in `file` already. Its own description keeps its flags: the child has another one.
    pub(crate) fn in_file(file: BorrowedFd<'_>) -> io::Result<Made> {
        let theirs = reopen(file, OFlags::WRONLY | OFlags::APPEND)?;
        let ours = reopen(file, OFlags::RDONLY)?;
        let start = size(&ours)?;
        Ok(Made { ours, theirs, start, is_new: false })
    }
}

/// The file while it is written.
#[derive(Debug)]
pub(crate) struct Spooling {
    ours: OwnedFd,
    /// As the child has it: for sealing. None of a file of the caller's.
    theirs: Option<Arc<OwnedFd>>,
    start: u64,
}

impl Spooling {
    /// (ours, the child's).
    pub(crate) fn new(made: Made) -> (Spooling, Arc<OwnedFd>) {
        let Made { ours, theirs, start, is_new } = made;
        let theirs = Arc::new(theirs);
        (Spooling { ours, theirs: is_new.then(|| theirs.clone()), start }, theirs)
    }

    /// The child is dead: what it wrote is what there is. Whoever else has it open writes no more, if it can be sealed.
    pub(crate) fn finish(self) -> Spool {
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        // EBUSY: somebody has mapped it for writing.
        let is_sealed = self.theirs.is_some_and(|theirs| fcntl_add_seals(&*theirs, seals).is_ok());
        // Of a descriptor of ours that is a file.
        let end = size(&self.ours).unwrap_or(self.start);
        let file = File::from(self.ours);
        Spool::new(file, self.start, end.saturating_sub(self.start), is_sealed)
    }
}

fn size(fd: &OwnedFd) -> io::Result<u64> {
    Ok(fstat(fd)?.st_size.try_into().unwrap_or(0))
}

/// The same file once more, with flags and a position of its own. proc_pid_fd(5).
fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?)
}
