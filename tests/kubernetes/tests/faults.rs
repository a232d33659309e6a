//! Whatever goes wrong once is got over, and whatever goes wrong for ever is told and leaves nothing: each call of a
//! sandbox's life to the API server, the pod itself, and callers that race.
//!
//! ```text
//! recorded(): lives without faults ──▶ calls of create, get_ready, suspend, resume, remove; connect, attach, close, delete
//!                                      │ × what can go wrong
//!                                      ▼
//! live(): lives in which each operation meets one fault ──▶ did it succeed, and which objects are there?
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    fmt,
    panic::AssertUnwindSafe,
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, future::join_all, stream};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{
    DeleteParams, EvictParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;
use tokio::time::timeout;
use wharf_client::Sandbox;
use wharf_kubernetes_tests::{
    cluster::{Namespace, settle, with_namespace},
    fault_proxy::{Action, Call, Fault, FaultProxy, Gate, Match, Target, Times, Verb},
    sandbox::{IMAGE, RUNNING, SUSPENDED, config, id, runtime, settings, spec},
};
use wharf_protocol::{ExecRequest, SandboxSpec};
use wharf_runtime::{
    Lifetime, Status,
    kubernetes::{
        Found, KubernetesError, KubernetesRuntime, Settings,
        contract::{Connect, SessionError},
    },
};

const PAST: &str = "2020-01-01T00:00:00Z";
/// Cases at the same time: the machine has two processors.
const AT_ONCE: usize = 8;
/// What goes wrong once holds nobody up for longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Create,
    GetReady,
    Suspend,
    Resume,
    Remove,
    // As the original's clients say it.
    Connect,
    Attach,
    Close,
    Delete,
}

impl Operation {
    /// One life after the other.
    const LIVES: [Self; 9] = [
        Self::Create,
        Self::GetReady,
        Self::Suspend,
        Self::Resume,
        Self::Remove,
        Self::Connect,
        Self::Attach,
        Self::Close,
        Self::Delete,
    ];

    async fn carry_out(self, runtime: &KubernetesRuntime) -> Result<(), KubernetesError> {
        match self {
            Self::Create => create(runtime).await.map(drop),
            Self::GetReady => runtime.get_ready(&id(), &|_| {}).await.map(drop),
            Self::Suspend => runtime.suspend(&id(), &|_| {}).await,
            Self::Resume => runtime.resume(&id(), &|_| {}).await.map(drop),
            Self::Remove => runtime.remove(&id(), &|_| {}).await.map(drop),
            Self::Connect => connect(runtime, false).await,
            Self::Attach => connect(runtime, true).await,
            Self::Close => runtime.close(&id(), false).await,
            Self::Delete => runtime.delete(&id()).await,
        }
    }

    /// What there is to be done before it, in an empty namespace.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Create | Self::Connect => &[],
            Self::GetReady | Self::Suspend | Self::Attach | Self::Close => &[Self::Create],
            Self::Resume | Self::Remove | Self::Delete => &[Self::Create, Self::Suspend],
        }
    }

    /// Whether it makes such a call each time, if it has made it once. Why something takes long is asked only if it does, who
    /// attaches to a pod that answers at once need not follow it, and whether a pod still has its address is asked after a
    /// second.
    fn surely_makes(self, call: &Target) -> bool {
        let resource = call.resource.as_deref();
        resource != Some("events")
            && (self, call.verb) != (Self::Attach, Verb::Watch)
            && (call.verb, resource) != (Verb::Get, Some("pods"))
    }

    /// What is there after it.
    fn leaves(self) -> &'static [&'static str] {
        match self {
            Self::Create | Self::GetReady | Self::Resume | Self::Connect | Self::Attach => RUNNING,
            Self::Suspend | Self::Close => SUSPENDED,
            Self::Remove | Self::Delete => &[],
        }
    }
}

async fn create(runtime: &KubernetesRuntime) -> Result<Found, KubernetesError> {
    runtime.create(&id(), &spec(), Lifetime::Kept, &|_| {}).await
}

async fn connect(runtime: &KubernetesRuntime, attach_to_existing: bool) -> Result<(), KubernetesError> {
    let options = Connect { attach_to_existing, ..Connect::default() };
    let set_up = async |_: &Sandbox| Ok::<_, Infallible>(());
    match runtime.connect(&id(), &options, &|_| {}, &|_| {}, set_up).await {
        Ok(_) => Ok(()),
        Err(SessionError::NotFound { source, .. } | SessionError::Disconnected { source: Some(source), .. }) => {
            Err(*source)
        }
        // There is nothing to attach to.
        Err(SessionError::Disconnected { source: None, .. }) => Err(KubernetesError::NotFound(id())),
        Err(error) => panic!("{error}"),
    }
}

/// Makes a runtime that reaches the API server through a proxy of its own.
async fn stage(namespace: &Namespace) -> (FaultProxy, KubernetesRuntime) {
    stage_with(namespace, |_| {}).await
}

async fn stage_with(namespace: &Namespace, set: impl FnOnce(&mut Settings)) -> (FaultProxy, KubernetesRuntime) {
    let proxy = FaultProxy::start(namespace.config.clone()).await;
    let mut settings = settings(&config(&namespace.name, &format!("image = \"{IMAGE}\"\nroute = \"pod-address\"")));
    set(&mut settings);
    let runtime = runtime(namespace, proxy.kube_config(&namespace.name), settings);
    (proxy, runtime)
}

/// Which call goes wrong, and how.
#[derive(Clone)]
struct Wrong {
    target: Target,
    /// How many calls of the same target come before it in its operation.
    nth: usize,
    how: &'static str,
    action: Action,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` number {} meets {}", self.target, self.nth + 1, self.how)
    }
}

impl Wrong {
    fn add_to(&self, proxy: &FaultProxy, times: Times) {
        let Target { verb, resource, name, .. } = self.target.clone();
        let resource: Option<&'static str> = resource.map(|resource| &*resource.leak());
        if resource.is_none() {
            // Nothing matches the version alone: all else with its verb passes first.
            for other in ["secrets", "pods", "services", "networkpolicies", "persistentvolumeclaims", "ingresses"] {
                proxy.add(Fault::always(Match::new(verb, other), Action::Delay(Duration::ZERO)));
            }
        }
        let matches = Match { verb: Some(verb), resource, name };
        proxy.add(Fault { matches, after: self.nth, times, action: self.action.clone() });
    }
}

fn status(code: u16, reason: &'static str) -> Action {
    let retry_after = (code == 429).then_some(Duration::from_secs(1));
    Action::Status { code, reason, message: format!("forced {code}"), retry_after }
}

/// All that may go wrong with one call and be over then, but for silence.
fn passing(verb: Verb) -> Vec<(&'static str, Action)> {
    let mut all = vec![
        ("409", status(409, "Conflict")),
        ("429", status(429, "TooManyRequests")),
        ("500", status(500, "InternalError")),
        ("503", status(503, "ServiceUnavailable")),
        ("a cut before the server", Action::CutBefore),
        ("a cut after the server", Action::CutAfter),
    ];
    if verb == Verb::Watch {
        all.extend([
            ("410", status(410, "Expired")),
            ("an event 410", Action::Gone),
            ("a cut at once", Action::CutStreamAfterEvents(0)),
            ("a cut after one event", Action::CutStreamAfterEvents(1)),
            ("an end after one event", Action::EndStreamAfterEvents(1)),
        ]);
    }
    all
}

/// The calls of each operation of a life in which nothing goes wrong.
async fn recorded() -> BTreeMap<Operation, Vec<Call>> {
    let mut all = BTreeMap::new();
    with_namespace("recorded", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        for operation in Operation::LIVES {
            let before = proxy.calls().len();
            operation.carry_out(&runtime).await.unwrap();
            settle(&namespace.client, &namespace.name, operation.leaves()).await;
            all.insert(operation, proxy.calls().split_off(before));
        }
    })
    .await;
    all
}

/// Each of `calls` with each way to go wrong that there is for it.
fn every(calls: &[Call], ways: impl Fn(&Target) -> Vec<(&'static str, Action)>) -> Vec<Wrong> {
    let place = |(place, call): (usize, &Call)| {
        let target = call.target.clone();
        let nth = calls[..place].iter().filter(|before| before.target == target).count();
        let ways = ways(&target);
        ways.into_iter().map(move |(how, action)| Wrong { target: target.clone(), nth, how, action })
    };
    calls.iter().enumerate().flat_map(place).collect()
}

/// What goes wrong in each operation of one life.
type Life = BTreeMap<Operation, Wrong>;

/// Spreads what goes wrong over as few lives as possible.
fn lives(mut wrong: BTreeMap<Operation, Vec<Wrong>>) -> Vec<Life> {
    let mut all = Vec::new();
    loop {
        let life: Life = wrong.iter_mut().filter_map(|(operation, all)| Some((*operation, all.pop()?))).collect();
        if life.is_empty() {
            return all;
        }
        all.push(life);
    }
}

/// Tries all cases, some at the same time, each in a namespace that is empty before.
///
/// # Panics
///
/// With every case that failed.
async fn check_all<Case>(cases: Vec<Case>, check: impl AsyncFn(&Namespace, Case) -> Vec<String>) {
    let (cases, failures) = (Mutex::new(VecDeque::from(cases)), Mutex::new(Vec::new()));
    let worker = || {
        with_namespace("faults", async |namespace| {
            let next = || cases.lock().unwrap().pop_front();
            while let Some(case) = next() {
                let failed = check(&namespace, case).await;
                if !failed.is_empty() {
                    failures.lock().unwrap().extend(failed);
                    clear(&namespace).await;
                }
            }
        })
    };
    join_all((0..AT_ONCE).map(|_| worker())).await;
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

async fn clear(namespace: &Namespace) {
    let (_proxy, runtime) = stage(namespace).await;
    let _ = runtime.remove(&id(), &|_| {}).await;
    settle(&namespace.client, &namespace.name, [""; 0]).await;
}

/// Whether exactly these objects are there, at once or a moment later.
async fn settled(namespace: &Namespace, expected: &[&str]) -> Result<(), String> {
    let settled = AssertUnwindSafe(settle(&namespace.client, &namespace.name, expected)).catch_unwind().await;
    settled.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

/// One life, in which each operation is to succeed although something goes wrong.
async fn live(namespace: &Namespace, life: Life) -> Vec<String> {
    let (proxy, runtime) = stage(namespace).await;
    let mut failures = Vec::new();
    for operation in Operation::LIVES {
        let before = proxy.calls().len();
        proxy.clear();
        let wrong = life.get(&operation);
        if let Some(wrong) = wrong {
            wrong.add_to(&proxy, Times::Once);
        }
        let done = timeout(PATIENCE, operation.carry_out(&runtime)).await;
        let calls = proxy.calls().split_off(before);
        proxy.clear();
        let outcome = match done {
            Ok(Ok(())) => is_well(namespace, &runtime, operation).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not end".to_owned()),
        };
        let text = wrong.map(Wrong::to_string).unwrap_or_default();
        let mut fail = |why: &str| {
            let calls: Vec<_> = calls.iter().map(|call| format!("    {call}")).collect();
            failures.push(format!("{operation:?}: {text}: {why}\n{}", calls.join("\n")));
        };
        if let Err(why) = outcome {
            fail(&why);
            break;
        }
        let sure = wrong.filter(|wrong| operation.surely_makes(&wrong.target));
        let met =
            |call: &Call, wrong: &Wrong| call.fault.is_some() && call.target.to_string() == wrong.target.to_string();
        if sure.is_some_and(|wrong| !calls.iter().any(|call| met(call, wrong))) {
            fail("this call was not made");
        }
        let pods = calls.iter().filter(|call| call.target.resource.as_deref() == Some("pods"));
        if pods.filter(|call| call.status() == Some(201)).count() > 1 {
            fail("more than one pod was made");
        }
    }
    failures
}

/// Whether there is exactly what is to be there, and can be used.
async fn is_well(namespace: &Namespace, runtime: &KubernetesRuntime, operation: Operation) -> Result<(), String> {
    settled(namespace, operation.leaves()).await?;
    if operation.leaves() != RUNNING {
        return Ok(());
    }
    let found = runtime.get_ready(&id(), &|_| {}).await.map_err(|error| error.to_string())?;
    let sandbox = found.sandbox().ok_or("there is no way to it")?;
    sandbox.alive().await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_once_in_any_call_is_got_over_and_leaves_nothing() {
    let calls = recorded().await;
    let wrong = calls.iter().map(|(operation, calls)| (*operation, every(calls, |target| passing(target.verb))));
    check_all(lives(wrong.collect()), live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_never_answered_is_made_again() {
    let calls = recorded().await;
    let silent = |(operation, call): &(Operation, &str)| {
        let meant = calls[operation].iter().filter(|made| made.target.to_string().starts_with(call)).cloned();
        let mut wrong = every(&meant.collect::<Vec<_>>(), |_| vec![("silence", Action::Silence)]);
        assert!(!wrong.is_empty(), "{operation:?} makes no call `{call}`");
        (*operation, wrong.swap_remove(0))
    };
    use Operation::{Create, GetReady, Remove, Resume, Suspend};
    let cases = [
        vec![(Create, "create pods"), (Suspend, "delete pods")],
        vec![(Create, "patch secrets"), (Resume, "patch secrets")],
        vec![(Create, "watch pods"), (Remove, "delete secrets")],
        vec![(Create, "create secrets"), (Remove, "watch secrets")],
        vec![(GetReady, "get pods"), (Suspend, "watch pods")],
    ];
    check_all(cases.iter().map(|life| life.iter().map(silent).collect()).collect(), live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_interrupted_leaves_what_another_has_finished_meanwhile() {
    with_namespace("interrupted", async |namespace| {
        let (proxy, slow) = stage(&namespace).await;
        let (_other_proxy, quick) = stage(&namespace).await;
        let gate = Gate::default();
        proxy.add(Fault::once(Match::new(Verb::Watch, "pods"), Action::PauseBefore(gate.clone())));
        let interrupted = async {
            gate.reached().await;
            create(&quick).await.unwrap();
        };
        let made = slow.create_unless(&id(), &spec(), Lifetime::Kept, &|_| {}, interrupted).await;
        assert!(matches!(made, Err(KubernetesError::Interrupted(_))), "{:?}", made.err());
        is_well(&namespace, &quick, Operation::Create).await.unwrap();
    })
    .await;
}

/// How often calls were made while a pod was waited for that never starts.
async fn calls_while_waiting(
    proxy: &FaultProxy,
    runtime: &KubernetesRuntime,
    faults: &[(Verb, &'static str, Action)],
) -> usize {
    for (verb, resource, action) in faults {
        proxy.add(Fault::always(Match::new(*verb, resource), action.clone()));
    }
    let before = proxy.calls().len();
    let error = create(runtime).await.unwrap_err();
    assert!(matches!(error, KubernetesError::TimedOut { .. }), "{error}");
    proxy.clear();
    proxy.calls().len() - before
}

/// Without a fault it is about 15 calls, with its undoing.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_or_forgets_is_not_asked_without_a_pause() {
    const FEW: usize = 60;
    with_namespace("pauses", async |namespace| {
        let (proxy, runtime) = stage_with(&namespace, |settings| {
            settings.node_selector = [("wharf.dev/nowhere".to_owned(), "yes".to_owned())].into();
            settings.start_timeout = Duration::from_secs(4);
        })
        .await;
        let forbidden = status(403, "Forbidden");
        for faults in [
            vec![(Verb::List, "events", forbidden)],
            vec![(Verb::Watch, "pods", Action::Gone)],
            vec![(Verb::Watch, "pods", Action::CutStreamAfterEvents(0))],
            vec![(Verb::Watch, "pods", Action::EndStreamAfterEvents(0))],
        ] {
            let calls = calls_while_waiting(&proxy, &runtime, &faults).await;
            assert!(calls < FEW, "{calls} calls with {faults:?}");
            settle(&namespace.client, &namespace.name, [""; 0]).await;
        }
    })
    .await;
}

/// How long a create may take here, without its undoing. A kubelet that asks for a claim before the API server lets it, tries
/// again only after 10 to 15 seconds.
const START_TIMEOUT: Duration = Duration::from_secs(25);
/// How much longer the undoing may take.
const UNDO_PATIENCE: Duration = Duration::from_secs(25);

/// What an error says that could not be done.
fn undone(target: &Target) -> String {
    let kind = match target.resource.as_deref() {
        Some("secrets") => "Secret",
        Some("networkpolicies") => "NetworkPolicy",
        Some("persistentvolumeclaims") => "PersistentVolumeClaim",
        Some("pods") => "Pod",
        Some("services") => "Service",
        Some("ingresses") => "Ingress",
        _ => return "could not ask for the version of Kubernetes: ".to_owned(),
    };
    let verb = match target.verb {
        Verb::Get => "look for",
        Verb::Create | Verb::Apply => "make",
        Verb::Patch => "change",
        Verb::Watch => "watch",
        verb => panic!("create makes no call `{verb}`"),
    };
    format!("could not {verb} {kind} `wharf-box`: ")
}

/// A create that fails because of `faults` in a proxy, with `says` in its error's text.
async fn give_up(namespace: &Namespace, faults: impl FnOnce(&FaultProxy), says: &str) -> Result<(), String> {
    let (proxy, runtime) = stage_with(namespace, |settings| settings.start_timeout = START_TIMEOUT).await;
    faults(&proxy);
    let started = Instant::now();
    let created = create(&runtime).await;
    let took = started.elapsed();
    let calls: Vec<_> = proxy.calls().iter().map(|call| format!("    {call}")).collect();
    let fail = |why: String| Err(format!("{why}\n{}", calls.join("\n")));
    match created {
        Ok(_) => return fail("it succeeds".to_owned()),
        Err(error) if !error.to_string().contains(says) => return fail(format!("`{error}` does not say `{says}`")),
        Err(_) => {}
    }
    if took > START_TIMEOUT + UNDO_PATIENCE {
        return fail(format!("it takes {} s", took.as_secs()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_for_ever_is_told_and_what_was_made_is_taken_back() {
    let calls = recorded().await;
    let ways = |target: &Target| {
        // Events only say why something takes long.
        if target.resource.as_deref() == Some("events") {
            return Vec::new();
        }
        let mut all = vec![
            ("403 for ever", status(403, "Forbidden")),
            ("422 for ever", status(422, "Invalid")),
            ("500 for ever", status(500, "InternalError")),
            ("cuts before the server for ever", Action::CutBefore),
        ];
        // A sandbox that was made is looked at when the answer that it is kept is lost: that is no failure.
        if target.verb != Verb::Patch {
            all.push(("cuts after the server for ever", Action::CutAfter));
        }
        all
    };
    check_all(every(&calls[&Operation::Create], ways), async |namespace, wrong: Wrong| {
        let text = match wrong.action {
            Action::Status { code, .. } => format!("{}forced {code}", undone(&wrong.target)),
            _ => undone(&wrong.target),
        };
        let given_up = give_up(namespace, |proxy| wrong.add_to(proxy, Times::Always), &text).await;
        let left = settled(namespace, &[]).await;
        [given_up, left].into_iter().filter_map(Result::err).map(|why| format!("{wrong}: {why}")).collect()
    })
    .await;
}

/// An API server that has just started has not read the roles yet.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_server_that_has_just_come_back_pass() {
    with_namespace("back", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        let pods = Match::new(Verb::Create, "pods");
        proxy.add(Fault::once(pods.clone(), Action::CutBefore));
        let message = "pods is forbidden: User \"u\" cannot create resource \"pods\"".to_owned();
        let refused = Action::Status { code: 403, reason: "Forbidden", message, retry_after: None };
        proxy.add(Fault { matches: pods, after: 0, times: Times::N(3), action: refused });
        create(&runtime).await.unwrap();
        is_well(&namespace, &runtime, Operation::Create).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_kept_although_nobody_ever_hears_that_it_is() {
    with_namespace("kept", async |namespace| {
        let (proxy, runtime) = stage_with(&namespace, |settings| settings.start_timeout = START_TIMEOUT).await;
        let keeping = proxy.add(Fault::always(Match::new(Verb::Patch, "secrets"), Action::CutAfter));
        create(&runtime).await.unwrap();
        assert!(proxy.calls().iter().any(|call| call.fault == Some(keeping)));
        let (_proxy, runtime) = stage(&namespace).await;
        is_well(&namespace, &runtime, Operation::Create).await.unwrap();
        assert_eq!(runtime.get(&id()).await.unwrap().anchor.leased_until, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_taken_back_goes_with_the_next_remove_or_as_garbage() {
    #[derive(Clone, Copy, Debug)]
    enum Cleaner {
        Remove,
        Garbage,
    }
    // A rollback that is refused, and one that no server is there for.
    let refused = || status(403, "Forbidden");
    let cases = vec![
        (refused as fn() -> Action, Cleaner::Remove),
        (refused, Cleaner::Garbage),
        (|| Action::CutBefore, Cleaner::Remove),
        (|| Action::CutBefore, Cleaner::Garbage),
    ];
    check_all(cases, async |namespace, (action, cleaner)| {
        let faults = |proxy: &FaultProxy| {
            proxy.add(Fault::always(Match::new(Verb::Create, "services"), status(403, "Forbidden")));
            proxy.add(Fault::always(Match { verb: Some(Verb::Delete), ..Match::default() }, action()));
        };
        let cleaned = async {
            give_up(namespace, faults, "could not make Service `wharf-box`: forced 403").await?;
            let (_proxy, runtime) = stage(namespace).await;
            match cleaner {
                Cleaner::Remove => drop(runtime.remove(&id(), &|_| {}).await.map_err(|error| error.to_string())?),
                Cleaner::Garbage => {
                    age(namespace).await;
                    let gone = runtime.collect_garbage(&|_| {}).await.map_err(|error| error.to_string())?;
                    assert!(gone.removed == [id()] && gone.failed.is_empty(), "{gone:?}");
                }
            }
            settled(namespace, &[]).await
        };
        cleaned.await.err().map(|why| format!("{:?}, then {cleaner:?}: {why}", action())).into_iter().collect()
    })
    .await;
}

/// More sandboxes than one answer holds, of which the cluster knows but the anchors, made by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_whole_and_garbage_that_cannot_be_removed_keeps_no_other() {
    const MANY: usize = 300;
    const STUCK: &str = "wharf-box-7";
    with_namespace("many", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        create(&runtime).await.unwrap();
        runtime.suspend(&id(), &|_| {}).await.unwrap();
        let secrets = namespace.api::<Secret>();
        let anchor = secrets.get("wharf-box").await.unwrap();
        let copy = |number: usize| {
            let name = format!("wharf-box-{number}");
            let (mut labels, mut annotations) = (anchor.metadata.labels.clone(), anchor.metadata.annotations.clone());
            labels.as_mut().unwrap().insert("wharf.dev/sandbox".to_owned(), name.clone());
            annotations.as_mut().unwrap().insert("wharf.dev/id".to_owned(), format!("box-{number}"));
            if number < 10 {
                annotations.as_mut().unwrap().insert("wharf.dev/leased-until".to_owned(), PAST.to_owned());
            }
            Secret {
                metadata: ObjectMeta { name: Some(name), labels, annotations, ..ObjectMeta::default() },
                ..anchor.clone()
            }
        };
        stream::iter((0..MANY).map(copy))
            .for_each_concurrent(16, async |copy| drop(secrets.create(&PostParams::default(), &copy).await.unwrap()))
            .await;
        let lists = |proxy: &FaultProxy| {
            let lists = Match::new(Verb::List, "secrets");
            proxy.calls().iter().filter(|call| lists.is_met_by(&call.target)).count()
        };

        assert_eq!(runtime.list().await.unwrap().len(), MANY + 1);
        assert_eq!(lists(&proxy), 2, "it has two pages");
        let expired = Fault { after: 1, ..Fault::once(Match::new(Verb::List, "secrets"), status(410, "Expired")) };
        proxy.add(expired);
        assert_eq!(runtime.list().await.unwrap().len(), MANY + 1);
        assert_eq!(lists(&proxy), 5, "the second page was refused, and all was asked for at once");

        let stuck = Match { verb: Some(Verb::Delete), resource: Some("secrets"), name: Some(STUCK.to_owned()) };
        proxy.add(Fault::always(stuck, status(403, "Forbidden")));
        let collected = runtime.collect_garbage(&|_| {}).await.unwrap();
        assert_eq!(collected.removed.len(), 9, "{collected:?}");
        let [failed] = collected.failed.as_slice() else { panic!("{collected:?}") };
        assert_eq!(failed.to_string(), format!("could not delete Secret `{STUCK}`: forced 403"));
        assert_eq!(runtime.list().await.unwrap().len(), MANY + 1 - 9);
    })
    .await;
}

/// As if whoever made the sandbox had been gone for long.
async fn age(namespace: &Namespace) {
    let past = json!({ "metadata": { "annotations": { "wharf.dev/leased-until": PAST } } });
    let secrets = namespace.api::<Secret>();
    secrets.patch("wharf-box", &PatchParams::default(), &Patch::Merge(past)).await.unwrap();
}

/// Whether the cluster says one thing: a sandbox with all that belongs to it, one without a pod, or none.
async fn is_whole(namespace: &Namespace, runtime: &KubernetesRuntime) -> Result<(), String> {
    let found = runtime.find(&id()).await.map_err(|error| error.to_string())?;
    let expected: &[&str] = match found.map(|found| found.status) {
        None | Some(Status::Deleting) => &[],
        Some(Status::Suspended) => SUSPENDED,
        Some(Status::Ready) => RUNNING,
        Some(status @ (Status::Starting { .. } | Status::Stopped { .. })) => return Err(format!("it is {status:?}")),
    };
    settled(namespace, expected).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_creates_at_once_give_one_sandbox_and_one_key() {
    with_namespace("at-once", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        let made = join_all((0..20).map(|_| create(&runtime))).await;
        let keys: BTreeSet<String> =
            made.into_iter().map(|made| made.unwrap().anchor.key.reveal().to_owned()).collect();
        assert_eq!(keys.len(), 1);
        settle(&namespace.client, &namespace.name, RUNNING).await;
        let pods = proxy.calls().into_iter().filter(|call| call.target.resource.as_deref() == Some("pods"));
        assert_eq!(pods.filter(|call| call.status() == Some(201)).count(), 1);
        assert!(matches!(create(&runtime).await, Err(KubernetesError::Exists(_))));
    })
    .await;
}

/// One operation begins when another has just made one of its calls; both end, and what they leave is whole.
async fn race(namespace: &Namespace, first: Operation, second: Operation, call: &Wrong) -> Result<(), String> {
    let (_other_proxy, other) = stage_with(namespace, |settings| settings.start_timeout = PATIENCE).await;
    for before in first.needs() {
        before.carry_out(&other).await.map_err(|error| format!("before: {error}"))?;
    }
    let (proxy, runtime) = stage_with(namespace, |settings| settings.start_timeout = PATIENCE).await;
    let gate = Gate::default();
    Wrong { action: Action::PauseAfter(gate.clone()), ..call.clone() }.add_to(&proxy, Times::Once);
    let met = async {
        gate.reached().await;
        let (done, ()) = tokio::join!(second.carry_out(&other), async { gate.open() });
        done
    };
    let both = timeout(PATIENCE, async { tokio::join!(first.carry_out(&runtime), met) }).await;
    let (one, two) = both.map_err(|_| "they do not end".to_owned())?;
    for ended in [one, two] {
        match ended {
            Ok(()) | Err(KubernetesError::NotFound(_) | KubernetesError::Exists(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    is_whole(namespace, &other).await?;
    if first == Operation::Attach {
        // It only looks on: the other has the last word.
        settled(namespace, second.leaves()).await?;
    }
    other.remove(&id(), &|_| {}).await.map_err(|error| error.to_string())?;
    settled(namespace, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_race_leave_a_whole_sandbox_or_none() {
    use Operation::{Attach, Close, Connect, Create, Delete, Remove, Resume, Suspend};
    let calls = recorded().await;
    let mut cases = Vec::new();
    for (first, second) in [
        (Create, Remove),
        (Create, Suspend),
        (Suspend, Resume),
        (Resume, Suspend),
        (Resume, Remove),
        (Connect, Close),
        (Connect, Delete),
        (Attach, Close),
        (Attach, Delete),
    ] {
        let certain: Vec<Call> =
            calls[&first].iter().filter(|call| first.surely_makes(&call.target)).cloned().collect();
        let held = every(&certain, |_| vec![("the other", Action::Delay(Duration::ZERO))]);
        cases.extend(held.into_iter().map(|wrong| (first, second, wrong)));
    }
    check_all(cases, async |namespace, (first, second, call): (Operation, Operation, Wrong)| {
        let raced = race(namespace, first, second, &call).await;
        raced.err().map(|why| format!("{first:?} and {second:?}: {call}: {why}")).into_iter().collect()
    })
    .await;
}

/// Waits until the pod of the sandbox is as `is_so` says.
async fn pod_is(namespace: &Namespace, is_so: impl Fn(Option<&Pod>) -> bool + Send) {
    let pods = namespace.api::<Pod>();
    let parameters = WatchParams::default().fields("metadata.name=wharf-box");
    let reached = async {
        let now = pods.list(&ListParams::default()).await.unwrap();
        if is_so(now.items.first()) {
            return;
        }
        let mut changes = pods.watch(&parameters, &now.metadata.resource_version.unwrap()).await.unwrap().boxed();
        while let Some(change) = changes.next().await {
            let so = match change.unwrap() {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => is_so(Some(&pod)),
                WatchEvent::Deleted(_) => is_so(None),
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => false,
            };
            if so {
                return;
            }
        }
        panic!("the watch has ended");
    };
    timeout(PATIENCE, reached).await.expect("the pod becomes so");
}

fn has_ended(pod: Option<&Pod>) -> bool {
    pod.and_then(|pod| pod.status.as_ref()).is_some_and(|status| status.phase.as_deref() == Some("Failed"))
}

async fn is_stopped_for(runtime: &KubernetesRuntime, says: &str) {
    let error = runtime.get_ready(&id(), &|_| {}).await.unwrap_err().to_string();
    assert!(error.contains("is not running") && error.contains(says), "{error}");
}

/// It has a new pod, and is the same sandbox.
async fn is_resumed(namespace: &Namespace, runtime: &KubernetesRuntime, before: &Found) {
    let resumed = runtime.resume(&id(), &|_| {}).await.unwrap();
    assert_eq!(resumed.anchor.key.reveal(), before.anchor.key.reveal());
    is_well(namespace, runtime, Operation::Resume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_killed_while_it_starts_is_made_anew() {
    with_namespace("killed", async |namespace| {
        let (proxy, runtime) = stage(&namespace).await;
        let gate = Gate::default();
        proxy.add(Fault::once(Match::new(Verb::Watch, "pods"), Action::PauseBefore(gate.clone())));
        let kill = async {
            gate.reached().await;
            let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            namespace.api::<Pod>().delete("wharf-box", &at_once).await.unwrap();
            gate.open();
        };
        let (created, ()) = tokio::join!(create(&runtime), kill);
        created.unwrap();
        is_well(&namespace, &runtime, Operation::Create).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_killed_or_evicted_when_it_is_ready_is_told_and_can_be_resumed() {
    with_namespace("gone", async |namespace| {
        let (_proxy, runtime) = stage(&namespace).await;
        let found = create(&runtime).await.unwrap();
        let pods = namespace.api::<Pod>();
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete("wharf-box", &at_once).await.unwrap();
        is_stopped_for(&runtime, "its pod is gone").await;
        is_resumed(&namespace, &runtime, &found).await;
        // As `kubectl drain` does.
        pods.evict("wharf-box", &EvictParams::default()).await.unwrap();
        pod_is(&namespace, |pod| pod.is_none()).await;
        is_stopped_for(&runtime, "its pod is gone").await;
        is_resumed(&namespace, &runtime, &found).await;
        // As a kubelet does that is low on memory.
        let evicted = json!({ "status": { "phase": "Failed", "reason": "Evicted", "message": "low on memory" } });
        pods.patch_status("wharf-box", &PatchParams::default(), &Patch::Merge(evicted)).await.unwrap();
        pod_is(&namespace, has_ended).await;
        is_stopped_for(&runtime, "its pod was evicted: low on memory").await;
        is_resumed(&namespace, &runtime, &found).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_memory_is_full_is_ended_says_so_and_can_be_resumed() {
    with_namespace("memory", async |namespace| {
        let (_proxy, runtime) = stage(&namespace).await;
        let small = SandboxSpec { memory_bytes: Some(48 << 20), ..spec() };
        let found = runtime.create(&id(), &small, Lifetime::Kept, &|_| {}).await.unwrap();
        // Nobody but the sandbox itself can be killed for what is in a tmpfs.
        let argv = ["sh", "-c", "head -c 60M /dev/zero > /dev/shm/x"].map(str::to_owned).to_vec();
        let fill = ExecRequest { argv, ..ExecRequest::default() };
        let mut output = found.sandbox().unwrap().exec(&fill).await.unwrap().attach(0);
        while let Ok(Some(_)) = output.next().await {}
        pod_is(&namespace, has_ended).await;
        is_stopped_for(&runtime, "more memory than its limit").await;
        is_resumed(&namespace, &runtime, &found).await;
    })
    .await;
}

/// What never starts: a create says why, in time, and leaves nothing.
async fn never_starts(
    set: impl FnOnce(&mut Settings),
    image: &str,
    kind: impl Fn(&KubernetesError) -> bool,
    says: &[&str],
) {
    with_namespace("never", async |namespace| {
        let (_proxy, runtime) = stage_with(&namespace, set).await;
        let spec = SandboxSpec { image: Some(image.to_owned()), ..spec() };
        let error = runtime.create(&id(), &spec, Lifetime::Kept, &|_| {}).await.unwrap_err();
        let text = error.to_string();
        assert!(kind(&error) && says.iter().all(|says| text.contains(says)), "{text}");
        settle(&namespace.client, &namespace.name, [""; 0]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_starts_says_why() {
    let failed = |error: &KubernetesError| matches!(error, KubernetesError::Failed { .. });
    let timed_out = |error: &KubernetesError| matches!(error, KubernetesError::TimedOut { .. });
    // At once, not when the time is over.
    never_starts(|_| {}, "localhost/wharf/nowhere:test", failed, &["localhost/wharf/nowhere:test", "is not present"])
        .await;
    let unbound = |settings: &mut Settings| {
        settings.storage_class = Some("never".to_owned());
        settings.start_timeout = START_TIMEOUT;
    };
    never_starts(unbound, IMAGE, timed_out, &["PersistentVolumeClaim", "(", "never"]).await;
    // A node that is not ready would drive away all other tests' pods: `outage` has one.
    let nowhere = |settings: &mut Settings| {
        settings.node_selector = BTreeMap::from([("wharf.dev/nowhere".to_owned(), "yes".to_owned())]);
        settings.start_timeout = START_TIMEOUT;
    };
    never_starts(nowhere, IMAGE, timed_out, &["still scheduling: 0/1 nodes are available"]).await;
}
