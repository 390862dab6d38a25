//! The pause program: the first process of a pod sandbox.
//!
//! It holds the pod's namespaces open, reaps orphans where a pod shares its process namespace, and
//! leaves at SIGTERM or SIGINT. It is built by `xtask` with plain rustc, no libc and no runtime, so
//! that the image is a few kilobytes on any distribution; every system call is made here by hand.
#![no_std]
#![no_main]

mod sys;

use sys::syscall;

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const WNOHANG: usize = 1;

fn main(_stack: *const usize) -> ! {
    let every_signal: u64 = u64::MAX;
    let set = &raw const every_signal as usize;
    // SAFETY: `set` points at 8 bytes that live as long as this function, which never returns; null
    // pointers are allowed where one is passed.
    unsafe {
        // Blocked signals are queued even for the first process of a namespace, which otherwise is
        // deaf to signals without a handler.
        syscall(nr::RT_SIGPROCMASK, 0, set, 0, 8);
        loop {
            let signal = syscall(nr::RT_SIGTIMEDWAIT, set, 0, 0, 8);
            if signal == SIGTERM || signal == SIGINT {
                syscall(nr::EXIT_GROUP, 0, 0, 0, 0);
            }
            while syscall(nr::WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {}
        }
    }
}
