//! Files as the sandbox's user: what a caller may not do by a shell there, no route of sandboxd does for it.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;

/// A user of every image, without rights.
const NOBODY: u32 = 65_534;

fn bound_as_nobody() -> Server {
    let server = Server::blank(&[]);
    let user = json!({ "name": "nobody" });
    let request = json!({ "keys": [KEY], "working_dir": server.home.path(), "user": user });
    assert_eq!(server.post(SECRET, "/v1/bind", &request).0, 204, "run the tests as root");
    server
}

impl Server {
    fn put(&self, path: &str, body: &[u8]) -> (u16, String) {
        let request = self.agent.put(self.url(path)).header("Authorization", format!("Bearer {KEY}"));
        // A body that is refused unread ends its connection.
        let request = request.header("Connection", "close");
        let mut answer = request.send(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap_or_default())
    }

    fn status(&self, method: &str, path: &str) -> u16 {
        let authorization = format!("Bearer {KEY}");
        let answer = match method {
            "GET" => self.agent.get(self.url(path)).header("Authorization", authorization).call(),
            _ => self.agent.delete(self.url(path)).header("Authorization", authorization).call(),
        };
        answer.unwrap().status().as_u16()
    }

    /// Started with OpenHands' command line, with `nobody` as the agent's user.
    fn of_nobody(working_dir: &Path) -> Self {
        let arguments = ["--username", "nobody", "--user-id", &NOBODY.to_string()];
        let environment = [("RUNTIME_USERNAME", "nobody"), ("SESSION_API_KEY", KEY)];
        Self::openhands_in(tempfile::tempdir().unwrap(), working_dir, &arguments, &environment)
    }

    fn act(&self, action: &str, arguments: Value) -> Value {
        let request = self.agent.post(self.url("/execute_action")).header("X-Session-API-Key", KEY);
        let body = json!({ "action": { "action": action, "args": arguments } });
        request.send_json(body).unwrap().body_mut().read_json().unwrap()
    }

    /// The port of the file viewer: what it listens at beside its own.
    fn viewer_port(&self) -> u16 {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let sockets: HashSet<_> = descriptors
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let listening = table.lines().skip(1).filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (address, port) = fields[1].split_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            let is_viewer = fields[3] == "0A" && sockets.contains(fields[9]) && port != self.port;
            assert!(!is_viewer || address == "0100007F", "it listens on the loopback interface alone: {line}");
            is_viewer.then_some(port)
        });
        listening.last().expect("a file viewer listens")
    }
}

/// A directory of root's that everybody may look at, with a file that nobody else may read.
fn roots_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let secret = directory.path().join("secret.png");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
    directory
}

fn untouched(directory: &Path) {
    let entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(entries, ["secret.png"]);
    let metadata = fs::metadata(directory.join("secret.png")).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o600));
    assert_eq!(fs::metadata(directory).unwrap().uid(), 0);
    assert_eq!(fs::read(directory.join("secret.png")).unwrap(), b"secret");
}

#[test]
fn every_route_of_files_has_the_rights_of_the_sandboxs_user() {
    let server = bound_as_nobody();
    let roots = roots_directory();
    let link = server.home.path().join("link");
    symlink(roots.path(), &link).unwrap();
    let archive = {
        let mut builder = Command::new("tar");
        let made = builder.args(["-C", "/etc", "-cf", "-", "hostname"]).output().unwrap();
        assert!(made.status.success());
        made.stdout
    };
    for at in [roots.path(), &link] {
        let at = at.display();
        for (method, path) in [
            ("GET", format!("/v1/files/content?path={at}/secret.png")),
            ("GET", format!("/v1/files/archive?path={at}/secret.png")),
            ("DELETE", format!("/v1/files?path={at}/secret.png")),
            ("DELETE", format!("/v1/files?path={at}/.&recursive=true")),
        ] {
            assert!(server.status(method, &path) >= 400, "{method} {path}");
        }
        for path in [
            format!("/v1/files/content?path={at}/evil"),
            format!("/v1/files/content?path={at}/secret.png"),
            format!("/v1/files/content?path={at}/a/b/evil&parents=true"),
            format!("/v1/files/archive?path={at}"),
            format!("/v1/files/archive?path={at}/sub"),
        ] {
            let (status, body) = server.put(&path, &archive);
            assert!(status >= 400, "{path}: {body}");
        }
        for (path, request) in [
            ("/v1/files/directory", json!({ "path": format!("{at}/evil") })),
            ("/v1/files/move", json!({ "from": format!("{at}/secret.png"), "to": "/tmp/moved" })),
        ] {
            let (status, problem) = server.post(KEY, path, &request);
            assert!(status >= 400, "{path}: {problem}");
        }
        let (_, found) = server.post(KEY, "/v1/files/search", &json!({ "path": at.to_string(), "pattern": "secret" }));
        assert_eq!((&found["matches"], &found["unsearched"]), (&json!([]), &json!(1)), "{found}");
    }
    untouched(roots.path());
    // What it may, it does, and it is its own.
    let home = server.home.path().display();
    assert_eq!(server.put(&format!("/v1/files/content?path={home}/own/file&parents=true"), b"x").0, 200);
    assert_eq!(server.put(&format!("/v1/files/archive?path={home}/own"), &archive).0, 200);
    for name in ["own", "own/file", "own/hostname"] {
        assert_eq!(fs::metadata(server.home.path().join(name)).unwrap().uid(), NOBODY, "{name}");
    }
    // Its own links work.
    symlink("own", server.home.path().join("to-own")).unwrap();
    assert_eq!(server.put(&format!("/v1/files/content?path={home}/to-own/file"), b"new").0, 200);
    assert_eq!(fs::read(server.home.path().join("own/file")).unwrap(), b"new");
}

#[test]
fn a_link_that_is_swapped_in_meanwhile_leads_nowhere() {
    let server = bound_as_nobody();
    let roots = roots_directory();
    let (at, aside) = (server.home.path().join("at"), server.home.path().join("aside"));
    fs::create_dir(&at).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o777)).unwrap();
    symlink(roots.path(), &aside).unwrap();
    let requests = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let shown = at.display();
            for number in 0..200 {
                server.put(&format!("/v1/files/content?path={shown}/{number}/file&parents=true"), b"x");
                server.post(KEY, "/v1/files/directory", &json!({ "path": format!("{shown}/d{number}") }));
                requests.fetch_add(1, Ordering::Relaxed);
            }
        });
        while !asking.is_finished() {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &at, rustix::fs::CWD, &aside, exchange).unwrap();
        }
    });
    assert_eq!(requests.into_inner(), 200);
    untouched(roots.path());
}

#[test]
fn a_request_about_files_is_bounded() {
    let server = Server::bound(&[], json!({}));
    for path in ["move", "directory", "search"] {
        let mut connection = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let request = format!(
            "POST /v1/files/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            (1 << 20) + 1
        );
        connection.write_all(request.as_bytes()).unwrap();
        connection.write_all(&vec![b' '; (1 << 20) + 1]).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_file_to_every_way_of_writing() {
    let directory = tempfile::tempdir().unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=128k", "none"]).arg(directory.path()).status();
    assert!(mount.unwrap().success(), "run the tests as root");
    let server = Server::of_nobody(directory.path());
    let file = directory.path().join("file");
    let old = "old line\n".repeat(9000);
    fs::write(&file, &old).unwrap();
    chown(&file, Some(NOBODY), Some(0)).unwrap();
    let shown = file.display().to_string();
    let edit = server.act(
        "edit",
        json!({ "path": shown, "command": "insert", "insert_line": 0, "new_str": "new", "impl_source": "oh_aci" }),
    );
    assert!(edit["content"].as_str().unwrap().contains("No space left"), "{edit}");
    let write = server.act("write", json!({ "path": shown, "content": "new\n".repeat(20_000), "start": 0, "end": 1 }));
    assert!(write.to_string().contains("No space left"), "{write}");
    let (status, body) = server.put(&format!("/v1/files/content?path={shown}"), &[b'n'; 60_000]);
    assert!(status >= 400 && body.contains("No space left"), "{status} {body}");
    let (left, entries) = (fs::read_to_string(&file).unwrap(), fs::read_dir(directory.path()).unwrap().count());
    drop(server);
    assert!(Command::new("umount").arg("-l").arg(directory.path()).status().unwrap().success());
    assert!(left == old && entries == 1, "{} bytes, {entries} entries", left.len());
}

#[test]
fn an_upload_that_is_cut_leaves_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::of_nobody(directory.path());
    let file = directory.path().join("file");
    fs::write(&file, vec![b'o'; 9000]).unwrap();
    chown(&file, Some(NOBODY), Some(0)).unwrap();
    let directory = directory.path().display();
    let form = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"file\"\r\n\r\nnew";
    for request in [
        format!(
            "POST /upload_file?destination={directory} HTTP/1.1\r\nhost: x\r\nx-session-api-key: {KEY}\r\n\
             content-type: multipart/form-data; boundary=b\r\ncontent-length: 100000\r\n\r\n{form}"
        ),
        format!(
            "PUT /v1/files/content?path={directory}/file HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
             content-length: 100000\r\n\r\nnew"
        ),
    ] {
        let mut connection = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        // Until the server has given up.
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
        assert_eq!(fs::read(&file).unwrap(), vec![b'o'; 9000]);
    }
}

#[test]
fn a_signal_that_ends_sandboxd_waits_for_a_file_that_is_written_in_place() {
    const BYTES: usize = 128 << 20;
    for signal in [Signal::TERM, Signal::HUP] {
        let mut server = Server::bound(&[], json!({}));
        let [path, other] = ["file", "other"].map(|name| server.home.path().join(name));
        fs::write(&path, vec![b'o'; BYTES]).unwrap();
        // With a second name it stays the file that it is.
        fs::hard_link(&path, &other).unwrap();
        let file = fs::File::open(&other).unwrap();
        let is_new = |offset: usize| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset as u64).unwrap();
            byte == [b'n']
        };
        let request = server.agent.put(server.url(&format!("/v1/files/content?path={}", path.display())));
        let request = request.header("Authorization", format!("Bearer {KEY}"));
        let sandboxd = Pid::from_child(&server.child);
        std::thread::scope(|scope| {
            // Whether it is answered is not promised.
            scope.spawn(move || drop(request.send(&vec![b'n'; BYTES][..])));
            while server.child.try_wait().unwrap().is_none() && !is_new(0) {
                std::thread::yield_now();
            }
            rustix::process::kill_process(sandboxd, Signal::STOP).unwrap();
            assert!(!is_new(BYTES - 1), "it was too fast to be stopped in the middle");
            rustix::process::kill_process(sandboxd, signal).unwrap();
            rustix::process::kill_process(sandboxd, Signal::CONT).unwrap();
            assert_eq!(server.child.wait().unwrap().code(), Some(0), "{signal:?}");
        });
        assert!(fs::read(&other).unwrap() == vec![b'n'; BYTES], "{signal:?}");
        assert!(
            fs::read_dir(server.home.path()).unwrap().all(|it| !it
                .unwrap()
                .file_name()
                .as_encoded_bytes()
                .starts_with(b".wharf"))
        );
    }
}

#[test]
fn an_existing_working_directory_becomes_the_agents() {
    let directory = tempfile::tempdir().unwrap();
    let workspace = directory.path().join("workspace");
    fs::create_dir(&workspace).unwrap();
    fs::write(workspace.join("of-root"), "").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&workspace, fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::of_nobody(&workspace);
    let run = server.act("run", json!({ "command": "touch new && echo more >> of-root && id -u" }));
    assert_eq!((&run["extras"]["metadata"]["exit_code"], &run["content"]), (&json!(0), &json!("65534")), "{run}");
    let metadata = fs::metadata(&workspace).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (NOBODY, 0, 0o775));
}

#[test]
fn the_file_viewer_shows_what_the_agent_may_read_and_nothing_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let roots = roots_directory();
    let workspace = directory.path().join("workspace");
    fs::create_dir(&workspace).unwrap();
    fs::write(workspace.join("own.png"), "shown").unwrap();
    let server = Server::of_nobody(&workspace);
    server.act(
        "run",
        json!({ "command": format!("ln -s /proc/self/environ e.png; ln -s {} d", roots.path().display()) }),
    );
    let viewer = server.viewer_port();
    let view = |path: PathBuf, host: &str| {
        let url = format!("http://127.0.0.1:{viewer}/view?path={}", path.display());
        let mut answer = server.agent.get(url).header("host", host).call().unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    let here = format!("localhost:{viewer}");
    let (status, page) = view(workspace.join("own.png"), &here);
    // `shown` in base64.
    assert!(status == 200 && page.contains("c2hvd24="), "{status} {page}");
    for path in [workspace.join("e.png"), roots.path().join("secret.png"), workspace.join("d/secret.png")] {
        let (status, page) = view(path.clone(), &here);
        assert!(status == 500 && !page.contains("base64"), "{}: {status} {page}", path.display());
    }
    fs::File::create(workspace.join("large.png")).unwrap().set_len((64 << 20) + 1).unwrap();
    let (status, page) = view(workspace.join("large.png"), &here);
    assert!(status == 500 && page.contains("at most 67108864 bytes"), "{status} {page}");
    // A name of somebody else's that leads here.
    assert_eq!(view(workspace.join("own.png"), "evil.example").0, 403);
    // What is root's stays so, also what the agent might name.
    chown(workspace.join("own.png"), Some(0), Some(0)).unwrap();
    fs::set_permissions(workspace.join("own.png"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(view(workspace.join("own.png"), &here).0, 500);
}
