//! The way in and the system calls of the programs in this folder, which have no C library and no
//! runtime. Each is compiled alone by `xtask`, with this file as its module `sys`.

use core::arch::{asm, global_asm};

// The kernel enters with the stack pointer aligned to 16, pointing at the argument count, and without a
// return address; `entered` needs a call.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "xor ebp, ebp", "call {entered}", "ud2", entered = sym entered);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl {entered}", "brk #1", entered = sym entered);

/// `stack` points at the number of arguments, behind which lie pointers to them.
extern "C" fn entered(stack: *const usize) -> ! {
    crate::main(stack)
}

/// # Safety
/// The arguments must be valid for system call `n`.
#[cfg(target_arch = "x86_64")]
pub unsafe fn syscall(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
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
pub unsafe fn syscall(n: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel keeps every register but x0.
    unsafe {
        asm!("svc #0", in("x8") n, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
             in("x3") d, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
