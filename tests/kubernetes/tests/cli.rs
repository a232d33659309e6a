//! The built `wharf`, used as a person would, with sandboxes in a real cluster.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use wharf_kubernetes_tests::{
    cli::wharf,
    cluster::{Namespace, RESTRICTED, list_objects, settle, with_labelled_namespace, with_namespace},
    fault_proxy::{Action, Fault, FaultProxy, Gate, Match, Verb},
};

const IMAGE: &str = "localhost/wharf/debian:test";
/// All that a sandbox called `box` consists of.
const BOX: [&str; 5] = [
    "NetworkPolicy/wharf-box",
    "PersistentVolumeClaim/wharf-box",
    "Pod/wharf-box",
    "Secret/wharf-box",
    "Service/wharf-box",
];
/// Sends what is said to a program's terminal, each once what comes before it is seen; shows all that the program printed.
const TERMINAL: &str = r"
import json, os, pty, select, sys, time
argv, dialogue = json.loads(sys.argv[1])
child, terminal = pty.fork()
if child == 0:
    os.execv(argv[0], argv)
seen, at, deadline = b'', 0, time.time() + 60
def read():
    global seen
    if time.time() > deadline or not select.select([terminal], [], [], deadline - time.time())[0]:
        sys.exit('nothing more came: %r' % seen)
    try:
        data = os.read(terminal, 65536)
    except OSError:
        data = b''
    seen += data
    return data
for expected, sent in dialogue:
    while expected.encode() not in seen[at:]:
        if not read():
            sys.exit('%r did not come: %r' % (expected, seen))
    at = seen.index(expected.encode(), at) + len(expected)
    os.write(terminal, sent.encode())
while read():
    pass
sys.stdout.buffer.write(seen)
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
";

struct Wharf {
    namespace: Namespace,
    files: tempfile::TempDir,
    kubeconfig: PathBuf,
}

impl Wharf {
    fn new(namespace: Namespace) -> Self {
        let kubeconfig = namespace.cluster.kubeconfig.clone();
        let wharf = Self { namespace, files: tempfile::tempdir().unwrap(), kubeconfig };
        wharf.configure("", "");
        wharf
    }

    /// The usual settings and these in `[wharf]` and `[kubernetes]`.
    fn configure(&self, wharf: &str, kubernetes: &str) {
        let policy = if wharf.contains("image_pull_policy") { "" } else { "image_pull_policy = \"Never\"\n" };
        let request = if kubernetes.contains("resource_cpu_request") { "" } else { "resource_cpu_request = \"50m\"\n" };
        self.write(
            "config.toml",
            &format!(
                "[wharf]\nsandboxd_image = \"localhost/wharf/sandboxd:test\"\n{policy}{wharf}\n\
                 [sandbox]\nruntime_container_image = \"{IMAGE}\"\n\
                 [kubernetes]\n{request}resource_memory_request = \"64Mi\"\n{kubernetes}\n"
            ),
        );
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = wharf(self.files.path(), &self.kubeconfig, arguments);
        command.env("WHARF_NAMESPACE", &self.namespace.name);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn check(&self, arguments: &[&str], code: i32, stdout: &str) {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{arguments:?}: {error}");
    }

    /// What is printed by a call that goes well.
    #[track_caller]
    fn get(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.get(&[&["-o", "json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: {text}"))
    }

    /// The call fails, and says each of these.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], code: i32, told: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        for told in told {
            assert!(text.contains(told), "{arguments:?}: {told:?} is not in: {text}");
        }
        text
    }

    /// Runs it on a terminal; gives its exit code and all that came.
    fn on_terminal(&self, arguments: &[&str], dialogue: &[(&str, &str)]) -> (Option<i32>, String) {
        let command = self.command(arguments);
        let argv: Vec<_> =
            [command.get_program()].into_iter().chain(command.get_args()).map(|text| text.to_str().unwrap()).collect();
        let mut terminal = Command::new("python3");
        terminal.args(["-c", TERMINAL, &json!([argv, dialogue]).to_string()]);
        for (name, value) in command.get_envs() {
            terminal.env(name, value.unwrap());
        }
        let output = terminal.env("TERM", "xterm").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new("kubectl")
            .args(["--kubeconfig", self.namespace.cluster.kubeconfig.to_str().unwrap(), "-n", &self.namespace.name])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn applied(&self, arguments: &[&str], objects: &str) -> String {
        let output = self.kubectl(arguments, objects);
        assert!(output.status.success(), "{}\n{objects}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn settles(&self, objects: &[&str]) {
        settle(&self.namespace.client, &self.namespace.name, objects).await;
    }

    async fn wait_for_pod(&self, name: &str) {
        let pods = self.namespace.api::<Pod>();
        let deadline = Instant::now() + Duration::from_secs(30);
        while pods.get_opt(name).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "pod {name} does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As if its maker had not been heard of for long.
    async fn expire(&self, anchor: &str) {
        let patch = json!({ "metadata": { "annotations": { "wharf.dev/leased-until": "2026-01-01T00:00:00Z" } } });
        let secrets = self.namespace.api::<Secret>();
        secrets.patch(anchor, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }
}

fn interrupt(child: &std::process::Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

async fn with_wharf(purpose: &str, test: impl AsyncFnOnce(Wharf)) {
    with_namespace(purpose, async |namespace| test(Wharf::new(namespace)).await).await;
}

#[tokio::test]
async fn a_throw_away_sandbox_runs_a_command_and_leaves_nothing() {
    with_wharf("run", async |wharf| {
        wharf.check(&["run", "--", "echo", "hello"], 0, "hello\n");
        wharf.check(&["run", "--", "sh", "-c", "exit 7"], 7, "");
        wharf.check(&["run", "--", "sh", "-c", "kill -9 $$"], 137, "");
        wharf.check(&["run", "--", "no-such-program"], 127, "");
        wharf.check(&["run", "--image", "localhost/wharf/busybox:test", "--", "sh", "-c", "pwd"], 0, "/workspace\n");
        wharf.refuses(&["run", "--timeout", "100ms", "--", "sleep", "1000"], 124, &["time limit of 0.1 s"]);
        let frames = wharf.get(&["-o", "json", "run", "-e", "A=b c", "--", "sh", "-c", "printf \"$A\""]);
        let frames: Vec<Value> = frames.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(frames.last().unwrap()["code"], 0, "{frames:?}");
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn input_is_passed_on_and_streams_stay_apart() {
    with_wharf("input", async |wharf| {
        let mut child = wharf
            .command(&["run", "-i", "--", "sh", "-c", "cat; echo error >&2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let text = "x".repeat(1 << 20);
        let sent = text.clone();
        let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.stdout == text.as_bytes());
        assert_eq!(output.stderr, b"error\n");
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_lives_is_suspended_resumed_and_goes() {
    with_wharf("life", async |wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        wharf.settles(&BOX).await;
        wharf.refuses(&["create", "box"], 125, &["sandbox `box` exists already", "hint: use another name"]);
        wharf.check(&["exec", "box", "--", "sh", "-c", "echo kept > file; pwd"], 0, "/workspace\n");
        wharf.check(&["exec", "-w", "/tmp", "-e", "A=b c", "box", "--", "sh", "-c", "echo $A; pwd"], 0, "b c\n/tmp\n");
        assert!(wharf.get(&["ls"]).contains("box   ready"));
        wharf.check(&["suspend", "box"], 0, "box\n");
        wharf.settles(&BOX[..2].iter().copied().chain([BOX[3]]).collect::<Vec<_>>()).await;
        wharf.check(&["suspend", "box"], 0, "box\n");
        wharf.refuses(&["exec", "box", "--", "true"], 125, &["it is suspended", "`wharf resume 'box'`"]);
        assert!(wharf.get(&["ls"]).contains("box   suspended"));
        wharf.check(&["resume", "box"], 0, "box\n");
        wharf.check(&["exec", "box", "--", "cat", "file"], 0, "kept\n");
        wharf.check(&["create", "other"], 0, "other\n");
        wharf.check(&["rm", "box"], 0, "box\n");
        wharf.refuses(&["rm", "box"], 125, &["there is no sandbox `box`"]);
        wharf.check(&["rm", "--all"], 0, "other\n");
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn output_is_followed_and_watching_ends_nothing() {
    with_wharf("logs", async |wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        let id =
            wharf.get(&["exec", "-d", "box", "--", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done; exit 3"]);
        wharf.check(&["logs", "-f", "box", id.trim()], 3, "1\n2\n3\n");
        wharf.check(&["logs", "box", id.trim()], 0, "1\n2\n3\n");
        wharf.check(&["attach", "box", id.trim(), "--offset", "2"], 3, "2\n3\n");
        assert!(wharf.get(&["logs", "box"]).contains("listening on"));
        let id = wharf.get(&["exec", "-d", "box", "--", "sh", "-c", "echo on; sleep 1000"]);
        let mut watcher = wharf.command(&["logs", "-f", "box", id.trim()]).stdout(Stdio::piped()).spawn().unwrap();
        watcher.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        interrupt(&watcher);
        watcher.wait().unwrap();
        let all = wharf.json(&["inspect", "box"]);
        assert!(all["execs"].as_array().unwrap().iter().any(|exec| exec["state"] == "running"), "{all}");
    })
    .await;
}

#[tokio::test]
async fn of_a_long_log_the_last_5000_lines_are_shown() {
    with_wharf("log", async |wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        // sandboxd has not that much to say.
        wharf.applied(&["delete", "pod", "wharf-box", "--grace-period=0", "--force"], "");
        let container = json!({
            "name": "sandbox", "image": IMAGE, "imagePullPolicy": "Never", "command": ["seq", "6000"],
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "wharf-box" },
            "spec": { "containers": [container], "restartPolicy": "Never" },
        });
        wharf.applied(&["create", "-f", "-"], &pod.to_string());
        wharf.applied(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/wharf-box", "--timeout=60s"], "");
        let last: Vec<String> = (1001..=6000).map(|line| line.to_string()).collect();
        assert_eq!(wharf.get(&["logs", "box"]).lines().collect::<Vec<_>>(), last);
    })
    .await;
}

#[tokio::test]
async fn files_and_directories_are_copied_both_ways() {
    with_wharf("cp", async |wharf| {
        let at = |name: &str| wharf.files.path().join(name).display().to_string();
        std::fs::create_dir_all(wharf.files.path().join("dir/sub")).unwrap();
        std::fs::write(wharf.files.path().join("dir/sub/file"), "content").unwrap();
        wharf.check(&["create", "a/b"], 0, "a/b\n");
        wharf.check(&["cp", &at("dir"), "a/b:/workspace"], 0, "");
        wharf.check(&["exec", "a/b", "--", "cat", "dir/sub/file"], 0, "content");
        wharf.check(&["cp", "a/b:/workspace/dir", &at("back")], 0, "");
        assert_eq!(std::fs::read_to_string(at("back/sub/file")).unwrap(), "content");
        let archive = wharf.run(&["cp", "a/b:/workspace/dir", "-"]).stdout;
        std::fs::write(at("archive"), archive).unwrap();
        let list = Command::new("tar").args(["tf", &at("archive")]).output().unwrap();
        assert!(String::from_utf8_lossy(&list.stdout).contains("sub/file"), "{list:?}");
        let again = wharf.command(&["cp", "-", "a/b:/workspace/again"]);
        let mut again = again;
        let output = again.stdin(std::fs::File::open(at("archive")).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(wharf.get(&["exec", "a/b", "--", "find", "again", "-name", "file"]).contains("sub/file"));
        wharf.refuses(&["cp", "a/b:/nonexistent", &at("none")], 125, &["nonexistent"]);
    })
    .await;
}

#[tokio::test]
async fn any_text_is_a_name() {
    with_wharf("names", async |wharf| {
        let long = "x".repeat(200);
        let names = ["a/b", "Übung 7", &long, "BOX", "box"];
        for name in names {
            wharf.check(&["create", name], 0, &format!("{name}\n"));
            wharf.check(&["exec", name, "--", "sh", "-c", "echo $0 > who", name], 0, "");
        }
        for name in names {
            wharf.check(&["exec", name, "--", "cat", "who"], 0, &format!("{name}\n"));
        }
        let there: Vec<_> = wharf
            .json(&["ls"])
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(there.len(), names.len());
        assert!(names.iter().all(|name| there.contains(&(*name).to_owned())), "{there:?}");
        wharf.get(&["rm", "--all"]);
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn every_result_is_json_when_asked_for() {
    with_wharf("json", async |wharf| {
        assert_eq!(wharf.json(&["create", "box"])["name"], "box");
        let all = wharf.json(&["inspect", "box"]);
        assert_eq!(
            (&all["status"], &all["image"], &all["claim"]),
            (&json!("ready"), &json!(IMAGE), &json!("wharf-box"))
        );
        assert_eq!(wharf.json(&["ls"])[0]["pod"], "wharf-box");
        assert!(wharf.json(&["exec", "-d", "box", "--", "true"])["id"].is_string());
        let file = wharf.write("four", "four");
        assert_eq!(wharf.json(&["cp", &file, "box:/workspace/f"])["bytes"], 4);
        assert_eq!(wharf.json(&["suspend", "box"])["status"], "suspended");
        assert_eq!(wharf.json(&["resume", "box"])["status"], "ready");
        assert_eq!(wharf.json(&["gc"]), json!([]));
        assert_eq!(wharf.json(&["rm", "box"]), json!(["box"]));
        assert_eq!(wharf.json(&["install"])[0]["kind"], "ServiceAccount");
    })
    .await;
}

#[tokio::test]
async fn gc_removes_what_killed_programs_have_left_and_nothing_else() {
    with_wharf("gc", async |wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        let mut run = wharf
            .command(&["run", "--", "sh", "-c", "echo up; exec sleep 4321"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        run.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        run.kill().unwrap();
        run.wait().unwrap();
        wharf.configure("", "node_selector_key = \"no\"\nnode_selector_val = \"where\"");
        let mut create = wharf.command(&["create", "half"]).spawn().unwrap();
        wharf.wait_for_pod("wharf-half").await;
        create.kill().unwrap();
        create.wait().unwrap();
        // Their makers may be there still.
        wharf.check(&["gc"], 0, "");
        let left = list_objects(&wharf.namespace.client, &wharf.namespace.name).await;
        let run = left.keys().find_map(|object| object.strip_prefix("Secret/wharf-run-")).unwrap().to_owned();
        wharf.expire("wharf-half").await;
        wharf.check(&["gc"], 0, "half\n");
        wharf.expire(&format!("wharf-run-{run}")).await;
        wharf.check(&["gc"], 0, &format!("run-{run}\n"));
        wharf.settles(&BOX).await;
        wharf.check(&["gc"], 0, "");
    })
    .await;
}

#[tokio::test]
async fn a_half_made_sandbox_is_finished_by_the_same_call() {
    with_wharf("half", async |wharf| {
        wharf.configure("", "node_selector_key = \"no\"\nnode_selector_val = \"where\"");
        let mut create = wharf.command(&["create", "box"]).spawn().unwrap();
        wharf.wait_for_pod("wharf-box").await;
        create.kill().unwrap();
        create.wait().unwrap();
        wharf.applied(&["delete", "pod", "wharf-box", "--now"], "");
        wharf.configure("", "");
        wharf.check(&["create", "box"], 0, "box\n");
        wharf.check(&["exec", "box", "--", "echo", "there"], 0, "there\n");
        wharf.expire("wharf-box").await;
        wharf.settles(&BOX).await;
    })
    .await;
}

#[tokio::test]
async fn ctrl_c_while_a_sandbox_is_made_leaves_nothing() {
    with_wharf("ctrl-c", async |wharf| {
        wharf.configure("", "node_selector_key = \"no\"\nnode_selector_val = \"where\"");
        let create = wharf.command(&["create", "box"]).stderr(Stdio::piped()).spawn().unwrap();
        wharf.wait_for_pod("wharf-box").await;
        interrupt(&create);
        let output = create.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "interrupted: removing `box`\n");
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn twenty_creates_of_one_name_make_one_sandbox() {
    with_wharf("race", async |wharf| {
        let creates: Vec<_> = (0..20)
            .map(|_| wharf.command(&["create", "box"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        let mut won = 0;
        for create in creates {
            let output = create.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.code() {
                Some(0) => won += 1,
                code => assert!(code == Some(125) && told.contains("exists already"), "{told}"),
            }
        }
        assert!(won > 0);
        wharf.settles(&BOX).await;
        wharf.check(&["exec", "box", "--", "echo", "one"], 0, "one\n");
    })
    .await;
}

#[tokio::test]
async fn a_shell_and_an_exec_have_a_terminal() {
    with_wharf("terminal", async |wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        wharf.refuses(&["shell", "box"], 2, &["a shell needs a terminal"]);
        wharf.refuses(&["exec", "-t", "box", "--", "true"], 2, &["-t needs a terminal"]);
        let (code, seen) = wharf.on_terminal(
            &["exec", "-it", "box", "--", "sh", "-c", "tty && printf ready && read x && echo got:$x && exit 5"],
            &[("ready", "line\n")],
        );
        assert_eq!(code, Some(5), "{seen}");
        assert!(seen.contains("/dev/pts/") && seen.contains("got:line"), "{seen}");
        let (code, seen) = wharf.on_terminal(
            &["shell", "box"],
            &[("$", "x=4$((1+1)); echo \"is:$x\"\n"), ("is:42", ""), ("$", "\x10\x11")],
        );
        assert_eq!(code, Some(0), "{seen}");
        assert!(seen.contains("the shell goes on: `wharf shell box` comes back to it"), "{seen}");
        let (code, seen) =
            wharf.on_terminal(&["shell", "box"], &[("is:42", "echo \"again:$x\"\n"), ("again:42", "exit 3\n")]);
        assert_eq!(code, Some(3), "{seen}");
    })
    .await;
}

#[tokio::test]
async fn a_person_who_looks_on_is_told_why_it_takes_so_long() {
    with_wharf("progress", async |wharf| {
        wharf.configure("", "node_selector_key = \"no\"\nnode_selector_val = \"where\"");
        let (code, seen) = wharf.on_terminal(&["create", "box"], &[("affinity/selector", "\x03")]);
        assert_eq!(code, Some(130), "{seen}");
        assert!(seen.contains("creating `box`: ") && seen.contains("scheduling: 0/1 nodes are available"), "{seen}");
    })
    .await;
}

/// A log heard nothing for as long as a start may take.
#[tokio::test]
async fn a_log_is_told_why_it_takes_so_long() {
    with_wharf("lines", async |wharf| {
        wharf.configure("", "resource_cpu_request = \"1000\"");
        let arguments = ["create", "box", "--start-timeout", "9s"];
        let told = [
            "wharf: creating `box`: scheduling: no node has room for it: 0/1 nodes are available: 1 Insufficient cpu",
            "`kubectl describe nodes` tells what is taken",
        ];
        wharf.refuses(&arguments, 125, &told);
        wharf.configure("service_account = \"nobody\"", "");
        let started = Instant::now();
        let told = ["error looking up service account", "\"nobody\" not found", "`kubectl get serviceaccounts`"];
        wharf.refuses(&["create", "box"], 125, &told);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        wharf.configure("", "");
        let told = ["namespaces \"wharf-no-such\" not found", "`kubectl create namespace` makes it"];
        wharf.refuses(&["-n", "wharf-no-such", "ls"], 125, &told);
        let told = ["the sandbox has ended: its deadline of 2 s has passed"];
        wharf.refuses(&["run", "--deadline", "2s", "--", "sleep", "1000"], 125, &told);
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn the_place_is_chosen_by_flags() {
    with_wharf("place", async |wharf| {
        wharf.check(&["--route", "pod-address", "run", "--", "echo", "direct"], 0, "direct\n");
        wharf.check(&["--route", "port-forward", "create", "box"], 0, "box\n");
        let direct = wharf.json(&["--route", "pod-address", "inspect", "box"]);
        assert!(!direct["route"].as_str().unwrap().contains("port-forward"), "{direct}");
        // The cluster of the tests has no DNS outside of pods; it takes a resolver some seconds to say so.
        let told = ["binding", "wharf-", ".svc:8080"];
        wharf.refuses(&["--route", "service", "run", "--start-timeout", "20s", "--", "true"], 125, &told);
        let elsewhere = |arguments: &[&str]| {
            let output = wharf.command(arguments).env_remove("WHARF_NAMESPACE").output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        };
        let kubeconfig = wharf.kubeconfig.to_str().unwrap();
        let (code, told) = elsewhere(&["--kubeconfig", kubeconfig, "--namespace", &wharf.namespace.name, "ls"]);
        assert!(code == Some(0) && told.contains("box"), "{told}");
        let (code, told) = elsewhere(&["--context", "wharf-second", "run", "--", "echo", "second"]);
        assert_eq!((code, told.as_str()), (Some(0), "second\n"));
        wharf.refuses(&["--context", "nope", "ls"], 125, &["there is no context `nope`", "`wharf-second`"]);
        let (code, told) = elsewhere(&["--context", "wharf-second", "install"]);
        let namespaces = || told.lines().filter(|line| line.trim_start().starts_with("namespace: "));
        assert!(code == Some(0) && namespaces().count() > 3, "{told}");
        assert!(namespaces().all(|line| line.trim_start().trim_matches('"') == "namespace: second"), "{told}");
        for flag in [["--route", "service"], ["--context", "wharf-second"], ["-n", "second"], ["--config", "x"]] {
            wharf.refuses(&[&["--runtime", "local"], &flag[..], &["ls"]].concat(), 2, &["add `--runtime kubernetes`"]);
        }
    })
    .await;
}

#[tokio::test]
async fn rendered_objects_are_taken_by_the_api_server() {
    with_wharf("render", async |wharf| {
        for profile in ["wharf", "openhands"] {
            let objects = wharf.get(&["--profile", profile, "render", "box"]);
            assert!(objects.contains("kind: Pod") && objects.contains("kind: Service"), "{objects}");
            // What is only known later: an owner's uid, a time.
            wharf.applied(&["apply", "--dry-run=server", "-f", "-"], &objects.replace('…', "2026-01-01T00:00:00Z"));
        }
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn what_install_prints_is_enough_for_a_whole_life() {
    with_wharf("install", async |mut wharf| {
        wharf.applied(&["apply", "-f", "-"], &wharf.get(&["install"]));
        let token = wharf.applied(&["create", "token", "wharf"], "");
        let all = wharf.applied(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"], "");
        let mut all: Value = serde_json::from_str(&all).unwrap();
        all["users"][0]["user"] = json!({ "token": token.trim() });
        wharf.kubeconfig = PathBuf::from(wharf.write("kubeconfig", &all.to_string()));
        wharf.check(&["create", "box"], 0, "box\n");
        wharf.check(&["exec", "box", "--", "sh", "-c", "echo kept > file"], 0, "");
        assert!(wharf.get(&["logs", "box"]).contains("listening on"));
        assert!(wharf.get(&["ls"]).contains("box"));
        wharf.check(&["suspend", "box"], 0, "box\n");
        wharf.check(&["resume", "box"], 0, "box\n");
        wharf.check(&["exec", "box", "--", "cat", "file"], 0, "kept\n");
        wharf.check(&["gc"], 0, "");
        wharf.check(&["run", "--", "echo", "hello"], 0, "hello\n");
        wharf.check(&["rm", "--all"], 0, "box\n");
        wharf.configure("", "node_selector_key = \"no\"\nnode_selector_val = \"where\"");
        wharf.refuses(&["create", "x", "--start-timeout", "3s"], 125, &["0/1 nodes are available"]);
        // No more than that.
        let elsewhere = wharf.command(&["-n", "default", "ls"]).output().unwrap();
        assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("cannot list"));
        wharf.settles(&["NetworkPolicy/wharf-closed", "ServiceAccount/wharf"]).await;
    })
    .await;
}

#[tokio::test]
async fn the_profile_of_openhands_lives_and_goes() {
    with_wharf("openhands", async |wharf| {
        let call = |arguments: &[&str]| wharf.get(&[&["--profile", "openhands"], arguments].concat());
        assert_eq!(call(&["create", "box", "--image", "localhost/wharf/openhands:test"]), "box\n");
        assert!(call(&["ls"]).contains("box   ready"));
        assert!(call(&["inspect", "box"]).contains("openhands:test"));
        // Its server has no key of ours.
        let told = ["the server of `--profile openhands` answers OpenHands"];
        wharf.refuses(&["--profile", "openhands", "exec", "box", "--", "true"], 125, &told);
        wharf.refuses(&["exec", "box", "--", "true"], 125, &["there is no sandbox `box`"]);
        assert_eq!(call(&["suspend", "box"]), "box\n");
        assert!(call(&["ls"]).contains("box   suspended"));
        assert_eq!(call(&["resume", "box"]), "box\n");
        assert_eq!(call(&["rm", "box"]), "box\n");
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_namespace_of_the_restricted_level_takes_sandboxes_and_refuses_privileged_ones() {
    with_labelled_namespace("restricted", RESTRICTED, async |namespace| {
        let wharf = Wharf::new(namespace);
        wharf.check(&["run", "--", "echo", "hello"], 0, "hello\n");
        wharf.configure("", "privileged = true");
        let told = ["violates PodSecurity", "must not set securityContext.privileged=true", "nothing keeps a sandbox"];
        wharf.refuses(&["create", "box"], 125, &told);
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_told_and_nothing_is_left() {
    with_wharf("pull", async |wharf| {
        let told = ["Container image \"localhost/nosuch:1\" is not present", "check the image's name"];
        wharf.refuses(&["create", "box", "--image", "localhost/nosuch:1"], 125, &told);
        wharf.configure("image_pull_policy = \"IfNotPresent\"", "");
        let started = Instant::now();
        let arguments = ["create", "other", "--start-timeout", "15s", "--image", "does-not-exist.invalid/x:1"];
        wharf.refuses(&arguments, 125, &["pulling", "does-not-exist.invalid/x:1"]);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_has_no_room_says_why() {
    with_wharf("room", async |wharf| {
        wharf.configure("", "node_selector_key = \"no\"\nnode_selector_val = \"where\"");
        let started = Instant::now();
        let told =
            ["3 s", "scheduling: 0/1 nodes are available", "affinity/selector", "`--start-timeout` waits longer"];
        wharf.refuses(&["create", "box", "--start-timeout", "3s"], 125, &told);
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        wharf.configure("", "pvc_storage_class = \"never\"");
        let told = ["unbound", "Waiting for a volume to be created"];
        wharf.refuses(&["create", "box", "--start-timeout", "4s"], 125, &told);
        wharf.configure("", "");
        wharf.applied(&["create", "quota", "q", "--hard=limits.memory=100Mi"], "");
        let told = ["exceeded quota: q", "limits.memory=100Mi", "`kubectl describe quota`"];
        wharf.refuses(&["create", "box"], 125, &told);
        wharf.applied(&["create", "quota", "pods", "--hard=pods=0"], "");
        wharf.refuses(&["create", "box", "--memory", "64M"], 125, &["exceeded quota: pods"]);
        wharf.settles(&[]).await;
    })
    .await;
}

/// `prepare` asked for less than such namespaces allow, and nobody could make it ask for more.
#[tokio::test]
async fn a_limit_range_bounds_a_sandbox_and_not_what_prepares_it() {
    with_wharf("limit-range", async |wharf| {
        let bounds = json!({
            "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "bounds" },
            "spec": { "limits": [{
                "type": "Container",
                "min": { "memory": "48Mi" }, "max": { "cpu": "500m" }, "maxLimitRequestRatio": { "memory": "2" },
            }] },
        });
        wharf.applied(&["create", "-f", "-"], &bounds.to_string());
        let told = ["per Container is 2, but provided ratio is 32", "`kubectl describe limitrange`"];
        wharf.refuses(&["run", "--", "true"], 125, &told);
        for carrier in ["image-volume", "init-container"] {
            wharf.configure(&format!("sandboxd_carrier = \"{carrier}\""), "");
            wharf.check(&["run", "--memory", "128M", "--", "echo", "bounded"], 0, "bounded\n");
        }
        let told = ["minimum memory usage per Container is 48Mi, but request is 41943040"];
        wharf.refuses(&["run", "--memory", "40M", "--", "true"], 125, &told);
        wharf.settles(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_that_memory_ended_says_so() {
    with_wharf("oom", async |wharf| {
        wharf.check(&["create", "box", "--memory", "48M"], 0, "box\n");
        let told = ["took more memory than its limit", "`wharf resume 'box'`"];
        // Nobody but the sandbox itself can be killed for what is in a tmpfs.
        wharf.refuses(&["exec", "box", "--", "sh", "-c", "head -c 60M /dev/zero > /dev/shm/x"], 125, &told);
        assert!(wharf.get(&["ls"]).contains("stopped: its processes took more memory"));
        wharf.check(&["resume", "box"], 0, "box\n");
        wharf.check(&["exec", "box", "--", "echo", "again"], 0, "again\n");
    })
    .await;
}

#[tokio::test]
async fn a_command_that_memory_ended_says_so_and_its_sandbox_goes_on() {
    with_wharf("oom-command", async |wharf| {
        wharf.check(&["create", "box", "--memory", "100M"], 0, "box\n");
        let told = ["the command was killed: the sandbox has no more memory than its limit"];
        wharf.refuses(&["exec", "box", "--", "sh", "-c", "head -c 400M /dev/zero | tail"], 137, &told);
        let other = wharf.refuses(&["exec", "box", "--", "sh", "-c", "kill -9 $$"], 137, &[]);
        assert!(!other.contains("memory"), "{other}");
        wharf.check(&["exec", "box", "--", "echo", "there"], 0, "there\n");
    })
    .await;
}

#[tokio::test]
async fn an_image_without_a_shell_says_so_and_what_to_do() {
    with_wharf("no-shell", async |wharf| {
        // Nothing is in it but this one program.
        wharf.check(&["create", "box", "--image", "localhost/wharf/sandboxd:test"], 0, "box\n");
        let (code, seen) = wharf.on_terminal(&["shell", "box"], &[]);
        assert_ne!(code, Some(0), "{seen}");
        assert!(seen.contains("there is neither bash nor sh; `wharf exec` runs the programs that there are"), "{seen}");
        assert!(wharf.get(&["exec", "box", "--", "/wharf-sandboxd", "--version"]).contains("wharf-sandboxd"));
    })
    .await;
}

/// What is between a client and its API server, until it is cut.
struct Line {
    address: SocketAddr,
    cut: tokio::sync::watch::Sender<u32>,
}

impl Line {
    async fn to(server: &str) -> Self {
        let server = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let (server, mut cuts) = (server.clone(), cuts.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(&server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    /// Ends every connection over it; new ones may come.
    fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

/// ARCHITECTURE promises that `exec` resumes; it was killed as soon as its port-forward broke.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_goes_on_when_its_port_forward_is_cut_and_no_line_is_lost_or_said_twice() {
    with_wharf("cut", async |mut wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        let line = Line::to(&wharf.namespace.config.cluster_url.to_string()).await;
        let all = wharf.applied(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"], "");
        let mut all: Value = serde_json::from_str(&all).unwrap();
        all["clusters"][0]["cluster"]["server"] = json!(format!("https://{}", line.address));
        wharf.kubeconfig = PathBuf::from(wharf.write("kubeconfig", &all.to_string()));
        let script = "trap 'echo killed >> /tmp/killed' HUP TERM; i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 7";
        let arguments = ["--route", "port-forward", "exec", "box", "--", "sh", "-c", script];
        let mut child = wharf.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        for expected in 1..=60 {
            let line_of_output = lines.next().map(Result::unwrap);
            assert_eq!(line_of_output, Some(expected.to_string()), "{:?}", child.try_wait());
            if [5, 20, 21].contains(&expected) {
                line.cut();
            }
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
        wharf.refuses(&["exec", "box", "--", "cat", "/tmp/killed"], 1, &["No such file"]);
    })
    .await;
}

/// One in forty stayed for ever: the answer that an exec has been started never came to who had asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_caller_is_killed_before_it_attaches_ends() {
    with_wharf("unattached", async |mut wharf| {
        wharf.check(&["create", "box"], 0, "box\n");
        let states = |wharf: &Wharf| {
            let all = wharf.json(&["inspect", "box"]);
            let execs = all["execs"].as_array().unwrap().iter();
            execs.map(|exec| exec["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (proxy, gate) = (FaultProxy::start(wharf.namespace.config.clone()).await, Gate::default());
        let tunnel = Match::new(Verb::Connect, "pods/portforward");
        proxy.add(Fault::once(tunnel, Action::HoldWhatComes(gate.clone())));
        let direct = wharf.kubeconfig.clone();
        wharf.kubeconfig = PathBuf::from(wharf.write("kubeconfig", &proxy.kubeconfig(&wharf.namespace.name)));
        let arguments = ["--route", "port-forward", "exec", "box", "--", "sh", "-c", "echo begun; sleep 1000"];
        let mut child = wharf.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        wharf.kubeconfig = direct;
        while states(&wharf) != ["running"] {
            assert_eq!(child.try_wait().unwrap(), None);
        }
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"", "it has not attached");
        while states(&wharf).iter().any(|state| state == "running") {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        gate.open();
    })
    .await;
}

/// A proxy that opens tunnels; says how many so far.
async fn tunnels() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, opened) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = opened.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
                let mut server = TcpStream::connect(target).await?;
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (address, opened)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_behind_a_proxy_is_reached_through_it_and_one_that_is_not_without() {
    with_wharf("proxy", async |wharf| {
        let (address, opened) = tunnels().await;
        let run = |no_proxy: &'static str| {
            let mut command = wharf.command(&["--route", "port-forward", "run", "--", "echo", "hello"]);
            command.env("HTTPS_PROXY", format!("http://{address}")).env("NO_PROXY", no_proxy);
            async move { tokio::process::Command::from(command).output().await.unwrap() }
        };
        let through = run("192.0.2.0/24").await;
        assert_eq!(String::from_utf8_lossy(&through.stdout), "hello\n", "{through:?}");
        let so_far = opened.load(Ordering::Relaxed);
        assert!(so_far > 0);
        let directly = run("192.0.2.0/24,10.0.0.0/8").await;
        assert_eq!(String::from_utf8_lossy(&directly.stdout), "hello\n", "{directly:?}");
        assert_eq!(opened.load(Ordering::Relaxed), so_far);
        settle(&wharf.namespace.client, &wharf.namespace.name, [""; 0]).await;
    })
    .await;
}

#[tokio::test]
async fn who_may_not_and_who_does_not_answer_is_told() {
    with_wharf("access", async |wharf| {
        let nobody = wharf.kubeconfig.with_file_name("kubeconfig-nobody").display().to_string();
        for arguments in [&["ls"][..], &["create", "box"], &["exec", "box", "--", "true"], &["rm", "box"]] {
            let told = ["User \"nobody\" cannot", "`wharf install` prints the Role"];
            wharf.refuses(&[&["--kubeconfig", &nobody], arguments].concat(), 125, &told);
        }
        let told = ["namespaces \"no-such-namespace\" not found", "`kubectl create namespace` makes it"];
        wharf.refuses(&["-n", "no-such-namespace", "create", "box"], 125, &told);
        let closed = wharf.write(
            "closed",
            &json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:1" } }],
                "users": [{ "name": "c", "user": { "token": "hidden" } }],
                "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }],
            })
            .to_string(),
        );
        for arguments in [&["ls"][..], &["create", "box"], &["exec", "box", "--", "true"]] {
            let started = Instant::now();
            let told = ["https://127.0.0.1:1", "Connection refused", "`kubectl cluster-info`"];
            wharf.refuses(&[&["--kubeconfig", &closed], arguments].concat(), 125, &told);
            assert!(started.elapsed() < Duration::from_secs(8), "{arguments:?}: {:?}", started.elapsed());
        }
        wharf.refuses(&["--kubeconfig", "/nonexistent", "ls"], 125, &["/nonexistent", "No such file"]);
        let proxied = wharf.command(&["ls"]).env("HTTPS_PROXY", "http://user:hidden@127.0.0.1:1").output().unwrap();
        let told = String::from_utf8(proxied.stderr).unwrap();
        assert!(told.contains(" by the proxy 127.0.0.1:1`: Connection refused") && !told.contains("hidden"), "{told}");
        // A file with a mistake in it has keys in it too.
        let broken = wharf.write("broken", "users: [{name: a, user: {token: hidden-token}\nclusters: [\n");
        let told = wharf.refuses(&["--kubeconfig", &broken, "ls"], 125, &["could not use the kubeconfig", "line"]);
        assert!(!told.contains("hidden-token"), "{told}");
    })
    .await;
}

#[tokio::test]
async fn wrong_settings_are_told_all_at_once() {
    with_wharf("settings", async |wharf| {
        wharf.configure(
            "sandboxd_imag = \"x\"\negress = \"nowhere\"",
            "pvc_storage_size = \"5Gx\"\ningress_tls_secret = \"UPPER CASE\"",
        );
        let told = [
            "`wharf.sandboxd_imag` is not valid: unknown key; did you mean `sandboxd_image`?",
            "`wharf.egress`",
            "`kubernetes.pvc_storage_size`",
            "`kubernetes.ingress_tls_secret`",
        ];
        wharf.refuses(&["ls"], 2, &told);
        wharf.write("config.toml", "[kubernetes]\n");
        let told = wharf.refuses(&["create", "box"], 2, &["needs a container image, such as `python:3.12`"]);
        assert!(!told.contains("``"), "{told}");
        wharf.refuses(&["create", "box", "--image", "x", "--mount", "/tmp"], 2, &["copy it with `wharf cp`"]);
        wharf.refuses(&["create", "box", "--image", "x", "-w", "here"], 2, &["absolute path"]);
        wharf.settles(&[]).await;
    })
    .await;
}
