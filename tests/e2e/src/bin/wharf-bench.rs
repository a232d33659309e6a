//! Ours beside the original's, in one run: `cargo run --release -p wharf-e2e --bin wharf-bench`.
//!
//! The original takes part where `scripts/openhands-venv` has installed it (or `--original PYTHON` names another interpreter, `--original none` leaves it out).
//! Every figure is a median of several rounds on this machine; what counts is their ratio.
#![allow(clippy::print_stdout, reason = "its output is its result")]

use std::{
    fs::File,
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

const KEY: &str = "the-key-of-the-benchmark";
const MEGA: f64 = 1_000_000.0;

/// Starts this program again where ~/.bashrc is empty: what it does at each prompt would be measured with the rest.
fn leave_bashrc_behind() {
    const AWAY: &str = "WHARF_BENCH_APART";
    if std::env::var_os(AWAY).is_some() {
        return;
    }
    let script = "touch ~/.bashrc; mount --bind /dev/null ~/.bashrc; exec \"$0\" \"$@\"";
    let ourselves = std::env::current_exe().expect("a program knows its own file");
    let error = Command::new("unshare")
        .args(["--mount", "sh", "-ec", script])
        .arg(ourselves)
        .args(std::env::args_os().skip(1))
        .env(AWAY, "1")
        .exec();
    panic!("unshare is needed, and to be root: {error}");
}

fn main() {
    leave_bashrc_behind();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let ours = Server::Ours(wharf_e2e::program("wharf-sandboxd"));
    let original = original().map(Server::Original);
    println!("{:<48} {:>12} {:>12} {:>8}", "", "wharf", "original", "ratio");
    for (name, unit, rounds, measure) in [
        ("start to /alive", "ms", 20, start as fn(&Server, &Path, usize) -> Vec<(&'static str, f64)>),
        ("one session", "", 2000, echo),
        ("100 MB of output", "", 1, flood),
    ] {
        let mine = measure(&ours, folder.path(), rounds);
        // The original needs seconds and 150 ms where ours needs milliseconds.
        let its = original.as_ref().map(|server| measure(server, folder.path(), rounds.div_ceil(40).max(1)));
        for (at, (what, value)) in mine.iter().enumerate() {
            let other = its.as_ref().and_then(|its| its.get(at)).map(|(_, value)| *value);
            let label = format!("{name}: {what} {unit}");
            row(label.trim(), *value, other);
        }
    }
    for (what, value) in [sessions(&ours, folder.path()), first_byte()] {
        row(what, value, None);
    }
    transfer(&ours, folder.path());
}

fn row(label: &str, value: f64, other: Option<f64>) {
    let (other, ratio) = match other {
        Some(other) => (format!("{other:.2}"), format!("{:.1}x", other / value)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    println!("{label:<48} {value:>12.2} {other:>12} {ratio:>8}");
}

fn original() -> Option<PathBuf> {
    let named = std::env::args().skip_while(|argument| argument != "--original").nth(1).map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    named.or_else(|| Some(home.join(".cache/wharf/openhands-0.62/bin/python"))).filter(|python| python.exists())
}

enum Server {
    Ours(PathBuf),
    Original(PathBuf),
}

struct Running {
    child: Child,
    url: String,
    agent: ureq::Agent,
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it as OpenHands does, and waits until `/alive` answers well.
    fn start(&self, folder: &Path) -> Running {
        let port = wharf_e2e::free_port();
        let mut command = match self {
            Self::Ours(program) => Command::new(program),
            Self::Original(python) => {
                let mut command = Command::new(python);
                command.args(["-m", "openhands.runtime.action_execution_server"]);
                command
            }
        };
        command.arg(port.to_string()).args(["--working-dir", &folder.display().to_string(), "--username", "root"]);
        if let Self::Original(_) = self {
            command.args(["--user-id", "0", "--no-enable-browser"]);
        }
        command.env("SESSION_API_KEY", KEY).env("LOG_LEVEL", "ERROR").env("RUST_LOG", "error");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let running = Running { child, url: format!("http://127.0.0.1:{port}"), agent };
        let started = Instant::now();
        while !running.alive() {
            assert!(started.elapsed() < Duration::from_secs(120), "the server does not answer /alive");
            std::thread::sleep(Duration::from_micros(500));
        }
        running
    }
}

impl Running {
    fn alive(&self) -> bool {
        self.agent.get(format!("{}/alive", self.url)).call().is_ok_and(|answer| answer.status() == 200)
    }

    fn run(&self, command: &str) -> Value {
        let action =
            json!({ "action": { "action": "run", "timeout": 100, "args": { "command": command, "blocking": true } } });
        self.agent
            .post(format!("{}/execute_action", self.url))
            .header("X-Session-API-Key", KEY)
            .send_json(action)
            .and_then(|mut answer| answer.body_mut().with_config().limit(1 << 30).read_json())
            .expect("an answer")
    }

    fn resident_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / MEGA
    }
}

fn start(server: &Server, folder: &Path, rounds: usize) -> Vec<(&'static str, f64)> {
    let times = (0..rounds).map(|_| {
        let started = Instant::now();
        let running = server.start(folder);
        let time = milliseconds(started);
        drop(running);
        time
    });
    vec![("median", quantile(times.collect(), 0.5))]
}

fn echo(server: &Server, folder: &Path, rounds: usize) -> Vec<(&'static str, f64)> {
    let running = server.start(folder);
    assert_eq!(running.run("echo hello")["content"], "hello");
    let resident = running.resident_mb();
    let mut times = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        let answer = running.run("echo hello");
        times.push(milliseconds(started));
        assert_eq!(answer["content"], "hello");
    }
    vec![
        ("resident memory MB", resident),
        ("echo p50 ms", quantile(times.clone(), 0.5)),
        ("echo p99 ms", quantile(times, 0.99)),
    ]
}

fn flood(server: &Server, folder: &Path, _: usize) -> Vec<(&'static str, f64)> {
    let running = server.start(folder);
    running.run("echo hello");
    let started = Instant::now();
    let answer = running.run("yes 0123456789012345678901234567890123456789 | head -c 100000000");
    let time = milliseconds(started);
    assert!(answer["content"].as_str().is_some_and(|content| !content.is_empty()), "{answer}");
    vec![("seconds", time / 1000.0), ("resident memory after MB", running.resident_mb())]
}

/// 32 sessions at once over the native API, 50 commands in each.
fn sessions(server: &Server, folder: &Path) -> (&'static str, f64) {
    let running = server.start(folder);
    let post = |path: &str, body: Value| -> Value {
        running
            .agent
            .post(format!("{}{path}", running.url))
            .header("Authorization", format!("Bearer {KEY}"))
            .send_json(body)
            .and_then(|mut answer| answer.body_mut().read_json())
            .expect("an answer")
    };
    for session in 0..32 {
        post("/v1/sessions", json!({ "id": format!("s{session}") }));
    }
    let mut times: Vec<f64> = std::thread::scope(|scope| {
        let post = &post;
        let threads: Vec<_> = (0..32)
            .map(|session| {
                scope.spawn(move || {
                    let path = format!("/v1/sessions/s{session}/run");
                    post(&path, json!({ "command": "true" }));
                    let one = |_| {
                        let started = Instant::now();
                        let answer = post(&path, json!({ "command": "echo hello" }));
                        assert_eq!(answer["output"], "hello", "{answer}");
                        milliseconds(started)
                    };
                    (0..50).map(one).collect::<Vec<f64>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
    });
    times.sort_by(f64::total_cmp);
    ("32 sessions at once: echo p50 ms", quantile(times, 0.5))
}

/// From the command line to the first byte of a new sandbox on this machine.
fn first_byte() -> (&'static str, f64) {
    let wharf = wharf_e2e::program("wharf");
    let state = tempfile::tempdir().expect("a temporary directory");
    let time = |_| {
        let started = Instant::now();
        let mut child = Command::new(&wharf)
            .args(["run", "--", "echo", "hello"])
            .env("WHARF_STATE_DIR", state.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("wharf starts");
        let mut byte = [0];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut byte).expect("wharf run prints; try it by hand");
        let time = milliseconds(started);
        assert!(child.wait().is_ok_and(|status| status.success()));
        time
    };
    ("wharf run: command line to first byte, median ms", quantile((0..20).map(time).collect(), 0.5))
}

/// 1 GB up and down, against `tar` over a pipe.
fn transfer(server: &Server, folder: &Path) {
    const SIZE: u64 = 1_000_000_000;
    let running = server.start(folder);
    let from = folder.join("big");
    // Not zeros: a sparse file would be no work. /dev/urandom is slow, a repeated block is not compressible over a pipe either.
    let mut block = vec![0; 1 << 20];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut block)).expect("random bytes");
    let mut file = File::create(&from).expect("a file");
    let mut left = SIZE;
    while left > 0 {
        let part = left.min(block.len() as u64);
        std::io::Write::write_all(&mut file, &block[..part as usize]).expect("1 GB of room");
        left -= part;
    }
    drop(file);
    let to = folder.join("copy");
    let url = |path: &Path| format!("{}/v1/files/content?path={}", running.url, path.display());
    let key = format!("Bearer {KEY}");
    let (mut up, mut down, mut tar) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let started = Instant::now();
        let script = format!("mkdir -p {0}/t && tar -C {0} -cf - big | tar -C {0}/t -xf -", folder.display());
        assert!(Command::new("sh").args(["-c", &script]).status().is_ok_and(|status| status.success()));
        tar.push(milliseconds(started));
        let started = Instant::now();
        let body = File::open(&from).expect("the file");
        let answer = running.agent.put(url(&to)).header("Authorization", &key).send(&body).expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        up.push(milliseconds(started));
        assert_eq!(std::fs::metadata(&to).expect("the copy").len(), SIZE);
        let started = Instant::now();
        let mut answer = running.agent.get(url(&to)).header("Authorization", &key).call().expect("an answer");
        let mut back = File::create(folder.join("back")).expect("a file");
        let count = std::io::copy(&mut answer.body_mut().as_reader(), &mut back).expect("all of it");
        assert_eq!(count, SIZE);
        down.push(milliseconds(started));
    }
    let (tar, up, down) = (quantile(tar, 0.5), quantile(up, 0.5), quantile(down, 0.5));
    println!(
        "1 GB: tar over a pipe {tar:.0} ms, upload {up:.0} ms ({:.2}x), download {down:.0} ms ({:.2}x)",
        up / tar,
        down / tar
    );
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at).round() as usize]
}
