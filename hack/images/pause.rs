//! The pause program: the first process of a pod sandbox.
//!
//! It holds the pod's namespaces open, reaps orphans where a pod shares its process namespace, and
//! leaves at SIGTERM or SIGINT. It is built by `xtask` with plain rustc, no libc and no runtime, so
//! that the image is a few kilobytes on any distribution; every system call is made here by hand.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

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

// The kernel enters with the stack pointer aligned to 16 and no return address; `main` needs a call.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {main}", "ud2", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "bl {main}", "brk #1", main = sym main);

/// # Safety
/// The arguments must be valid for system call `n`.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 only, and keeps the rest of the registers.
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
             in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// The arguments must be valid for system call `n`.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps every register but x0.
    unsafe {
        asm!("svc #0", in("x8") n, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
             in("x3") d, options(nostack));
    }
    result
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const WNOHANG: usize = 1;

extern "C" fn main() -> ! {
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

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
