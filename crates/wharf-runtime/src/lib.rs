//! Where sandboxes live.
//!
//! [`local`] makes a sandbox of confined processes on this machine. This crate creates, finds, stops and removes
//! sandboxes; what is done inside a ready one is the client's.
#![deny(unsafe_code)]

pub mod local;
