use super::*;
use crate::{output_log::OutputBudget, process::users::current_user};

fn place() -> Place {
    let environment = Environment::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]);
    Place { user: current_user(), environment, working_dir: "/".into() }
}

struct Harness {
    execs: Execs,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Harness {
    fn new() -> Self {
        Self {
            execs: Execs::new(4, 1 << 20, OutputBudget::new(64 << 20)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }

    fn start(&self, request: ExecRequest) -> Result<(Arc<Exec>, bool), Problem> {
        self.execs.start(request, place(), &self.tasks, &self.shutdown)
    }
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { argv: vec!["sh".into(), "-c".into(), script.into()], ..ExecRequest::default() }
}

fn printed(exec: &Exec, wanted: Stream) -> String {
    let read = exec.log().read(wharf_protocol::ByteOffset(0), usize::MAX);
    let bytes: Vec<u8> = read
        .frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Output { stream, data, .. } if *stream == wanted => Some(data.to_vec()),
            _ => None,
        })
        .flatten()
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What `/proc` says of a process; nothing if there is none.
fn stat(pid: &str) -> String {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default()
}

#[tokio::test]
async fn output_and_error_are_apart_and_the_exit_code_is_kept() {
    let harness = Harness::new();
    let (exec, _) = harness.start(sh("echo out; echo err >&2; exit 7")).unwrap();
    assert_eq!(exec.wait().await.state, ExecState::Exited { code: 7 });
    assert_eq!((printed(&exec, Stream::Stdout), printed(&exec, Stream::Stderr)), ("out\n".into(), "err\n".into()));
    assert!(harness.execs.remove(exec.id()).await.unwrap());
    assert!(!harness.execs.remove(exec.id()).await.unwrap());
}

#[tokio::test]
async fn a_late_removal_takes_no_other_exec_of_that_id_out_of_the_table() {
    let harness = Harness::new();
    let request = ExecRequest { id: Some("again".parse().unwrap()), ..sh("sleep 1000") };
    let (first, _) = harness.start(request.clone()).unwrap();
    let mut late = Box::pin(harness.execs.remove(first.id()));
    assert!(futures_util::poll!(&mut late).is_pending());
    assert!(harness.execs.remove(first.id()).await.unwrap());
    let (second, started) = harness.start(request).unwrap();
    assert!(started);
    assert!(late.await.unwrap());
    assert_eq!(second.info().state, ExecState::Running);
    assert!(harness.execs.find(second.id()).is_some(), "it runs and can be found");
    assert!(harness.execs.remove(second.id()).await.unwrap());
}

#[tokio::test]
async fn input_reaches_the_process_up_to_its_end() {
    let harness = Harness::new();
    let (exec, _) = harness.start(ExecRequest { stdin: true, ..sh("cat; echo done") }).unwrap();
    exec.write(b"hello ").await.unwrap();
    exec.write(b"you\n").await.unwrap();
    exec.end_input();
    assert_eq!(exec.wait().await.state, ExecState::Exited { code: 0 });
    assert_eq!(printed(&exec, Stream::Stdout), "hello you\ndone\n");
    assert_eq!(exec.write(b"late").await.unwrap_err().kind, ProblemKind::Conflict);
}

#[tokio::test]
async fn a_terminal_is_one_and_takes_its_size() {
    let harness = Harness::new();
    let terminal = Some(TerminalSize { rows: 7, columns: 33 });
    let (exec, _) = harness.start(ExecRequest { terminal, ..sh("stty size; tty; read x; stty size") }).unwrap();
    exec.resize(8, 44).unwrap();
    exec.write(b"\n").await.unwrap();
    exec.wait().await;
    let text = printed(&exec, Stream::Terminal);
    assert!(text.contains("/dev/pts/") && text.contains("8 44"), "{text}");
}

#[tokio::test]
async fn a_time_limit_kills_the_whole_tree() {
    let harness = Harness::new();
    let script = "setsid sh -c 'trap \"\" HUP TERM; exec sleep 1000' & echo $!; sleep 1000";
    let (exec, _) = harness.start(ExecRequest { timeout_ms: Some(300), ..sh(script) }).unwrap();
    assert_eq!(exec.wait().await.state, ExecState::TimedOut);
    let pid = printed(&exec, Stream::Stdout);
    assert!(stat(&pid).is_empty() || stat(&pid).contains(") Z "), "{}", stat(&pid));
}

/// Ends what a test has left behind in the background.
fn clean_up(pid: &str) {
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).expect("it was left running");
}

#[tokio::test]
async fn what_is_left_in_the_background_outlives_the_exec() {
    let harness = Harness::new();
    for script in ["sleep 1000 & echo $!", "nohup setsid sleep 1000 >/dev/null 2>&1 & echo $!"] {
        let (exec, _) = harness.start(sh(script)).unwrap();
        assert_eq!(exec.wait().await.state, ExecState::Exited { code: 0 });
        let pid = printed(&exec, Stream::Stdout);
        harness.execs.remove(exec.id()).await.unwrap();
        assert!(!stat(&pid).is_empty() && !stat(&pid).contains(") Z "), "{}", stat(&pid));
        clean_up(&pid);
    }
}

#[tokio::test]
async fn the_same_request_finds_the_same_exec_and_another_conflicts() {
    let harness = Harness::new();
    let id = Some("same".parse().unwrap());
    let (first, started) = harness.start(ExecRequest { id: id.clone(), ..sh("true") }).unwrap();
    let (second, again) = harness.start(ExecRequest { id: id.clone(), ..sh("true") }).unwrap();
    assert!(started && !again && Arc::ptr_eq(&first, &second));
    assert_eq!(harness.start(ExecRequest { id, ..sh("false") }).unwrap_err().kind, ProblemKind::Conflict);
}

#[tokio::test]
async fn what_cannot_run_is_refused_before_anything_starts() {
    let harness = Harness::new();
    for (argv, field) in
        [(vec![], "argv"), (vec!["a\0b".to_owned()], "argv"), (vec!["/nonexistent".to_owned()], "argv")]
    {
        let problem = harness.start(ExecRequest { argv, ..ExecRequest::default() }).unwrap_err();
        assert_eq!((problem.kind, problem.field.as_deref()), (ProblemKind::InvalidRequest, Some(field)));
    }
    let running: Vec<_> = (0..4).map(|_| harness.start(sh("sleep 1000")).unwrap()).collect();
    assert_eq!(harness.start(sh("true")).unwrap_err().kind, ProblemKind::LimitReached);
    for (exec, _) in running {
        harness.execs.remove(exec.id()).await.unwrap();
    }
    assert!(harness.start(sh("true")).is_ok());
}

#[tokio::test]
async fn finished_execs_make_place_for_new_ones_oldest_first() {
    let harness = Harness::new();
    let mut ids = Vec::new();
    for number in 0..300 {
        let (exec, _) = harness.start(sh("echo $0")).unwrap_or_else(|problem| panic!("{number}: {problem}"));
        exec.wait().await;
        ids.push(exec.id().clone());
    }
    let kept: Vec<bool> = ids.iter().map(|id| harness.execs.find(id).is_some()).collect();
    assert_eq!(kept, [vec![false; 296], vec![true; 4]].concat());
    let here = harness.execs.find(&ids[296]).unwrap().arrive();
    harness.start(sh("sleep 1000")).unwrap();
    assert!(harness.execs.find(&ids[296]).is_some() && harness.execs.find(&ids[297]).is_none(), "it is being read");
    drop(here);
    harness.shutdown.cancel();
}

#[tokio::test]
async fn all_execs_together_keep_no_more_than_their_budget() {
    let budget = OutputBudget::new(1 << 20);
    let execs = Execs::new(8, 1 << 20, budget.clone());
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    for _ in 0..4 {
        let (exec, _) = execs.start(sh("head -c 700000 /dev/zero"), place(), &tasks, &shutdown).unwrap();
        assert_eq!(exec.wait().await.output_end.0, 700_000);
    }
    assert!((500_000..=1 << 20).contains(&budget.used()), "{}", budget.used());
}

#[tokio::test]
async fn a_finished_exec_is_forgotten_after_a_day_unless_it_is_being_read() {
    let harness = Harness::new();
    let (old, young) = (harness.start(sh("true")).unwrap().0, harness.start(sh("true")).unwrap().0);
    for (exec, hours) in [(&old, 25), (&young, 23)] {
        exec.wait().await;
        let ended = SystemTime::now() - Duration::from_secs(hours * 3600);
        exec.state.send_modify(|observed| observed.finished_at = Some(ended));
    }
    let here = old.arrive();
    assert_eq!(harness.execs.list().len(), 2);
    drop(here);
    let kept: Vec<ExecId> = harness.execs.list().iter().map(|exec| exec.id().clone()).collect();
    assert_eq!(kept, [young.id().clone()]);
}

/// Reads as the caller does, one frame's worth at a time.
async fn read_slowly(exec: &Exec, until: u64) -> Vec<u8> {
    let (mut at, mut bytes) = (ByteOffset(0), Vec::new());
    loop {
        let read = exec.log().read(at, 100_000);
        for frame in &read.frames {
            let Frame::Output { data, .. } = frame else { panic!("{frame:?}") };
            bytes.extend_from_slice(data);
        }
        at = read.next;
        if read.finished || at.0 >= until {
            return bytes;
        }
        exec.log().acknowledge(at);
        tokio::task::yield_now().await;
        exec.log().wait_beyond(at).await;
    }
}

#[tokio::test]
async fn a_process_waits_for_a_slow_reader_and_loses_nothing() {
    let harness = Harness::new();
    let request = ExecRequest { when_full: WhenFull::Wait, ..sh("seq 1 3000000; seq 1 30 >&2") };
    let (exec, _) = harness.start(request).unwrap();
    let here = exec.arrive();
    // All that goes in without a reader: the log and the pipe.
    exec.log().wait_beyond(ByteOffset(900_000)).await;
    let waiting = tokio::time::timeout(Duration::from_millis(500), exec.log().wait_beyond(ByteOffset(1 << 20))).await;
    assert!(waiting.is_err() && exec.info().state == ExecState::Running, "{:?}", exec.info());
    let bytes = read_slowly(&exec, u64::MAX).await;
    let expected: String =
        (1..=3_000_000).map(|n| format!("{n}\n")).chain((1..=30).map(|n| format!("{n}\n"))).collect();
    assert_eq!(bytes.len(), expected.len());
    assert_eq!(exec.wait().await.state, ExecState::Exited { code: 0 });
    drop(here);
}

#[tokio::test]
async fn the_last_words_before_the_end_come_whole_however_late_they_are_read() {
    let harness = Harness::new();
    let request = ExecRequest { when_full: WhenFull::Wait, ..sh("head -c 1030000 /dev/zero; exec sleep 1000 >&2 &") };
    let (exec, _) = harness.start(request).unwrap();
    let here = exec.arrive();
    exec.log().wait_beyond(ByteOffset(900_000)).await;
    exec.process_ended.cancelled().await;
    tokio::time::sleep(2 * LINGER).await;
    assert_eq!(read_slowly(&exec, u64::MAX).await.len(), 1_030_000);
    drop(here);
    exec.tree.end(Duration::ZERO).await;
}

#[tokio::test]
async fn a_caller_who_has_gone_for_good_is_not_waited_for() {
    let harness = Harness::new();
    let gone = |on_disconnect| ExecRequest {
        when_full: WhenFull::Wait,
        on_disconnect,
        disconnect_grace_ms: Some(100),
        ..sh("trap '' HUP TERM; head -c 3000000 /dev/zero; echo done >&2; exit 5")
    };
    let (exec, _) = harness.start(gone(OnDisconnect::KeepRunning)).unwrap();
    assert_eq!(exec.wait().await.state, ExecState::Exited { code: 5 });
    assert_eq!(exec.info().output_end.0, 3_000_005);
    let (exec, _) = harness.start(ExecRequest { argv: sh("sleep 1000").argv, ..gone(OnDisconnect::Kill) }).unwrap();
    let ended = exec.wait().await;
    assert!(matches!(ended.state, ExecState::Signalled { .. }) && ended.caller_gone, "{ended:?}");
    let (exec, _) = harness.start(sh("kill -HUP $$")).unwrap();
    let ended = exec.wait().await;
    assert!(matches!(ended.state, ExecState::Signalled { .. }) && !ended.caller_gone, "{ended:?}");
}

#[tokio::test]
async fn a_broken_connection_is_borne_for_the_grace_and_a_close_ends_at_once() {
    let harness = Harness::new();
    let request =
        |grace| ExecRequest { on_disconnect: OnDisconnect::Kill, disconnect_grace_ms: grace, ..sh("sleep 1000") };
    let (exec, _) = harness.start(request(None)).unwrap();
    drop(exec.arrive());
    let still = tokio::time::timeout(Duration::from_millis(300), exec.wait()).await;
    assert!(still.is_err(), "45 s have not passed");
    let (watcher, caller) = (exec.arrive(), exec.arrive());
    caller.leave();
    assert!(tokio::time::timeout(Duration::from_millis(300), exec.wait()).await.is_err(), "another is there");
    watcher.leave();
    exec.wait().await;
    let (never_attached, _) = harness.start(request(Some(100))).unwrap();
    never_attached.wait().await;
}

#[tokio::test]
async fn a_time_limit_asks_with_sigterm_before_it_kills() {
    let harness = Harness::new();
    let script = "trap 'echo asked; exit 3' TERM; trap 'echo hung up' HUP; while :; do sleep 0.05; done";
    let (exec, _) = harness.start(ExecRequest { timeout_ms: Some(200), ..sh(script) }).unwrap();
    assert_eq!(exec.wait().await.state, ExecState::TimedOut);
    assert_eq!(printed(&exec, Stream::Stdout), "asked\n");
}

#[tokio::test]
async fn endless_output_stays_within_the_log() {
    let harness = Harness::new();
    let (exec, _) = harness.start(sh("yes | head -c 30000000")).unwrap();
    assert_eq!(exec.wait().await.state, ExecState::Exited { code: 0 });
    assert_eq!(exec.info().output_end.0, 30_000_000);
    assert!(printed(&exec, Stream::Stdout).len() < 2 << 20);
}

#[tokio::test]
async fn a_child_that_keeps_the_input_does_not_hold_up_the_end() {
    let harness = Harness::new();
    let script = "exec 3<&0; sleep 1000 <&3 >&- 2>&- & head -c 1 >/dev/null; echo $!";
    let (exec, _) = harness.start(ExecRequest { stdin: true, ..sh(script) }).unwrap();
    let (written, ended) = tokio::join!(exec.write(&[b'x'; 4 << 20]), exec.wait());
    assert_eq!(written.unwrap_err().kind, ProblemKind::Conflict, "the sleeper never reads");
    assert_eq!(ended.state, ExecState::Exited { code: 0 });
    assert!(harness.execs.remove(exec.id()).await.unwrap());
}

#[tokio::test]
async fn what_is_left_in_the_background_may_go_on_printing() {
    let harness = Harness::new();
    let here = tempfile::tempdir().unwrap();
    let (go, done) = (here.path().join("go"), here.path().join("done"));
    // By no child of ours: what ends a tree in another test reaps whatever it did not start.
    for fifo in [&go, &done] {
        rustix::fs::mkfifoat(rustix::fs::CWD, fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    }
    let script = format!("(read x < {}; echo late && echo alive > {}) & echo $!", go.display(), done.display());
    let (exec, _) = harness.start(sh(&script)).unwrap();
    exec.wait().await;
    assert!(exec.log().is_closed());
    tokio::fs::write(&go, "\n").await.unwrap();
    assert_eq!(tokio::fs::read_to_string(&done).await.unwrap(), "alive\n", "printing has not killed it");
    assert!(!printed(&exec, Stream::Stdout).contains("late"), "a closed log takes nothing");
    harness.execs.remove(exec.id()).await.unwrap();
}

#[tokio::test]
async fn a_process_that_left_its_environment_session_and_parent_ends_with_a_running_exec() {
    let harness = Harness::new();
    let script = "env -i setsid /bin/sh -c '/bin/sleep 1000 >/dev/null 2>&1 & echo $!' | cat; sleep 1000";
    let (exec, _) = harness.start(sh(script)).unwrap();
    exec.log().wait_beyond(ByteOffset(0)).await;
    let pid = printed(&exec, Stream::Stdout);
    // It is a shell's copy until it has started.
    while !stat(&pid).contains("sleep") {
        tokio::task::yield_now().await;
    }
    harness.execs.remove(exec.id()).await.unwrap();
    assert!(stat(&pid).is_empty() || stat(&pid).contains(") Z "), "{}", stat(&pid));
}

#[tokio::test]
async fn a_tree_that_forks_all_the_time_and_heeds_no_signal_ends() {
    let harness = Harness::new();
    // Bounded in itself, should the test fail: about a thousand processes, each for a tenth of a second.
    let script = "trap '' HUP TERM; echo $$; \
                  f() { sleep 0.1; [ $1 -gt 9 ] && { sleep 30; return; }; f $(($1 + 1)) & f $(($1 + 1)) & }; f 0; sleep 30";
    let (exec, _) = harness.start(ExecRequest { timeout_ms: Some(1500), ..sh(script) }).unwrap();
    assert_eq!(exec.wait().await.state, ExecState::TimedOut);
    let group = printed(&exec, Stream::Stdout).trim().to_owned();
    let alive = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        (fields[0] != "Z" && fields[3] == group).then(|| stat.clone())
    });
    assert_eq!(alive.collect::<Vec<_>>(), Vec::<String>::new());
}
