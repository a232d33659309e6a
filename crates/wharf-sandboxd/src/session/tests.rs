use std::sync::Mutex;

use wharf_protocol::{Environment, Limits, OnDisconnect};

use super::*;
use crate::process::users::current_user;

async fn session() -> (Arc<Session>, tempfile::TempDir) {
    session_with(&std::env::var("PATH").unwrap()).await
}

async fn session_with(path: &str) -> (Arc<Session>, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let environment =
        Environment::from([("PATH".into(), path.to_owned()), ("HOME".into(), home.path().display().to_string())]);
    let settings = SessionSettings {
        id: "test".parse().unwrap(),
        user: current_user(),
        environment,
        working_dir: home.path().to_owned(),
        terminal: TerminalSize::default(),
        term: "xterm-256color",
        plain_prompt: false,
        startup: "",
        output_bytes: Limits::default().output_bytes as usize,
    };
    let view = Arc::new(Mutex::new(Screen::new(ScreenSize { rows: 24, columns: 80 }, 100)));
    let session = Session::start(settings, view, TaskTracker::new(), CancellationToken::new()).await.unwrap();
    (session, home)
}

fn request(command: &str) -> RunRequest {
    RunRequest {
        command: command.to_owned(),
        timeout_ms: Some(20_000),
        no_output_timeout_ms: None,
        on_disconnect: OnDisconnect::KeepRunning,
    }
}

async fn run(session: &Arc<Session>, command: &str) -> (CommandOutcome, String) {
    let result = session.run(&request(command)).await.unwrap();
    (result.outcome, result.output)
}

/// Runs a command that waits for input: it must still run when it has printed nothing for so many milliseconds.
async fn run_until_quiet(session: &Arc<Session>, command: &str, milliseconds: u64) {
    let patience = RunRequest { no_output_timeout_ms: Some(milliseconds), ..request(command) };
    assert_eq!(session.run(&patience).await.unwrap().outcome, CommandOutcome::NoOutput);
}

/// Types bytes and waits for the next prompt; gives all that the session has printed.
async fn type_until_prompt(session: &Arc<Session>, bytes: &[u8]) -> String {
    let mut progress = session.progress();
    let prompts = progress.borrow().prompts;
    session.type_bytes(bytes).await.unwrap();
    progress.wait_for(|now| now.prompts > prompts).await.unwrap();
    let (bytes, _) = session.log().copy(ByteOffset(0), session.log().end());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn finished(exit_code: i32, output: &str) -> (CommandOutcome, String) {
    (CommandOutcome::Finished { exit_code }, output.to_owned())
}

#[tokio::test]
async fn a_command_ends_with_its_exit_code_and_output_whatever_the_shell_was_told() {
    let (session, _home) = session().await;
    for (command, code, output) in [
        ("echo hello", 0, "hello"),
        ("(exit 3)", 3, ""),
        ("nosuchcommand-x 2>/dev/null", 127, ""),
        ("cat <<EOF\na\tb\nEOF", 0, "a       b"),
        ("case x in x) echo 1;; esac\necho b", 0, "1\nb"),
        ("PS1='$ '", 0, ""),
        ("echo after PS1", 0, "after PS1"),
        ("PROMPT_COMMAND=", 0, ""),
        ("echo after PROMPT_COMMAND; (exit 4)", 4, "after PROMPT_COMMAND"),
        ("PS1='lost> ' PROMPT_COMMAND=; (exit 5)", 5, "lost>"),
        ("echo found", 0, "found"),
        ("set -u; set -o pipefail", 0, ""),
        ("set -e", 0, ""),
        ("true", 0, ""),
        ("set +eu", 0, ""),
        ("set -x", 0, ""),
        ("(exit 6)", 6, "+ exit 6"),
        ("set +x", 0, "+ set +x"),
        ("exec bash", 0, ""),
        ("echo in exec", 0, "in exec"),
        ("bash", 0, ""),
        ("echo nested", 0, "nested"),
        ("exit 7", 7, "exit"),
        ("printf '\\033]7777;%s;B\\037\\a' guessed; echo x", 0, "x"),
        ("env | grep -c \"$(printf '\\033')\"", 1, "0"),
    ] {
        assert_eq!(run(&session, command).await, finished(code, output), "{command}");
    }
    session.close().await;
}

#[tokio::test]
async fn a_mark_that_a_program_prints_ends_nothing() {
    let (session, _home) = session().await;
    // Even with the right nonce: while a program runs, the terminal is not in readline's hands.
    let forge = r#"printf '\033]7777;%s;B\0371:1\0379\037\a' "$WHARF_NONCE"; echo real; (exit 2)"#;
    assert_eq!(run(&session, forge).await, finished(2, "real"));
    session.close().await;
}

#[tokio::test]
async fn a_job_that_was_killed_is_told_of_at_the_next_prompt() {
    let (session, _home) = session().await;
    let mut at_once = 0;
    for _ in 0..5 {
        run(&session, "sleep 60 &").await;
        let (_, told) = run(&session, "kill %1").await;
        at_once += usize::from(told.contains("Terminated"));
        run(&session, "wait").await;
    }
    // On a busy machine a process may take longer to end than a prompt.
    assert!(at_once >= 3, "{at_once} of 5");
}

#[tokio::test]
async fn queries_are_answered_by_an_attached_terminal_else_by_the_screen() {
    let (session, _home) = session().await;
    let ask = r"IFS= read -rsn4 -p $'\e[5n' answer; echo; echo ${answer@Q}";
    let (_, told) = run(&session, ask).await;
    assert!(told.contains(r"$'\E[0n'"), "{told:?}");
    let attached = session.attach_terminal();
    run_until_quiet(&session, ask, 300).await;
    let told = type_until_prompt(&session, b"mine").await;
    assert!(told.contains("'mine'"), "{told:?}");
    drop(attached);
    let (_, told) = run(&session, ask).await;
    assert!(told.contains(r"$'\E[0n'"), "{told:?}");
}

#[tokio::test]
async fn a_dead_shell_is_reported_with_its_status_and_replaced() {
    let (session, _home) = session().await;
    assert_eq!(
        run(&session, "cd /tmp; exit 3").await,
        (CommandOutcome::ShellEnded { code: Some(3), signal: None }, "exit".to_owned())
    );
    let (outcome, _) = run(&session, "kill -9 $$").await;
    assert_eq!(outcome, CommandOutcome::ShellEnded { code: None, signal: Some(9) });
    assert_eq!(run(&session, "echo again").await, finished(0, "again"));
    session.close().await;
}

#[tokio::test]
async fn a_busy_session_refuses_a_second_command_and_takes_input() {
    let (session, _home) = session().await;
    run_until_quiet(&session, "read -p 'name? ' name; echo \"hi $name\"", 300).await;
    assert!(matches!(session.run(&request("echo x")).await, Err(SessionError::Busy { .. })));
    assert!(type_until_prompt(&session, b"Bob\r").await.contains("hi Bob"));
    session.close().await;
}

#[tokio::test]
async fn closing_a_session_ends_all_that_it_started() {
    let (session, home) = session().await;
    let script = "setsid sh -c 'echo $$ > away; exec sleep 1000' & (sleep 1000 & echo $! > twice); \
                  while ! [ -s away ]; do :; done";
    assert_eq!(run(&session, script).await.0, CommandOutcome::Finished { exit_code: 0 });
    session.close().await;
    for file in ["away", "twice"] {
        let pid = std::fs::read_to_string(home.path().join(file)).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{file}: {stat}");
    }
    assert!(matches!(session.run(&request("echo x")).await, Err(SessionError::Closed)));
}

#[tokio::test]
async fn more_output_than_the_log_keeps_is_cut_and_ends() {
    let (session, _home) = session().await;
    let result = session.run(&request("yes | head -c 20000000; echo end")).await.unwrap();
    assert!(result.truncated);
    assert!(result.output.ends_with("end"));
    assert!(result.output.len() <= 17 << 20);
    session.close().await;
}

#[tokio::test]
async fn nothing_is_typed_into_a_command_that_is_not_whole_yet() {
    let (session, _home) = session().await;
    // Long enough for the prompt to be repaired, were it lost.
    run_until_quiet(&session, "echo \"abc", 700).await;
    let text = type_until_prompt(&session, b"def\"\r").await;
    assert!(text.contains("abc\r\ndef\r\n") && !text.contains("__wharf_prompt"), "{text}");
    session.close().await;
}

#[tokio::test]
async fn a_shell_that_is_no_bash_serves_too() {
    let programs = tempfile::tempdir().unwrap();
    for name in ["sh", "cat"] {
        std::os::unix::fs::symlink(format!("/bin/{name}"), programs.path().join(name)).unwrap();
    }
    let (session, home) = session_with(&programs.path().display().to_string()).await;
    for (command, code, output) in [
        ("echo hello", 0, "hello"),
        ("(exit 3)", 3, ""),
        ("echo $?", 0, "3"),
        ("echo 'it''s'; mkdir x 2>/dev/null; cd / && pwd", 0, "its\n/"),
        ("for i in 1 2; do\necho $i\ndone", 0, "1\n2"),
        ("A=b; cat <<EOF\n$A\nEOF", 0, "b"),
    ] {
        assert_eq!(run(&session, command).await, finished(code, output), "{command}");
    }
    assert_eq!(session.info().await.working_dir, "/");
    assert_eq!(run(&session, "exit 4").await.0, CommandOutcome::ShellEnded { code: Some(4), signal: None });
    assert_eq!(run(&session, "echo again").await, finished(0, "again"));
    session.close().await;
    drop(home);
}

#[tokio::test]
async fn a_command_after_keys_that_a_program_left_over_is_not_taken_for_them() {
    let (session, _home) = session().await;
    // A shell that is slow at its prompt, as one with a version manager's hook is.
    run(&session, "PROMPT_COMMAND=\"sleep 0.02; $PROMPT_COMMAND\"").await;
    for round in 0..5 {
        run_until_quiet(&session, "read -n 1 -s", 100).await;
        type_until_prompt(&session, b"q\r\r\r").await;
        let word = format!("round {round}");
        assert_eq!(run(&session, &format!("echo {word}")).await, finished(0, &word));
    }
    session.close().await;
}
