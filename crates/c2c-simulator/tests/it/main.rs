//! The simulator as a client sees it: real sockets, real TLS, a clock that is moved by hand.
//!
//! The client here is written on hyper alone, so that a bug it would share with the product's client cannot hide.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod admin;
mod assets;
mod client;
mod faults;
mod pairing;
mod realtime;
mod uploads;
mod websocket;
