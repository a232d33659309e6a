//! `wharf` killed at every call that it makes: what it leaves is finished by the same command, or removed by `wharf rm` or,
//! once its lease is over, by `wharf gc`.
//!
//! ```text
//! wharf ── call k ──▶ proxy: holds it before the API server, or the answer after it ── SIGKILL ── lets go
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::VecDeque, fmt, panic::AssertUnwindSafe, process::Output, sync::Mutex};

use futures_util::{FutureExt as _, future::join_all};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use wharf_kubernetes_tests::{
    cli::watched_wharf,
    cluster::{Namespace, settle, with_namespace},
    fault_proxy::{Action, Fault, FaultProxy, Gate, Match, Target, Times},
    sandbox::{IMAGE, RUNNING, SUSPENDED, config},
};

const ANCHOR: &str = "wharf-box";
const LEASE: &str = "wharf.dev/leased-until";
/// Cases at the same time: the machine has two processors.
const AT_ONCE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Create,
    Suspend,
    Resume,
    Remove,
}

impl Word {
    const LIFE: [Self; 4] = [Self::Create, Self::Suspend, Self::Resume, Self::Remove];

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create", "box", "--image", IMAGE],
            Self::Suspend => &["suspend", "box"],
            Self::Resume => &["resume", "box"],
            Self::Remove => &["rm", "box"],
        }
    }

    fn leaves(self) -> &'static [&'static str] {
        match self {
            Self::Create | Self::Resume => RUNNING,
            Self::Suspend => SUSPENDED,
            Self::Remove => &[],
        }
    }

    /// What has to be done before.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Create => &[],
            Self::Suspend | Self::Remove => &[Self::Create],
            Self::Resume => &[Self::Create, Self::Suspend],
        }
    }
}

/// What is done after the kill.
#[derive(Debug, Clone, Copy)]
enum Then {
    Again,
    Remove,
    Garbage,
}

#[derive(Clone)]
struct Case {
    word: Word,
    target: Target,
    /// How many calls of the same target come before.
    nth: usize,
    /// Whether the API server has carried out the call.
    carried_out: bool,
    then: Then,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { word, target, nth, carried_out, then } = self;
        let place = if *carried_out { "after" } else { "before" };
        write!(f, "{word:?} killed {place} `{target}` number {}, then {then:?}", nth + 1)
    }
}

/// `wharf` with a proxy in front of its API server.
struct Stage<'a> {
    namespace: &'a Namespace,
    proxy: FaultProxy,
    files: TempDir,
}

impl<'a> Stage<'a> {
    async fn new(namespace: &'a Namespace) -> Self {
        let proxy = FaultProxy::start(namespace.config.clone()).await;
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("kubeconfig"), proxy.kubeconfig(&namespace.name)).unwrap();
        std::fs::write(files.path().join("config.toml"), config(&namespace.name, "")).unwrap();
        Self { namespace, proxy, files }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        watched_wharf(self.files.path(), &self.files.path().join("kubeconfig"), arguments)
    }

    async fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let Output { status, stderr, .. } = self.command(arguments).output().await.unwrap();
        match status.success() {
            true => Ok(()),
            false => Err(format!("`wharf {}`: {status}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr))),
        }
    }

    async fn settled(&self, expected: &[&str]) -> Result<(), String> {
        let settled = settle(&self.namespace.client, &self.namespace.name, expected);
        let settled = AssertUnwindSafe(settled).catch_unwind().await;
        settled.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    async fn remove(&self) -> Result<(), String> {
        match self.run(Word::Remove.arguments()).await {
            Err(why) if !why.contains("there is no sandbox") => Err(why),
            Ok(()) | Err(_) => self.settled(&[]).await,
        }
    }

    /// Until the anchor is garbage a person would wait; nothing is asked for what is kept.
    async fn is_leased(&self) -> Option<bool> {
        let anchor = self.namespace.api::<Secret>().get_opt(ANCHOR).await.unwrap()?;
        Some(anchor.metadata.annotations.unwrap_or_default().contains_key(LEASE))
    }

    async fn age(&self) {
        let past = json!({ "metadata": { "annotations": { LEASE: "2020-01-01T00:00:00Z" } } });
        let patch = Patch::Merge(past);
        // One that is on its way out may be gone by now.
        let _ = self.namespace.api::<Secret>().patch(ANCHOR, &PatchParams::default(), &patch).await;
    }

    /// Kills the command of `case` at its call; `false` if it is over without one.
    async fn kill(&self, case: &Case) -> bool {
        let gate = Gate::default();
        let resource = case.target.resource.clone().map(|resource| &*resource.leak());
        if resource.is_none() {
            // Nothing matches the version alone: all else with its verb passes first.
            for other in ["secrets", "pods", "services", "networkpolicies", "persistentvolumeclaims", "ingresses"] {
                let pass = Action::Delay(std::time::Duration::ZERO);
                self.proxy.add(Fault::always(Match::new(case.target.verb, other), pass));
            }
        }
        let action = match case.carried_out {
            true => Action::PauseAfter(gate.clone()),
            false => Action::PauseBefore(gate.clone()),
        };
        let matches = Match { verb: Some(case.target.verb), resource, name: case.target.name.clone() };
        self.proxy.add(Fault { matches, after: case.nth, times: Times::Once, action });
        let mut wharf = self.command(case.word.arguments()).spawn().unwrap();
        let reached = tokio::select! {
            biased;
            () = gate.reached() => true,
            _ = wharf.wait() => false,
        };
        wharf.kill().await.unwrap();
        gate.open();
        self.proxy.clear();
        reached
    }

    async fn check(&self, case: &Case) -> Result<(), String> {
        for word in case.word.needs() {
            self.run(word.arguments()).await?;
        }
        let sure = !matches!(case.target.resource.as_deref(), Some("events" | "pods/portforward"));
        if !self.kill(case).await && sure {
            return Err("this call was not made".to_owned());
        }
        match case.then {
            Then::Again => {
                let kept = self.is_leased().await == Some(false);
                match self.run(case.word.arguments()).await {
                    Err(why) if case.word == Word::Create && kept && why.contains("exists already") => {}
                    Err(why) if case.word == Word::Remove && why.contains("there is no sandbox") => {}
                    done => done?,
                }
                self.settled(case.word.leaves()).await?;
            }
            Then::Remove => {}
            Then::Garbage => match self.is_leased().await {
                None => return self.settled(&[]).await,
                Some(false) if case.word == Word::Create => self.settled(RUNNING).await?,
                Some(false) => {}
                Some(true) => {
                    self.age().await;
                    self.run(&["gc"]).await?;
                    return self.settled(&[]).await;
                }
            },
        }
        self.remove().await
    }
}

/// A life without a kill: the calls of each command, before and after which it can be killed.
async fn cases() -> Vec<Case> {
    let recorded = Mutex::new(Vec::new());
    with_namespace("recorded", async |namespace| {
        let stage = Stage::new(&namespace).await;
        for word in Word::LIFE {
            let before = stage.proxy.calls().len();
            stage.run(word.arguments()).await.unwrap();
            let calls: Vec<_> = stage.proxy.calls().split_off(before).into_iter().map(|call| call.target).collect();
            let then: &[Then] = match word {
                Word::Create => &[Then::Again, Then::Remove, Then::Garbage],
                Word::Suspend | Word::Resume => &[Then::Again, Then::Remove],
                Word::Remove => &[Then::Again],
            };
            for (place, target) in calls.iter().enumerate() {
                let nth = calls[..place].iter().filter(|before| *before == target).count();
                for carried_out in [false, true] {
                    recorded.lock().unwrap().extend(then.iter().map(|then| Case {
                        word,
                        target: target.clone(),
                        nth,
                        carried_out,
                        then: *then,
                    }));
                }
            }
        }
    })
    .await;
    recorded.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_killed_at_any_call_leaves_what_the_next_one_finishes_or_removes() {
    let cases = Mutex::new(VecDeque::from(cases().await));
    let failures = Mutex::new(Vec::new());
    let worker = || {
        with_namespace("kills", async |namespace| {
            let next = || cases.lock().unwrap().pop_front();
            while let Some(case) = next() {
                let stage = Stage::new(&namespace).await;
                if let Err(why) = stage.check(&case).await {
                    failures.lock().unwrap().push(format!("{case}: {why}"));
                    stage.remove().await.unwrap();
                }
            }
        })
    };
    join_all((0..AT_ONCE).map(|_| worker())).await;
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}
