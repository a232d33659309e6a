//! The built sandboxd as a process: its duties, its command line, its limits on connections.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    net::TcpStream,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

mod files;
mod limits;
mod processes;
mod sessions;

const SECRET: &str = "the-bind-secret-of-a-test";
const KEY: &str = "the-key-of-a-test";

/// Long enough for a busy machine; nothing waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer; for what no event tells of.
#[track_caller]
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come to be");
        std::thread::yield_now();
    }
}

fn agent() -> ureq::Agent {
    let patience = Some(Duration::from_secs(120));
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(patience).build().into()
}

struct Server {
    child: Child,
    port: u16,
    home: TempDir,
    agent: ureq::Agent,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// A blank server; `prefix` is what it is started through.
    fn blank(prefix: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        // For whomever it is started as.
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777);
        std::fs::set_permissions(home.path(), open).unwrap();
        let secret = home.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let port = wharf_e2e::free_port();
        let program = wharf_e2e::program("wharf-sandboxd").display().to_string();
        let argv: Vec<&str> =
            prefix.iter().copied().chain([program.as_str(), "serve", "--stop-seconds", "1"]).collect();
        let child = Command::new(argv[0])
            .args(&argv[1..])
            .arg("--listen")
            .arg(format!("tcp:127.0.0.1:{port}"))
            .arg("--bind-secret-file")
            .arg(&secret)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", argv[0]));
        Self { child, port, home, agent: agent() }.listening()
    }

    /// A server that was started with OpenHands' command line, and speaks its dialect.
    fn openhands() -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().to_owned();
        Self::openhands_in(home, &directory, &["--username", "root"], &[("NO_CHANGE_TIMEOUT_SECONDS", "10")])
    }

    /// The same with more of its command line and its environment.
    fn openhands_in(home: TempDir, working_dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let port = wharf_e2e::free_port();
        let child = Command::new(wharf_e2e::program("wharf-sandboxd"))
            .args([&port.to_string(), "--working-dir"])
            .arg(working_dir)
            .args(arguments)
            .env_remove("SESSION_API_KEY")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port, home, agent: agent() }.listening()
    }

    fn listening(mut self) -> Self {
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "the server has ended");
            std::thread::yield_now();
        }
        self
    }

    fn bound(prefix: &[&str], limits: Value) -> Self {
        let server = Self::blank(prefix);
        // A shell reads nothing of whoever runs the tests.
        let environment = json!({ "HOME": server.home.path() });
        let home = server.home.path();
        let request = json!({ "keys": [KEY], "working_dir": home, "limits": limits, "environment": environment });
        assert_eq!(server.post(SECRET, "/v1/bind", &request).0, 204);
        server
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn post(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.agent.post(self.url(path)).header("Authorization", format!("Bearer {key}"));
        let mut answer = request.send_json(body).unwrap();
        // The output of a command alone may be larger than the ten megabytes that are read if nothing is said.
        let body = answer.body_mut().with_config().limit(64 << 20).read_json();
        (answer.status().as_u16(), body.unwrap_or(Value::Null))
    }

    fn get(&self, path: &str) -> Value {
        let request = self.agent.get(self.url(path)).header("Authorization", format!("Bearer {KEY}"));
        request.call().unwrap().body_mut().read_json().unwrap()
    }

    fn delete(&self, path: &str) {
        let (status, problem) = self.delete_for(path);
        assert_eq!(status, 204, "{problem}");
    }

    /// The status of a DELETE, and what is wrong.
    fn delete_for(&self, path: &str) -> (u16, Value) {
        let request = self.agent.delete(self.url(path)).header("Authorization", format!("Bearer {KEY}"));
        let mut answer = request.call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap_or_default())
    }

    /// Runs a command in a session; gives what it printed.
    fn run(&self, command: &str) -> String {
        self.post(KEY, "/v1/sessions", &json!({ "id": "s" }));
        let (status, result) = self.post(KEY, "/v1/sessions/s/run", &json!({ "command": command }));
        assert_eq!(status, 200, "{result}");
        result["output"].as_str().unwrap().trim().to_owned()
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn sigterm_ends_all_that_was_started_and_the_server_with_success() {
    let mut server = Server::bound(&[], json!({}));
    let script = "setsid sh -c 'trap \"\" TERM HUP; echo $$ > away; exec sleep 1000' >/dev/null 2>&1 & \
                  while ! [ -s away ]; do :; done";
    server.run(script);
    let away = server.run("cat away");
    let (_, exec) = server.post(KEY, "/v1/execs", &json!({ "argv": ["sleep", "1000"] }));
    let exec = exec["pid"].to_string();
    assert!(is_alive(&away) && is_alive(&exec), "{away} {exec}");
    rustix::process::kill_process(Pid::from_child(&server.child), Signal::TERM).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(!is_alive(&away) && !is_alive(&exec), "{away} {exec}");
}

#[test]
fn as_the_first_process_it_reaps_what_others_leave() {
    let server = Server::bound(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], json!({}));
    assert_eq!(server.run("cat /proc/1/comm"), "wharf-sandboxd");
    // Orphans that end are nobody's children but the first process's.
    server.run("for i in 1 2 3 4 5; do (sleep 0.01 &); done; sleep 0.2");
    assert_eq!(server.run("cat /proc/[0-9]*/stat | grep -c ') Z '"), "0");
}

#[test]
fn a_tree_is_ended_also_where_our_own_session_began_in_another_namespace() {
    // What `bwrap --unshare-pid` and container runtimes do: getsid gives 0 there.
    let enter = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "\"$@\" & wait", "sh"];
    let server = Server::bound(&enter, json!({}));
    let (_, exec) = server.post(KEY, "/v1/execs", &json!({ "argv": ["sh", "-c", "setsid sleep 1000 & wait"] }));
    let id = exec["id"].as_str().unwrap();
    server.delete(&format!("/v1/execs/{id}"));
    assert_eq!(server.run("cat /proc/[0-9]*/comm | grep -c sleep"), "0");
}

#[test]
fn in_a_container_it_passes_the_images_variables_on_and_gives_a_nameless_user_a_home() {
    let as_nobody_known = ["setpriv", "--reuid", "43210", "--regid", "43210", "--clear-groups"];
    let as_an_image_says = ["env", "-i", "HOME=/", "FROM_IMAGE=yes", "BOTH=image", "PATH=/usr/bin:/bin:/image"];
    let server = Server::blank(&[as_nobody_known.as_slice(), &as_an_image_says].concat());
    let home = server.home.path().display().to_string();
    let environment = json!({ "BOTH": "bound" });
    let request = json!({
        "keys": [KEY], "working_dir": home, "environment": environment, "inherit_environment": true,
    });
    assert_eq!(server.post(SECRET, "/v1/bind", &request).0, 204);
    assert_eq!(server.run("echo $FROM_IMAGE $BOTH $PATH"), "yes bound /usr/bin:/bin:/image");
    assert_eq!(server.run("echo ~; id -u"), format!("{home}\n43210"));
    // It cannot become anybody else, and says so.
    for other in ["root", "4711"] {
        let (status, problem) = server.post(KEY, "/v1/execs", &json!({ "argv": ["true"], "user": other }));
        assert_eq!((status, &problem["field"]), (400, &json!("user")), "{problem}");
    }
    assert_eq!(server.post(KEY, "/v1/execs", &json!({ "argv": ["true"], "user": "43210" })).0, 201);
}

#[test]
fn it_copies_itself_to_where_another_image_starts_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display().to_string();
    assert!(sandboxd(&["install", &at]).status.success());
    let copy = directory.path().join("wharf-sandboxd");
    assert!(Command::new(copy).arg("--version").output().unwrap().status.success());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    let refused = sandboxd(&["install", "/nowhere"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/nowhere/wharf-sandboxd"), "{refused:?}");
}

#[test]
fn a_hundred_megabytes_of_output_stay_in_bounds_and_slow_nobody() {
    let server = Server::bound(&[], json!({ "output_bytes": 1 << 20 }));
    let argv = json!({ "argv": ["sh", "-c", "yes 0123456789 | head -c 100000000"] });
    let (_, exec) = server.post(KEY, "/v1/execs", &argv);
    let id = exec["id"].as_str().unwrap();
    assert_eq!(server.run("echo beside"), "beside");
    let ended = server.get(&format!("/v1/execs/{id}/wait?timeout_ms=100000"));
    assert_eq!((&ended["state"], &ended["output_end"]), (&json!("exited"), &json!(100_000_000)));
    let resident = server.get("/v1/info")["resident_bytes"].as_u64().unwrap();
    assert!(resident < 64 << 20, "{resident}");
}

fn sandboxd(arguments: &[&str]) -> Output {
    Command::new(wharf_e2e::program("wharf-sandboxd")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_wrong_command_line_is_refused_with_its_reason() {
    for (arguments, reason) in [
        (&["not-a-port"][..], "not-a-port"),
        (&["70000"], "70000"),
        (&["serve"], "--listen"),
        (&["serve", "--listen", "unix:relative", "--bind-secret-fd", "3"], "unix:relative"),
        (&["serve", "--listen", "tcp:127.0.0.1:0", "--bind-secret-fd", "77"], "77"),
        (&["serve", "--listen", "tcp:127.0.0.1:0", "--bind-secret-file", "/none"], "/none"),
    ] {
        let output = sandboxd(arguments);
        assert!(!output.status.success() && output.status.signal().is_none(), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}
