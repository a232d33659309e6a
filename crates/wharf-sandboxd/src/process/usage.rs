//! What this process and its machine use, from `/proc`.

use std::fs;

use serde_json::{Value, json};

/// The `resources` of `/server_info`: section 3.2 of the specification. What cannot be read is 0.
pub fn of_this_process() -> Value {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Vec<u64> = status.split(' ').filter_map(|field| field.trim().parse().ok()).collect();
    let page = rustix::param::page_size() as u64;
    let bytes = |at: usize| pages.get(at).copied().unwrap_or(0) * page;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = labelled(&memory, "MemTotal:") * 1024;
    let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let (disk_total, disk_free, disk_used) = rustix::fs::statvfs("/").map_or((0, 0, 0), |stat| {
        let used = stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize;
        (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize, used)
    });
    let disk_percent = (percent(disk_used, disk_used + disk_free) * 10.0).round() / 10.0;
    json!({
        "cpu_percent": 0.0,
        "memory": { "rss": bytes(1), "vms": bytes(0), "percent": percent(bytes(1), total) },
        "disk": { "total": disk_total, "used": disk_used, "free": disk_free, "percent": disk_percent },
        "io": { "read_bytes": labelled(&io, "read_bytes:"), "write_bytes": labelled(&io, "write_bytes:") },
    })
}

fn labelled(text: &str, label: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(label)?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
