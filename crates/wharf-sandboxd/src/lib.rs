//! The action execution server: the one process that Wharf runs inside every sandbox.
//!
//! Inside out: a pure middle (`transcript`, `screen`, `editor`, the dialects' texts), the things that do I/O
//! (`session`, `exec`, `files`, `process`), the state that owns them (`core`), and the HTTP edge (`http`, `dialect`).
//! This crate knows neither Kubernetes nor who its sandbox belongs to.
#![deny(unsafe_code)]

pub mod app;
mod companion;
pub mod core;
pub mod dialect;
pub mod disk_use;
pub mod editor;
pub mod exec;
pub mod files;
pub mod http;
pub mod log;
pub mod options;
pub mod output_log;
mod prepare;
pub mod process;
pub mod pty;
pub mod screen;
pub mod session;
pub mod transcript;
