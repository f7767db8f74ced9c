//! The front door: arguments, logging, runtime, exit code.

fn main() {}
