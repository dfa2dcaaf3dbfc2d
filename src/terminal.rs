//! A terminal of a child's own: what it is like, how it is made, and the caller's end of it. Knows no children. pty(7).

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Winsize, tcgetattr, tcgetwinsize, tcsetattr,
    tcsetwinsize,
};

use crate::error::{Error, Result, Stage};
use crate::stdio::{Kind, Stdio};

/// Where the kernel makes them.
const DEVICE: &str = "/dev/ptmx";

/// A pseudo-terminal that a child gets: see [`Command::terminal`](crate::Command::terminal).
///
/// It is as a new one is: the child's input is echoed, Ctrl-C is SIGINT, a `\n` that it writes arrives as `\r\n`.
#[derive(Clone)]
pub struct Terminal {
    size: Winsize,
    echo: bool,
    carriage_returns: bool,
    pub(crate) output: Option<Stdio>,
    pub(crate) typed: Option<Arc<Vec<u8>>>,
}

impl Terminal {
    /// A terminal of 24 rows and 80 columns.
    pub fn new() -> Terminal {
        Terminal { size: winsize(24, 80), echo: true, carriage_returns: true, output: None, typed: None }
    }

    /// Its size in characters; what `stty size` says. It can be changed while the child runs: [`ChildTerminal::resize`],
    /// [`Child::resize_terminal`](crate::Child::resize_terminal).
    pub fn size(&mut self, rows: u16, columns: u16) -> &mut Terminal {
        self.size = winsize(rows, columns);
        self
    }

    /// Whether what is typed comes back as output; unless set it does. `ECHO` of termios(3); the child may change it.
    pub fn echo(&mut self, echo: bool) -> &mut Terminal {
        self.echo = echo;
        self
    }

    /// Whether a `\n` that the child writes arrives as `\r\n`; unless set it does. `ONLCR` of termios(3); the child may change it.
    pub fn carriage_returns(&mut self, carriage_returns: bool) -> &mut Terminal {
        self.carriage_returns = carriage_returns;
        self
    }

    /// Where goes what the child writes to it: any [`Stdio`] whose other end is a pipe to us. Unless set: captured by `output` and
    /// `combined_output`; else as [`Stdio::piped`], which here means that the caller takes the terminal
    /// ([`Child::take_terminal`](crate::Child::take_terminal)). What is captured counts as stdout.
    pub fn output(&mut self, stdio: impl Into<Stdio>) -> &mut Terminal {
        self.output = Some(stdio.into());
        self
    }

    /// Types these bytes, and then the end of the input (Ctrl-D), which a child takes for an end of file if it has left the terminal in its
    /// usual mode. For a terminal whose [output](Terminal::output) the library reads; a caller who has taken it types by itself.
    ///
    /// It is a keyboard: a byte 3 is Ctrl-C, and the kernel keeps 4,095 bytes of a line and drops the rest.
    pub fn typed(&mut self, bytes: impl Into<Vec<u8>>) -> &mut Terminal {
        self.typed = Some(Arc::new(bytes.into()));
        self
    }

    /// What is wrong with it.
    pub(crate) fn complaint(&self) -> Option<&'static str> {
        match self.output.as_ref().map(|stdio| &stdio.0) {
            None | Some(Kind::Piped | Kind::Captured(_) | Kind::Writer(_) | Kind::Queue(_)) => None,
            Some(_) => Some("the output of its terminal can be piped, captured, or given to a writer or a queue"),
        }
    }

    /// What is typed, with its end: a first Ctrl-D hands over a line that is not ended, and only the next one is an end.
    pub(crate) fn keystrokes(&self) -> Option<Arc<Vec<u8>>> {
        const CTRL_D: u8 = 4;
        let typed = self.typed.as_ref()?;
        let ends = if typed.last().is_none_or(|byte| *byte == b'\n') { 1 } else { 2 };
        let end = std::iter::repeat_n(CTRL_D, ends);
        Some(Arc::new(typed.iter().copied().chain(end).collect()))
    }

    /// (our end, the child's end), close-on-exec. The calling process does not get it as its controlling terminal.
    pub(crate) fn open(&self) -> Result<(OwnedFd, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let open = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            // Not by posix_openpt(3), which has another word for "none is left".
            let ours = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
            unlockpt(&ours)?;
            // Not by a path: another mount namespace may have another `/dev/pts`.
            let theirs = ioctl_tiocgptpeer(&ours, flags)?;
            tcsetwinsize(&theirs, self.size)?;
            self.set_modes(&theirs)?;
            Ok((ours, theirs))
        };
        open().map_err(|errno| {
            let error = Error::os(Stage::PseudoTerminal, errno.into()).about(DEVICE);
            if errno == Errno::NOSPC { error.saying("all of them are in use (kernel.pty.max)") } else { error }
        })
    }

    fn set_modes(&self, terminal: &OwnedFd) -> rustix::io::Result<()> {
        if self.echo && self.carriage_returns {
            return Ok(());
        }
        let mut modes = tcgetattr(terminal)?;
        modes.local_modes.set(LocalModes::ECHO, self.echo);
        modes.output_modes.set(OutputModes::ONLCR, self.carriage_returns);
        tcsetattr(terminal, OptionalActions::Now, &modes)
    }
}

impl Default for Terminal {
    fn default() -> Terminal {
        Terminal::new()
    }
}

impl fmt::Debug for Terminal {
    /// What is typed is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal")
            .field("size", &(self.size.ws_row, self.size.ws_col))
            .field("echo", &self.echo)
            .field("carriage_returns", &self.carriage_returns)
            .field("output", &self.output)
            .field("typed_bytes", &self.typed.as_ref().map(|typed| typed.len()))
            .finish()
    }
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Changes the size; the group in the foreground gets SIGWINCH if it is another one. `TIOCSWINSZ`.
pub(crate) fn resize(end: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    Ok(tcsetwinsize(end, winsize(rows, columns))?)
}

/// The caller's end of a child's terminal: what the child writes can be read from it, and what is written to it is typed.
///
/// It is the caller's: blocking, usable after `wait`. Reading ends when nobody has the terminal open any more, which the kernel tells by
/// `EIO` and this as the end of file; a child that ends with everything closed has its last bytes read before that. Dropping it (and what
/// was made of it) hangs up: the child gets SIGHUP.
///
/// For an async runtime: [`OwnedFd`], made non-blocking; there `EIO` is the end.
#[derive(Debug)]
pub struct ChildTerminal(File);

impl ChildTerminal {
    /// Changes the size; the child's foreground group gets SIGWINCH if it is another one. `TIOCSWINSZ`.
    ///
    /// # Errors
    ///
    /// What `ioctl(2)` says.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        resize(self.as_fd(), rows, columns)
    }

    /// Its size: rows and columns. `TIOCGWINSZ`.
    ///
    /// # Errors
    ///
    /// What `ioctl(2)` says.
    pub fn size(&self) -> io::Result<(u16, u16)> {
        let size = tcgetwinsize(&self.0)?;
        Ok((size.ws_row, size.ws_col))
    }

    /// The same end once more, for another thread to read or write; it hangs up when all of them are dropped.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<ChildTerminal> {
        self.0.try_clone().map(ChildTerminal)
    }

    /// Types the end of the input: the child reads an end of file, if what was typed before ended with a newline and the terminal is in its
    /// usual mode.
    ///
    /// # Errors
    ///
    /// What `write(2)` says.
    pub fn type_end(&self) -> io::Result<()> {
        let modes = tcgetattr(&self.0)?;
        (&self.0).write_all(&[modes.special_codes[SpecialCodeIndex::VEOF]])
    }
}

impl Read for ChildTerminal {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        or_end((&self.0).read_vectored(slices))
    }
}

impl Read for &ChildTerminal {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        or_end((&self.0).read(bytes))
    }
}

/// The kernel's word for it is `EIO`.
fn or_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        other => other,
    }
}

impl Write for ChildTerminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.0).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &ChildTerminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for ChildTerminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ChildTerminal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl IntoRawFd for ChildTerminal {
    fn into_raw_fd(self) -> RawFd {
        self.0.into_raw_fd()
    }
}

impl From<OwnedFd> for ChildTerminal {
    fn from(fd: OwnedFd) -> ChildTerminal {
        ChildTerminal(fd.into())
    }
}

impl From<ChildTerminal> for OwnedFd {
    fn from(terminal: ChildTerminal) -> OwnedFd {
        terminal.0.into()
    }
}
