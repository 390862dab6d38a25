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
