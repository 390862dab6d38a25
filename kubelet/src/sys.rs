//! The one module with unsafe code: what the C library offers and no safe crate wraps.
//!
//! `main` and `process` call it. It must never grow policy.
#![allow(unsafe_code, reason = "calls into the C library, each argued where it stands")]

/// Keeps all threads on one heap. By default each thread of the C library's allocator gets an arena of its own, and
/// memory that one thread frees is of no use to the others; an agent that mostly waits gains nothing from that and
/// pays megabytes. Elsewhere than on glibc there is nothing to do.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator, under its own lock.
    unsafe {
        // It fails for unknown parameters only; the default is then as good.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is free inside the heap back to the machine. Takes milliseconds, under the allocator's lock.
/// Elsewhere than on glibc there is nothing to do.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only releases pages that hold no allocation, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The node's local time `seconds` after the epoch: year, month, day, hour, minute, second. `None` where it has none.
pub fn local_time(seconds: i64) -> Option<[i32; 6]> {
    let seconds: libc::time_t = seconds;
    // SAFETY: all zeros is a valid `tm`: its fields are numbers and a pointer that may be null.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right types; the function keeps neither.
    let made = unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
    (!made.is_null())
        .then(|| [tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec])
}

/// Lets tokio wait for `file`, which must not block. Inside a runtime only.
///
/// # Errors
/// The kernel cannot wait for such a file.
pub fn watched(
    file: std::fs::File,
    interest: tokio::io::Interest,
) -> std::io::Result<tokio::io::unix::AsyncFd<std::fs::File>> {
    // SAFETY: a `File` owns its descriptor: it stays open, and the same, for as long as the file is in there.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(file, interest) }.map_err(std::io::Error::from)
}

/// A new event descriptor (eventfd(2)): readable once something was counted, never blocking, not inherited.
///
/// # Errors
/// The process has too many descriptors, or the node.
pub fn event_fd() -> std::io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the call takes two integers and makes a descriptor or answers -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd == -1 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just made the descriptor, and nobody else knows of it.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// The kernel's number, which the bindings lack for most platforms.
const F_SETSIG: libc::c_int = 10;

/// Whether somebody has `file`, itself open for reading only, open for writing. The kernel tells by whether it grants a
/// read lease, which is given back at once; no on a file system that knows no leases.
pub fn is_open_for_writing(file: &std::fs::File) -> bool {
    use std::os::fd::AsRawFd;
    let fd = file.as_raw_fd();
    // SAFETY: the three calls take integers, and the descriptor is open for as long as `file` is borrowed. Whoever opens
    // the file for writing between the last two makes the kernel send a signal: one that is ignored by default.
    unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) == -1 {
            return false;
        }
        if libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == -1 {
            return std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
    false
}
