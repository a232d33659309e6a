//! Sessions that nothing freezes, and what OpenHands' dialect tells of them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{KEY, Server, until};

impl Server {
    fn action(&self, arguments: Value) -> Value {
        let (status, told) = self.dialect(arguments);
        assert_eq!(status, 200, "{told}");
        told
    }

    fn dialect(&self, arguments: Value) -> (u16, Value) {
        self.dialect_within(20, arguments)
    }

    /// What is told after so many seconds at most.
    fn dialect_for(&self, seconds: u32, arguments: Value) -> Value {
        let (status, told) = self.dialect_within(seconds, arguments);
        assert_eq!(status, 200, "{told}");
        told
    }

    fn dialect_within(&self, seconds: u32, arguments: Value) -> (u16, Value) {
        let body = json!({ "action": { "action": "run", "args": arguments, "timeout": seconds } });
        let mut answer = self.agent.post(self.url("/execute_action")).send_json(&body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json().unwrap())
    }
}

fn ran(told: &Value) -> (i64, &str, &str) {
    let metadata = &told["extras"]["metadata"];
    (
        metadata["exit_code"].as_i64().unwrap_or_else(|| panic!("{told}")),
        told["content"].as_str().unwrap(),
        metadata["suffix"].as_str().unwrap(),
    )
}

#[test]
fn input_that_nobody_reads_holds_up_no_other_call() {
    let server = Server::bound(&[], json!({}));
    server.post(KEY, "/v1/sessions", &json!({ "id": "stuck" }));
    let sleeping = json!({ "command": "sleep 60", "no_output_timeout_ms": 200 });
    assert_eq!(server.post(KEY, "/v1/sessions/stuck/run", &sleeping).1["outcome"], "no_output");
    std::thread::scope(|scope| {
        let typing = scope.spawn(|| {
            let (status, told) =
                server.post(KEY, "/v1/sessions/stuck/input", &json!({ "text": "a line\n".repeat(17_000) }));
            (status, told["detail"].as_str().unwrap_or_default().to_owned())
        });
        let started = Instant::now();
        while !typing.is_finished() {
            let asked = Instant::now();
            assert_eq!(server.get("/v1/sessions")[0]["id"], "stuck");
            assert!(asked.elapsed() < Duration::from_secs(5), "a listing took {:?}", asked.elapsed());
            assert!(started.elapsed() < Duration::from_secs(60), "the typing does not end");
            if started.elapsed() > Duration::from_secs(1) {
                assert_eq!(server.post(KEY, "/v1/sessions/stuck/reset", &json!({})).0, 200);
            }
        }
        let (status, detail) = typing.join().unwrap();
        assert_eq!((status, detail.as_str()), (409, "session `stuck` was reset"));
    });
    let (_, result) = server.post(KEY, "/v1/sessions/stuck/run", &json!({ "command": "echo alive" }));
    assert_eq!(result["output"], "alive");
}

#[test]
fn a_session_whose_shell_was_replaced_by_a_program_without_a_terminal_can_be_removed() {
    let server = Server::bound(&[], json!({}));
    server.post(KEY, "/v1/sessions", &json!({ "id": "s" }));
    let command = json!({ "command": "exec sleep 30 >/dev/null 2>&1 </dev/null", "timeout_ms": 300 });
    assert_eq!(server.post(KEY, "/v1/sessions/s/run", &command).1["outcome"], "timed_out");
    let started = Instant::now();
    server.delete("/v1/sessions/s");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn a_signal_reaches_what_runs_and_never_the_shell_at_its_prompt() {
    let server = Server::bound(&[], json!({}));
    assert_eq!(server.run("kept=yes"), "");
    // Whoever leaves when a command has just ended sends such a one.
    let signal = || server.post(KEY, "/v1/sessions/s/signal", &json!({ "signal": "KILL" }));
    let (status, problem) = signal();
    assert_eq!((status, &problem["kind"]), (409, &json!("conflict")), "{problem}");
    assert_eq!(server.run("echo $kept"), "yes");
    let sleeping = json!({ "command": "sleep 1000", "no_output_timeout_ms": 200 });
    assert_eq!(server.post(KEY, "/v1/sessions/s/run", &sleeping).1["outcome"], "no_output");
    assert_eq!(signal().0, 204);
    let started = Instant::now();
    while server.get("/v1/sessions/s")["state"] != "idle" {
        assert!(started.elapsed() < Duration::from_secs(60), "it runs on");
    }
    assert_eq!(server.run("echo $? $kept"), "137 yes");
}

#[test]
fn the_dialect_restarts_its_shell_when_asked_in_the_words_of_its_later_clients() {
    let server = Server::openhands();
    assert_eq!(ran(&server.action(json!({ "command": "lost=yes; cd /" }))).0, 0);
    server.action(json!({ "command": "kill -STOP $$" }));
    let told = server.action(json!({ "command": "", "reset": true }));
    let words =
        "Terminal session has been reset. All previous environment variables and session state have been cleared.";
    assert_eq!((ran(&told).0, ran(&told).1), (0, words));
    assert_eq!(told["extras"]["command"], "[RESET]");
    let told = server.action(json!({ "command": "echo ${lost-gone} $PWD", "reset": true }));
    assert_eq!(ran(&told).1, format!("{words}\n\ngone {}", server.home.path().display()));
    let told = server.action(json!({ "command": "x", "reset": true, "is_input": true }));
    assert_eq!(told["observation"], "error");
    assert_eq!(told["content"], "Cannot use reset=True with is_input=True");
}

#[test]
fn the_dialect_says_that_a_replaced_shell_knows_nothing_of_the_old_one() {
    let server = Server::openhands();
    let told = server.action(json!({ "command": "x=1; exit 3" }));
    assert_eq!(ran(&told).0, 3);
    assert!(ran(&told).2.contains("variables, functions and background jobs are gone"), "{told}");
    let told = server.action(json!({ "command": "echo ${x-gone}; kill -9 $$ & sleep 1" }));
    assert_eq!(told["extras"]["metadata"]["prefix"], "", "it was told already");
    // This time the shell ends while nobody waits for it.
    server.action(json!({ "command": "echo $$ > shell; (until [ -e go ]; do :; done; kill -9 $$) >/dev/null 2>&1 &" }));
    server.lets_go_until_the_shell_ends();
    let told = server.action(json!({ "command": "echo ${x-gone}" }));
    assert_eq!(ran(&told).1, "gone");
    let prefix = told["extras"]["metadata"]["prefix"].as_str().unwrap();
    assert!(prefix.starts_with("[The shell had ended (exit code 137)."), "{told}");
}

#[test]
fn the_dialect_says_at_once_that_a_shell_no_longer_tells_how_commands_end() {
    let server = Server::openhands();
    server.action(json!({ "command": "mkdir -p sub && cd sub" }));
    let told = server.action(json!({ "command": "shopt -s extdebug; trap false DEBUG" }));
    let (code, content, suffix) = ran(&told);
    assert_eq!((code, content), (-1, ""), "{told}");
    let known = "\n[The shell waits for commands, but no longer says how they end: ";
    assert!(suffix.starts_with(known) && suffix.contains("The next command runs in a new one, in "), "{suffix}");
    let told = server.action(json!({ "command": "basename $PWD" }));
    assert_eq!(ran(&told), (0, "sub", "\n[The command completed with exit code 0.]"));
    assert_eq!(told["extras"]["metadata"]["prefix"], "");
}

#[test]
fn a_key_that_does_nothing_at_the_prompt_is_answered_at_once() {
    let server = Server::openhands();
    for key in ["l", "z", "x", "r", "v", "g", "u", "s"] {
        // That nothing changes any more would be told after 10 s, and as -1.
        let told = server.action(json!({ "command": format!("C-{key}") }));
        let suffix = format!("\n[The command completed with exit code 0. CTRL+{} was sent.]", key.to_uppercase());
        assert_eq!(ran(&told), (0, "", suffix.as_str()), "C-{key}");
        assert_eq!(ran(&server.action(json!({ "command": "echo whole" }))).1, "whole", "after C-{key}");
    }
    assert_eq!(ran(&server.action(json!({ "command": "C-c" }))).0, 130);
}

#[test]
fn a_static_command_in_a_directory_that_is_not_there_is_an_observation() {
    let server = Server::openhands();
    let arguments = json!({ "command": "pwd", "is_static": true, "cwd": "/no/such/place" });
    let told = server.action(arguments.clone());
    assert_eq!(told["observation"], "error");
    assert_eq!(told["content"], "`cwd` is not a directory: /no/such/place");
    let mut hidden = arguments;
    hidden["hidden"] = json!(true);
    let told = server.action(hidden);
    assert_eq!((told["observation"].as_str(), ran(&told).0), (Some("run"), -1), "{told}");
}

#[test]
fn the_echo_of_a_command_is_no_output_and_takes_none_with_it() {
    let server = Server::openhands();
    for (command, content) in [
        ("printf 'a\tb\\n'", "a       b"),
        ("cat <<'EOF'\n\tindented\tmore  \nplain\nEOF", "indented        more\nplain"),
        ("echo one   ", "one"),
        ("printf 'a\u{1b}[1mb\u{200b}c\\n'", "ab\u{200b}c"),
        ("printf '%s\\n' \"$(printf 'printf it')\"", "printf it"),
        ("echo echo", "echo"),
        ("printf 'x\u{3}\u{1a}\u{1c}\u{4}y' | od -An -c", "x 003 032 034 004   y"),
        ("true; echo 'fix!important' \"a!b\"", "fix!important a!b"),
        ("exec 2>/dev/null", ""),
        ("echo without errors", "without errors"),
        ("exec 2>&1", ""),
    ] {
        assert_eq!(ran(&server.action(json!({ "command": command }))).1, content, "{command:?}");
    }
    // A password that is typed is not echoed: what the program says is its own.
    server.action(json!({ "command": "read -rs -t 30 x; echo \"$x\"", "blocking": false }));
    let told = server.action(json!({ "command": "secret", "is_input": true }));
    assert_eq!(ran(&told).1, "secret");
}

#[test]
fn a_megabyte_on_the_command_line_arrives_quickly() {
    let server = Server::openhands();
    let line = format!("{}\n", "x".repeat(99));
    let started = Instant::now();
    let told = server.action(json!({ "command": format!("cat > big <<'EOF'\n{}EOF", line.repeat(10_000)) }));
    assert_eq!((ran(&told).0, ran(&told).1), (0, ""), "{}", ran(&told).2);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(std::fs::read_to_string(server.home.path().join("big")).unwrap(), line.repeat(10_000));
}

#[test]
fn a_terminal_of_absurd_size_is_refused_and_a_program_that_draws_without_end_slows_nobody() {
    let server = Server::bound(&[], json!({}));
    let absurd = json!({ "id": "x", "terminal": { "rows": 65535, "columns": 65535 } });
    assert_eq!(server.post(KEY, "/v1/sessions", &absurd).0, 400);
    server.post(KEY, "/v1/sessions", &json!({ "id": "s", "terminal": { "rows": 1000, "columns": 1000 } }));
    assert_eq!(server.post(KEY, "/v1/sessions/s/resize", &json!({ "rows": 65535, "columns": 2 })).0, 400);
    let bomb =
        r"x=$(printf 'a\033[65535b\r\n\033[2;999r\033[65535S\033[65535L%.0s' {1..500}); while :; do printf %s $x; done";
    let draws = json!({ "command": bomb, "timeout_ms": 1000 });
    let (status, told) = server.post(KEY, "/v1/sessions/s/run", &draws);
    assert_eq!(told["outcome"], "timed_out", "{status} {told}");
    for _ in 0..20 {
        let asked = Instant::now();
        server.get("/v1/info");
        server.get("/v1/sessions");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    server.post(KEY, "/v1/sessions", &json!({ "id": "other" }));
    let (_, result) = server.post(KEY, "/v1/sessions/other/run", &json!({ "command": "echo beside" }));
    assert_eq!(result["output"], "beside");
    server.delete("/v1/sessions/s");
}

impl Server {
    /// Tells a shell that has written its number to a file and waits for another to go on, and waits for its end.
    fn lets_go_until_the_shell_ends(&self) {
        let shell = std::fs::read_to_string(self.home.path().join("shell")).unwrap();
        std::fs::write(self.home.path().join("go"), "").unwrap();
        until("the shell's end", || (!std::path::Path::new("/proc").join(shell.trim()).exists()).then_some(()));
    }

    /// Asks for a command and leaves once it has made a file.
    fn leaves(&self, arguments: Value, begun: &str) {
        let body = json!({ "action": { "action": "run", "args": arguments } }).to_string();
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = body.len();
        let request = format!(
            "POST /execute_action HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        std::io::Write::write_all(&mut connection, request.as_bytes()).unwrap();
        until(begun, || self.home.path().join(begun).exists().then_some(()));
    }
}

#[test]
fn the_session_of_a_static_command_ends_when_its_client_leaves() {
    let server = Server::openhands();
    server.action(json!({ "command": "true" }));
    for round in ["first", "second"] {
        server
            .leaves(json!({ "command": format!("> {round}; sleep 1000"), "is_static": true, "blocking": true }), round);
    }
    // Any thread may have started them.
    let shells = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
        let of_task =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        tasks.flatten().map(|task| of_task(task).split_whitespace().count()).sum::<usize>()
    };
    until("the end of the abandoned shells", || (shells() == 1).then_some(()));
    assert_eq!(ran(&server.action(json!({ "command": "echo here", "is_static": true }))).1, "here");
}

#[test]
fn a_command_whose_client_left_can_be_waited_for_typed_to_and_ended() {
    let server = Server::openhands();
    // What has answered a query has read what was printed before.
    let asks = r"echo asks; IFS= read -rsn4 -p $'\e[5n' _; > begun";
    let reads = format!("{asks}; read answer; echo \"got $answer\"; sleep 1000");
    server.leaves(json!({ "command": reads, "blocking": true }), "begun");
    let told = server.action(json!({ "command": "echo other" }));
    assert!(ran(&told).2.contains("is NOT executed"), "{told}");
    assert_eq!(ran(&told).1, "asks");
    let told = server.dialect_for(1, json!({ "command": "this", "is_input": true, "blocking": true }));
    assert_eq!((ran(&told).0, ran(&told).1), (-1, "got this"), "{told}");
    let told = server.action(json!({ "command": "C-c", "is_input": true }));
    assert_eq!((ran(&told).0, ran(&told).1), (130, "^C"), "{told}");
    assert_eq!(ran(&server.action(json!({ "command": "echo other" }))).1, "other");
}

#[test]
fn the_last_words_of_a_shell_that_ended_unseen_are_told() {
    let server = Server::openhands();
    let waits = "echo $$ > shell; until [ -e go ]; do :; done; echo last words; exit 3";
    let told = server.dialect_for(1, json!({ "command": waits, "blocking": true }));
    assert_eq!(ran(&told).0, -1, "{told}");
    server.lets_go_until_the_shell_ends();
    let told = server.action(json!({ "command": "", "blocking": true }));
    assert!(ran(&told).0 == 3 && ran(&told).1.contains("last words"), "{told}");
    assert!(ran(&told).2.contains("The shell has ended"), "{told}");
    let told = server.action(json!({ "command": "echo new" }));
    assert_eq!((ran(&told).1, &told["extras"]["metadata"]["prefix"]), ("new", &json!("")), "{told}");
}

#[test]
fn a_session_that_is_being_removed_is_given_to_nobody() {
    let server = Server::bound(&[], json!({}));
    server.post(KEY, "/v1/sessions", &json!({ "id": "s" }));
    let stays = json!({ "command": "trap '' HUP TERM; > stays; read -t 1000", "no_output_timeout_ms": 100 });
    server.post(KEY, "/v1/sessions/s/run", &stays);
    std::thread::scope(|scope| {
        let removing = scope.spawn(|| server.delete_for("/v1/sessions/s").0);
        let refused = until("the beginning of its end", || {
            let (status, told) = server.post(KEY, "/v1/sessions", &json!({ "id": "s" }));
            (status != 200).then_some((status, told))
        });
        assert_eq!(refused.1["detail"], "session `s` is being removed", "{}", refused.0);
        // Nor is another one of its name taken away by who asks twice.
        let again = scope.spawn(|| server.delete_for("/v1/sessions/s").0);
        assert_eq!(removing.join().unwrap(), 204);
        again.join().unwrap();
    });
    assert_eq!(server.post(KEY, "/v1/sessions", &json!({ "id": "s" })).0, 201);
}

#[test]
fn a_session_whose_start_up_file_goes_elsewhere_can_be_started_again_and_looked_at() {
    let server = Server::bound(&[], json!({}));
    let home = server.home.path().display().to_string();
    std::fs::write(server.home.path().join(".bashrc"), "exec sh -c 'echo elsewhere; read -r x; exit 3'").unwrap();
    let request = json!({ "id": "s", "environment": { "HOME": home } });
    assert_eq!(server.post(KEY, "/v1/sessions", &request).0, 201);
    server.post(KEY, "/v1/sessions/s/input", &json!({ "text": "\r" }));
    until("its end", || (server.get("/v1/sessions/s")["state"] == "ended").then_some(()));
    let (status, told) = server.post(KEY, "/v1/sessions", &request);
    assert_eq!((status, &told["state"]), (200, &json!("busy")), "{told}");
    until("what it shows", || {
        server.get("/v1/sessions/s/screen")["text"].as_str().unwrap().contains("elsewhere").then_some(())
    });
}

#[test]
fn callers_who_ask_for_one_session_at_once_all_get_it() {
    let server = Server::bound(&[], json!({}));
    for round in 0..10 {
        let request = json!({ "id": format!("s{round}") });
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(|| server.post(KEY, "/v1/sessions", &request).0)).collect();
            asking.into_iter().map(|asks| asks.join().unwrap()).collect()
        });
        assert!(answers.iter().all(|status| [200, 201].contains(status)), "{answers:?}");
    }
}
