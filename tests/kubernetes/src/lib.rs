//! What tests against a real Kubernetes share: the cluster with a namespace of the test's own, and a proxy in front of the
//! API server that fails on request.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

pub mod cli;
pub mod cluster;
pub mod fault_proxy;
pub mod sandbox;
