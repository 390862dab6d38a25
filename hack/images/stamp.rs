//! The program that the benchmark's containers run: it tells when its first instruction ran and when
//! SIGTERM reached it.
//!
//! Its one argument is the container's name. Each moment (CLOCK_MONOTONIC, nanoseconds) is taken before
//! anything else is done about it, and sent as one datagram to the socket `/stamps/socket`: the word
//! `start` or `term`, a space, the nanoseconds, a space, the name. At SIGTERM it leaves.
#![no_std]
#![no_main]

mod sys;

use sys::syscall;

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub const WRITE: usize = 64;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const SOCKET: usize = 198;
    pub const CONNECT: usize = 203;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const CLOCK_GETTIME: usize = 113;
    pub const EXIT_GROUP: usize = 94;
}

const CLOCK_MONOTONIC: usize = 1;
const AF_UNIX: u16 = 1;
const SOCK_DGRAM: usize = 2;
const SIGTERM: isize = 15;
const SOCKET_PATH: &[u8] = b"/stamps/socket\0";

fn main(stack: *const usize) -> ! {
    let born = now();
    let every_signal: u64 = u64::MAX;
    let set = &raw const every_signal as usize;
    // SAFETY: `set` and the socket's address point at memory that outlives the calls; the stack is as the
    // kernel lays it out: the argument count, the arguments' pointers, a null pointer.
    unsafe {
        // Blocked signals are queued even for the first process of a namespace.
        syscall(nr::RT_SIGPROCMASK, 0, set, 0, 8);
        let name = if *stack > 1 { *stack.add(2) as *const u8 } else { c"?".as_ptr().cast() };
        let fd = syscall(nr::SOCKET, AF_UNIX.into(), SOCK_DGRAM, 0, 0);
        let mut address = [0u8; 32];
        put(&mut address, 0, &AF_UNIX.to_ne_bytes());
        let length = put(&mut address, 2, SOCKET_PATH);
        if fd < 0 || syscall(nr::CONNECT, fd as usize, &raw const address as usize, length, 0) < 0 {
            syscall(nr::EXIT_GROUP, 1, 0, 0, 0);
        }
        send(fd as usize, b"start ", born, name);
        loop {
            if syscall(nr::RT_SIGTIMEDWAIT, set, 0, 0, 8) == SIGTERM {
                send(fd as usize, b"term ", now(), name);
                syscall(nr::EXIT_GROUP, 0, 0, 0, 0);
            }
        }
    }
}

fn now() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes a timespec, two 64-bit numbers.
    unsafe { syscall(nr::CLOCK_GETTIME, CLOCK_MONOTONIC, &raw mut time as usize, 0, 0) };
    time[0] * 1_000_000_000 + time[1]
}

/// # Safety
/// `name` must point at a text that ends in a zero byte.
unsafe fn send(fd: usize, word: &[u8], at: u64, name: *const u8) {
    let mut message = [0u8; 160];
    let mut end = put(&mut message, 0, word);
    let mut digits = [0u8; 20];
    let (mut first, mut rest) = (digits.len(), at);
    while first == digits.len() || rest > 0 {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    end = put(&mut message, end, &digits[first..]);
    end = put(&mut message, end, b" ");
    for index in 0..message.len() {
        // SAFETY: not past the zero byte, which ends the loop.
        let byte = unsafe { *name.add(index) };
        if byte == 0 {
            break;
        }
        end = put(&mut message, end, &[byte]);
    }
    // SAFETY: the message is on this stack.
    unsafe { syscall(nr::WRITE, fd, &raw const message as usize, end, 0) };
}

/// Copies as much of `bytes` as has room at `at`; byte by byte, as there is no memcpy to call.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    let mut end = at;
    for &byte in bytes {
        if let Some(place) = into.get_mut(end) {
            // SAFETY: `place` is a valid reference; a volatile write keeps the loop a loop.
            unsafe { core::ptr::write_volatile(place, byte) };
            end += 1;
        }
    }
    end
}
