//! Pseudo-terminals.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    process::Pid,
    pty::OpenptFlags,
    termios::{InputModes, LocalModes, OptionalActions, Winsize},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The side of a pseudo-terminal that we hold.
#[derive(Debug)]
pub struct PtyMaster {
    fd: AsyncFd<OwnedFd>,
}

/// Opens a pseudo-terminal of the given size: our side, and the side for a child.
///
/// # Errors
///
/// When the system has no more terminals or `/dev/ptmx` is missing.
pub fn open(rows: u16, columns: u16) -> io::Result<(PtyMaster, OwnedFd)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = other_side(&master)?;
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    let master = PtyMaster { fd: registered(master, Interest::READABLE | Interest::WRITABLE)? };
    master.resize(rows, columns)?;
    Ok((master, slave))
}

/// The side of the terminal that programs have.
fn other_side(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    if let Ok(slave) = rustix::pty::ioctl_tiocgptpeer(master, flags) {
        return Ok(slave);
    }
    // Before Linux 4.13.
    let name = rustix::pty::ptsname(master, Vec::new())?;
    Ok(rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?)
}

#[allow(unsafe_code, reason = "the reactor asks for a promise about the descriptor")]
pub(crate) fn registered(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the only owner of its descriptor and never changes or closes it before it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

impl PtyMaster {
    /// Reads what the terminal's programs wrote; 0 when no program has the terminal open any more.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped call has read nothing.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await;
        match read {
            // Linux says EIO when the other side is closed.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(0),
            read => read,
        }
    }

    /// Types some of the bytes and says how many; waits while the terminal's input queue is full.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped call has typed nothing.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.fd.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await
    }

    /// Types bytes; waits while the terminal's input queue is full.
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped call may have typed a part.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Makes the terminal take no byte for a signal, for flow control or for the end of a line until a program sets it anew.
    pub fn stop_taking_keys(&self) -> io::Result<()> {
        let fd = self.fd.get_ref().as_fd();
        let mut settings = rustix::termios::tcgetattr(fd)?;
        settings.local_modes.remove(LocalModes::ISIG);
        settings.input_modes.remove(InputModes::IXON | InputModes::ICRNL);
        Ok(rustix::termios::tcsetattr(fd, OptionalActions::Now, &settings)?)
    }

    /// How many typed bytes no program has read yet; of an unfinished line none counts while the terminal edits lines.
    pub fn unread(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(other_side(self.fd.get_ref())?)?)
    }

    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.fd.get_ref().as_fd(), size)?)
    }

    /// The process group that reads the terminal and gets its signals.
    pub fn foreground_process_group(&self) -> io::Result<Pid> {
        Ok(rustix::termios::tcgetpgrp(self.fd.get_ref().as_fd())?)
    }

    /// Whether the terminal edits lines itself; a program such as readline that edits them has switched that off.
    pub fn is_canonical(&self) -> io::Result<bool> {
        Ok(rustix::termios::tcgetattr(self.fd.get_ref().as_fd())?.local_modes.contains(LocalModes::ICANON))
    }

    /// Whether a typed line shows: the terminal echoes it, or leaves lines to the program.
    pub fn shows_input(&self) -> io::Result<bool> {
        let modes = rustix::termios::tcgetattr(self.fd.get_ref().as_fd())?.local_modes;
        Ok(modes.contains(LocalModes::ECHO) || !modes.contains(LocalModes::ICANON))
    }
}
