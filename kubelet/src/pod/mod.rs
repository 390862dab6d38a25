//! Pods: what each one's actor does and the pure rules it follows.

pub mod translate;
