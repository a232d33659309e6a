use std::sync::Mutex;

use wharf_protocol::{Environment, Limits, OnDisconnect};

use super::*;
use crate::process::users::current_user;

async fn session() -> (Arc<Session>, tempfile::TempDir) {
    session_with(&std::env::var("PATH").unwrap()).await
}

async fn session_with(path: &str) -> (Arc<Session>, tempfile::TempDir) {
    session_prepared(path, |_| {}).await
}

async fn session_prepared(path: &str, prepare: impl FnOnce(&std::path::Path)) -> (Arc<Session>, tempfile::TempDir) {
    session_keeping(Limits::default().output_bytes as usize, path, prepare).await
}

async fn session_keeping(
    output_bytes: usize,
    path: &str,
    prepare: impl FnOnce(&std::path::Path),
) -> (Arc<Session>, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    prepare(home.path());
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
        output_bytes,
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
    let mut wrong = Vec::new();
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
        ("PS1='lost> ' PROMPT_COMMAND=; (exit 5)", 5, ""),
        ("echo found", 0, "found"),
        ("unset PROMPT_COMMAND PS0; (exit 6)", 6, ""),
        ("echo taught", 0, "taught"),
        ("PROMPT_COMMAND=(true); (exit 8)", 8, ""),
        ("PROMPT_COMMAND=(); (exit 9)", 9, ""),
        ("printf 'a\tb\x1b[1m\u{200b}c\n'  ", 0, "a       b\u{200b}c"),
        ("cat <<'EOF'\n\tx\u{3}\u{1a}\u{13}y \r\nEOF", 0, "        xy"),
        ("printf '%s' 'a\rb\x1b[201~c' | od -An -c", 0, "   a  \\r   b 033   [   2   0   1   ~   c"),
        ("printf '%q' 'fix!important'", 0, "fix\\!important"),
        ("echo \"fix!important\"", 0, "fix!important"),
        ("echo )", 2, "bash: syntax error near unexpected token `)'"),
        ("echo behind", 0, "behind"),
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
        ("exec 2>/dev/null", 0, ""),
        ("echo no errors; echo error >&2; (exit 4)", 4, "no errors"),
        ("echo )", 2, ""),
        ("exec 2>&1", 0, ""),
        ("echo errors again >&2", 0, "errors again"),
        ("exec >/dev/null", 0, ""),
        ("echo x; (exit 3)", 3, ""),
        ("exec >/dev/tty", 0, ""),
        ("printf '\\033]7777;%s;B\\037\\a' guessed; echo x", 0, "x"),
    ] {
        let ran = run(&session, command).await;
        if ran != finished(code, output) {
            wrong.push(format!("{command:?}: {ran:?}, not {code}, {output:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    session.close().await;
}

/// The nonce, as only the shell itself can tell it: a program that knew it would be as dangerous as can be.
async fn nonce(session: &Arc<Session>) -> String {
    let (_, text) = run(session, "declare -f __wharf_prompt | grep -o '7777;[0-9a-f]*' | head -n 1").await;
    text.trim_start_matches("7777;").to_owned()
}

fn forged(nonce: &str, count: u64) -> String {
    format!(r"printf '\033]7777;{nonce};B\037{count}\0371\0379\037\0370\037h\037/\037\a\033[?2004h' >/dev/tty")
}

#[tokio::test]
async fn nobody_but_the_shell_at_its_prompt_says_that_a_command_has_ended() {
    let (session, _home) = session().await;
    let nonce = nonce(&session).await;
    assert_eq!(nonce.len(), 32);
    let soon = forged(&nonce, 1000);
    // What answers has read all that was printed before it was asked.
    let heard = r"printf '\033[6n' >/dev/tty; IFS= read -rsd R _ </dev/tty";
    for (how, command) in [
        ("a program", format!("bash -c \"$(cat <<'EOF'\n{soon}; {heard}\nEOF\n)\"; echo real; (exit 2)")),
        (
            "line mode off",
            format!(
                "bash -c \"$(cat <<'EOF'\nstty raw -echo; {soon}; {heard}; stty sane\nEOF\n)\"; echo real; (exit 2)"
            ),
        ),
        (
            "a background job",
            format!(
                "sh -c \"$(cat <<'EOF'\nuntil [ -e go ]; do sleep 0.01; done; {soon}\nEOF\n)\" & \
                 bash -c \"$(cat <<'EOF'\n: >go; while kill -0 $0; do sleep 0.01; done 2>/dev/null; {heard}\nEOF\n)\" $!; \
                 echo real; (exit 2)"
            ),
        ),
        // The count of an earlier prompt: what a recording of this terminal holds.
        ("a replayed mark", format!("{}; echo real; (exit 2)", forged(&nonce, 1))),
        (
            "an unknown nonce, by a child in the shell's own group",
            format!(
                "set +m; sh -c \"$(cat <<'EOF'\n{}\nEOF\n)\"; set -m; echo real; (exit 2)",
                forged(&"0".repeat(32), 1000)
            ),
        ),
    ] {
        let (outcome, output) = run(&session, &command).await;
        assert_eq!(outcome, CommandOutcome::Finished { exit_code: 2 }, "{how}: {output}");
        assert!(output.ends_with("real"), "{how}: {output}");
    }
    session.close().await;
}

#[tokio::test]
async fn no_program_finds_the_nonce() {
    let (session, home) = session().await;
    let nonce = nonce(&session).await;
    let look = "
import glob, os, sys
pid = os.getppid()
seen = [open(name, 'rb').read() for name in (f'/proc/{pid}/environ', f'/proc/{pid}/cmdline', '/proc/self/environ')]
for link in glob.glob(f'/proc/{pid}/fd/*') + glob.glob('/proc/self/fd/*'):
    try:
        target = os.readlink(link)
        if target.startswith(('/memfd', '/tmp')) or 'pipe' in target:
            seen.append(target.encode() + os.pread(os.open(link, os.O_RDONLY | os.O_NONBLOCK), 100000, 0))
    except OSError:
        pass
sys.stdout.write('found' if any(sys.argv[1].encode() in text for text in seen) else f'looked at {len(seen)}')
";
    std::fs::write(home.path().join("look.py"), look).unwrap();
    // The command line would tell it: it comes in two halves.
    let halves = nonce.split_at(16);
    let command = format!(
        "printf 'import sys, runpy; sys.argv[1:] = [\"{}\" + \"{}\"]; runpy.run_path(\"look.py\")' > run.py; python3 run.py",
        halves.0, halves.1
    );
    let (_, said) = run(&session, &command).await;
    assert!(said.starts_with("looked at "), "{said}");
    for command in
        ["history", "set -x; true; set +x", "bash -c set", "bash -c 'declare -p; declare -f'", "ps ww", "env"]
    {
        let (_, said) = run(&session, command).await;
        assert!(!said.contains(&nonce), "{command}: {said}");
    }
    let trace = "exec 9>trace; BASH_XTRACEFD=9; set -x; true";
    run(&session, trace).await;
    run(&session, "set +x; exec 9>&-").await;
    assert!(!std::fs::read_to_string(home.path().join("trace")).unwrap().contains(&nonce));
    session.close().await;
}

#[tokio::test]
async fn a_session_looks_like_an_ordinary_shell() {
    let (plain_home, path) = (tempfile::tempdir().unwrap(), std::env::var("PATH").unwrap());
    let settings = r#"
PS1='mine> ' PS2='more> ' PROMPT_COMMAND='seen=yes' HISTSIZE=77
alias hi='echo hello'
"#;
    let (session, home) = session_prepared(&path, |home| {
        std::fs::write(home.join(".bashrc"), settings).unwrap();
        std::fs::write(home.join(".bash_history"), "first\nsecond\n").unwrap();
    })
    .await;
    for (command, output) in [
        ("echo \"$PS1|$PS2|$PROMPT_COMMAND|$seen|$HISTSIZE\"", "mine> |more> |seen=yes|yes|77"),
        ("hi", "hello"),
        (
            "history | head -n 3",
            "    1  first\n    2  second\n    3  echo \"$PS1|$PS2|$PROMPT_COMMAND|$seen|$HISTSIZE\"",
        ),
        ("PROMPT_COMMAND='later=yes'", ""),
        ("echo $PROMPT_COMMAND $later", "later=yes yes"),
        ("env | grep -ic wharf", "0"),
        ("env | grep -c BASH_FUNC", "0"),
        ("true last; : \"$(:)\"", ""),
        ("false | true", ""),
        ("echo ${PIPESTATUS[*]}", "1 0"),
        ("true argument", ""),
        ("echo $_", "argument"),
        ("trap -p; declare -p PIPESTATUS >/dev/null; echo $-", "himBs"),
    ] {
        let (_, said) = run(&session, command).await;
        let said = if command.ends_with("$-") { said.replace('H', "") } else { said };
        if command.ends_with("$-") {
            assert!(!said.contains(['x', 'e', 'u', 'f']), "{said}");
        } else {
            assert_eq!(said, output, "{command}");
        }
    }
    let (_, names) = run(&session, "env | cut -d= -f1 | sort | tr '\\n' ' '").await;
    let script = "env | cut -d= -f1 | sort | tr '\\n' ' '";
    let bare = std::process::Command::new("bash")
        .args(["-ic", script])
        .env_clear()
        .envs([("PATH", path.as_str()), ("TERM", "xterm-256color")])
        .env("HOME", plain_home.path())
        .envs(["USER", "LOGNAME", "SHELL"].map(|name| (name, "x")))
        .output()
        .unwrap();
    let bare = String::from_utf8(bare.stdout).unwrap().replace("LANG ", "");
    assert_eq!(names.replace("LANG ", "").replace("OLDPWD ", ""), bare.trim_end().replace("OLDPWD ", ""));
    drop(home);
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
    let (session, _home) = session_keeping(1 << 20, &std::env::var("PATH").unwrap(), |_| {}).await;
    let result = session.run(&request("yes | head -c 3000000; echo end")).await.unwrap();
    assert!(result.truncated);
    assert!(result.output.ends_with("end"), "{:?}", result.outcome);
    assert!(result.output.len() <= 2 << 20);
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
    assert_eq!(session.info().working_dir, "/");
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

/// Whatever has become of the shell, a reset gives another one.
#[tokio::test]
async fn a_session_whose_shell_is_lost_can_be_reset_and_closed() {
    for command in
        ["exec sleep 30 >/dev/null 2>&1 </dev/null", "kill -STOP $$", "exec cat", "stty -F /dev/tty raw; exec sleep 30"]
    {
        let (session, home) = session().await;
        run(&session, "lost=yes; cd /").await;
        let patience = RunRequest { timeout_ms: Some(500), ..request(command) };
        assert_eq!(session.run(&patience).await.unwrap().outcome, CommandOutcome::TimedOut, "{command}");
        session.reset().await.unwrap();
        let ran = session.run(&request("echo \"${lost-gone} $PWD\"")).await.unwrap();
        assert_eq!(ran.output, format!("gone {}", home.path().display()), "{command}");
        assert!(!ran.new_shell, "who resets a session knows that its shell is new");
        assert_eq!(session.run(&patience).await.unwrap().outcome, CommandOutcome::TimedOut, "{command}");
        tokio::time::timeout(Duration::from_secs(15), session.close()).await.expect(command);
    }
}

#[tokio::test]
async fn a_paste_that_nobody_reads_stops_nothing_else() {
    let (session, _home) = session().await;
    run_until_quiet(&session, "sleep 60", 100).await;
    let typing = tokio::spawn({
        let session = session.clone();
        async move { session.type_bytes(&b"line\r".repeat(24_000)).await }
    });
    // The terminal's queue is full once typing goes on no more; nobody says so, so this looks at both.
    let mut progress = session.progress();
    while progress.borrow().changes < 2 {
        progress.changed().await.unwrap();
    }
    assert_eq!(session.info().state, SessionState::Busy);
    session.resize(TerminalSize { rows: 30, columns: 90 }).await.unwrap();
    assert!(matches!(session.run(&request("echo x")).await, Err(SessionError::Busy { .. })));
    tokio::time::timeout(Duration::from_secs(15), session.reset()).await.unwrap().unwrap();
    assert!(matches!(typing.await.unwrap(), Err(SessionError::Reset { .. })));
    assert_eq!(run(&session, "echo alive").await, finished(0, "alive"));
    session.close().await;
}

#[tokio::test]
async fn a_command_in_a_shell_that_took_an_ended_ones_place_says_so() {
    let (session, _home) = session().await;
    run(&session, "exit 3").await;
    assert!(session.run(&request("true")).await.unwrap().new_shell);
    assert!(!session.run(&request("true")).await.unwrap().new_shell);
    session.close().await;
}

/// What people and their start-up files do to a shell; after each of them commands go on as before.
#[tokio::test]
async fn nothing_that_is_done_to_a_shell_freezes_it_or_takes_its_exit_codes() {
    for done in [
        "exec 2>&-",
        "exec 1>&- 2>&-; exec >/dev/tty",
        "set -r",
        "IFS=0123456789",
        "set -k",
        "set +o emacs; set +o vi",
        "set -o vi",
        "set -H; echo \"a!zzz\"",
        "ulimit -n 3",
        "printf() { echo mine; }; local() { :; }; set() { :; }; bind() { echo mine; }; read() { :; }",
        "readonly PS0 PS1 PS2 PROMPT_COMMAND rest=1 directory=2 python=3 echoes=4",
        "for name in $(compgen -v); do unset $name; done 2>/dev/null",
        "unset -f $(compgen -A function)",
        "builtin() { echo mine; }",
        "enable -n printf; TIMEFORMAT=%R",
        "enable -n builtin bind local printf return set",
        "readonly __wharf_count",
        "bind -r '\\C-m'",
        "bind '\"\\C-m\": self-insert' '\"\\e[200~\": self-insert'",
    ] {
        let (session, _home) = session().await;
        run(&session, done).await;
        let (outcome, output) = run(&session, "echo alive; (exit 5)").await;
        assert_eq!(outcome, CommandOutcome::Finished { exit_code: 5 }, "{done}: {output}");
        assert!(output.contains("alive"), "{done}: {output}");
        assert_eq!(run(&session, "true").await.0, CommandOutcome::Finished { exit_code: 0 }, "{done}");
        session.close().await;
    }
}

#[tokio::test]
async fn a_shell_that_cannot_say_how_commands_end_is_told_and_replaced() {
    for done in ["shopt -s extdebug; trap false DEBUG", "readonly __wharf_status", "alias {=echo"] {
        let (session, home) = session().await;
        run(&session, "mkdir sub; cd sub").await;
        assert_eq!(run(&session, done).await.0, CommandOutcome::ShellLost, "{done}");
        let after = session.run(&request("pwd")).await.unwrap();
        assert_eq!(after.output, home.path().join("sub").display().to_string(), "{done}");
        assert!(after.new_shell, "{done}");
        session.close().await;
    }
}

#[tokio::test]
async fn a_long_command_arrives_although_the_shells_builtins_are_out_of_reach() {
    let (session, _home) = session().await;
    run(&session, "enable -n printf").await;
    let text = "x".repeat(20_000);
    assert_eq!(run(&session, &format!("text={text}; echo ${{#text}}")).await, finished(0, "20000"));
    session.close().await;
}

#[tokio::test]
async fn no_start_up_file_keeps_a_shell_from_its_prompt() {
    let path = std::env::var("PATH").unwrap();
    for settings in [
        "set -u",
        "set -e",
        "readonly PROMPT_COMMAND='seen=yes'",
        "readonly PROMPT_COMMAND",
        "readonly PS0='' PS1='$ ' PS2=''",
        "alias printf=echo local=echo set=echo bind=echo case=echo builtin=echo",
        "PROMPT_COMMAND=(true)",
        "enable -n printf",
        "bind -r '\\C-m'",
    ] {
        let prepare = |home: &std::path::Path| std::fs::write(home.join(".bashrc"), settings).unwrap();
        let (session, _home) = session_prepared(&path, prepare).await;
        let patience = tokio::time::timeout(Duration::from_secs(20), run(&session, "echo alive; true"));
        assert_eq!(patience.await.expect(settings), finished(0, "alive"), "{settings}");
        session.close().await;
    }
    let (session, _home) =
        session_prepared(&path, |home| std::fs::write(home.join(".bashrc"), "exit 7").unwrap()).await;
    let refused = session.run(&request("true")).await.unwrap_err().to_string();
    assert_eq!(refused, "the shell of session `test` ended before its first prompt, with exit code 7");
}

#[tokio::test]
async fn a_session_whose_directory_is_gone_still_has_a_shell() {
    let (session, home) = session().await;
    run(&session, "mkdir sub; cd sub; rmdir ../sub; exit 3").await;
    assert_eq!(run(&session, "pwd").await, finished(0, &home.path().display().to_string()));
    std::fs::remove_dir_all(home.path()).unwrap();
    run(&session, "exit 3").await;
    let (outcome, _) = run(&session, "cd \"$PWD\"").await;
    assert_eq!(outcome, CommandOutcome::Finished { exit_code: 0 });
    session.reset().await.unwrap();
    assert_eq!(run(&session, "echo alive").await, finished(0, "alive"));
    session.close().await;
}

#[tokio::test]
async fn a_background_program_that_acts_like_readline_does_not_keep_the_prompt() {
    let (session, home) = session().await;
    let background = r"(until [ -e go ]; do :; done; printf '\033[?2004l\033[?2004hover' >/dev/tty) &";
    run(&session, background).await;
    let mut progress = session.progress();
    std::fs::write(home.path().join("go"), "").unwrap();
    let is_over = |_: &Progress| {
        let (bytes, _) = session.log().copy(ByteOffset(0), session.log().end());
        String::from_utf8_lossy(&bytes).ends_with("\x1b[?2004hover")
    };
    progress.wait_for(is_over).await.unwrap();
    assert!(session.progress().borrow().idle);
    let (outcome, output) = run(&session, "echo alive").await;
    assert_eq!(outcome, CommandOutcome::Finished { exit_code: 0 });
    assert!(output.contains("alive"), "{output}");
    session.close().await;
}

#[tokio::test]
async fn a_command_is_not_typed_into_the_rest_of_one_that_somebody_else_has_begun() {
    let (session, _home) = session().await;
    run(&session, "true").await;
    let mut progress = session.progress();
    session.type_bytes(b"echo \"abc\r").await.unwrap();
    progress.wait_for(|now| !now.idle).await.unwrap();
    assert!(matches!(session.run(&request("echo x")).await, Err(SessionError::Busy { .. })));
    assert!(type_until_prompt(&session, b"def\"\r").await.contains("abc\r\ndef\r\n"));
    assert_eq!(run(&session, "echo x").await, finished(0, "x"));
    session.close().await;
}

#[tokio::test]
async fn a_terminal_that_somebody_has_stopped_goes_on_with_the_next_command() {
    let (session, _home) = session().await;
    run(&session, "true").await;
    session.press_at_prompt(0x13).await.unwrap();
    assert_eq!(run(&session, "echo alive").await, finished(0, "alive"));
    session.close().await;
}

#[tokio::test]
async fn a_few_bytes_that_scroll_a_large_screen_take_little_memory() {
    let (session, _home) = session().await;
    session.resize(TerminalSize { rows: 4096, columns: 256 }).await.unwrap();
    let scrolls = r"s=$(printf '\033[4096S%.0s' {1..1000}); for i in {1..20}; do printf '%s' $s; done; echo end";
    let result = session.run(&request(scrolls)).await.unwrap();
    assert_eq!(result.outcome, CommandOutcome::Finished { exit_code: 0 });
    assert!(result.truncated && result.output.ends_with("end"));
    // Eighty million lines, of which as many are kept as there were bytes.
    assert!(result.output.len() < 200_000, "{}", result.output.len());
    session.close().await;
}

/// Whoever follows the output of a session whose shell has ended is told when the session goes.
#[tokio::test]
async fn readers_of_a_session_without_a_shell_end_with_it() {
    let (session, _home) = session().await;
    run(&session, "exit 3").await;
    let log = session.log().clone();
    let end = log.end();
    let reader = tokio::spawn(async move {
        while !log.read(end, 1).finished {
            log.wait_beyond(end).await;
        }
    });
    session.close().await;
    tokio::time::timeout(Duration::from_secs(20), reader).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_shell_that_is_no_bash_takes_commands_of_any_length_and_any_character() {
    for shell in ["/bin/dash", "/bin/busybox"] {
        let programs = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(shell, programs.path().join("sh")).unwrap();
        let (session, _home) = session_with(&programs.path().display().to_string()).await;
        let plain = "y".repeat(6_000);
        for (command, code, output) in [
            (format!("echo {plain}"), 0, plain.clone()),
            ("printf '%s' \"a\tb\"".to_owned(), 0, "a       b".to_owned()),
            ("(exit 3)".to_owned(), 3, String::new()),
            ("echo\t$?".to_owned(), 0, "3".to_owned()),
            ("x='\u{3}\u{4}\u{7f}\\0101'; echo\t${#x}".to_owned(), 0, "8".to_owned()),
            ("exit\t4".to_owned(), -1, String::new()),
        ] {
            let (outcome, said) = run(&session, &command).await;
            let shown = &command[..command.len().min(20)];
            match code {
                -1 => assert_eq!(outcome, CommandOutcome::ShellEnded { code: Some(4), signal: None }, "{shell}"),
                code => {
                    assert_eq!(outcome, CommandOutcome::Finished { exit_code: code }, "{shell}: {shown}: {said}");
                    assert_eq!(said, output, "{shell}: {shown}");
                }
            }
        }
        session.close().await;
    }
}
