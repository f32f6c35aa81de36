//! How much goes on at once and how fast.

pub mod concurrency;
