//! What this process and its machine use, from `/proc`.

use std::{
    fs,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

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
        "cpu_percent": cpu_percent(),
        "memory": { "rss": bytes(1), "vms": bytes(0), "percent": percent(bytes(1), total) },
        "disk": { "total": disk_total, "used": disk_used, "free": disk_free, "percent": disk_percent },
        "io": { "read_bytes": labelled(&io, "read_bytes:"), "write_bytes": labelled(&io, "write_bytes:") },
    })
}

/// Per cent of one processor since the last question, 0 at the first, as psutil's `Process.cpu_percent` counts it.
fn cpu_percent() -> f64 {
    static LAST: Mutex<Option<(Instant, Duration)>> = Mutex::new(None);
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32);
    let now = Instant::now();
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).replace((now, used));
    last.map_or(0.0, |(then, before)| share(used.saturating_sub(before), now - then))
}

fn share(used: Duration, passed: Duration) -> f64 {
    let percent = if passed.is_zero() { 0.0 } else { used.as_secs_f64() * 100.0 / passed.as_secs_f64() };
    (percent * 10.0).round() / 10.0
}

fn labelled(text: &str, label: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix(label)?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_is_busy_half_the_time_is_fifty_per_cent() {
        assert_eq!(share(Duration::from_millis(500), Duration::from_secs(1)), 50.0);
        assert_eq!(share(Duration::from_millis(1), Duration::from_secs(3)), 0.0);
        assert_eq!(share(Duration::from_secs(1), Duration::ZERO), 0.0);
    }

    #[test]
    fn only_the_first_question_has_no_past_to_compare_with() {
        cpu_percent();
        let mut sum = 0_u64;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(20) {
            sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(7));
        }
        assert!(cpu_percent() > 0.0, "{sum}");
    }
}
