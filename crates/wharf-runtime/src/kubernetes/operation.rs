//! One operation on one sandbox: observe, plan, apply, wait for a change, until the goal is reached or the time is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{join_all, select_all},
    stream::BoxStream,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Event};
use kube::{
    api::{ListParams, WatchEvent, WatchParams},
    core::DynamicObject,
};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};
use wharf_client::{ClientError, ErrorKind, Route, Sandbox};
use wharf_protocol::{HealthStatus, ProblemKind, SandboxId};

use super::{
    KubernetesError, Settings,
    anchor::{Anchor, AnchorChange, NewAnchor, Wanted},
    apply::Apply,
    cluster::{ApiError, ApiErrorKind, Cluster, causes},
    manifest::{Objects, Owner, container_name, evened, locked},
    names::Names,
    observe::Observed,
    part::Part,
    plan::{Desired, Goal, New, Next, Plan, Refusal, Step, plan},
    reason::{Failure, FailureKind, Stage, Verdict, Waiting, judge, own_containers, shown},
    settings::Profile,
};

/// After so long without an event, what a watch is about is looked at: a connection may be dead without saying so.
const QUIET: Duration = Duration::from_secs(30);
/// A watch without a version begins with what there is (Kubernetes API concepts, "Get State and Start at Most Recent").
const FROM_NOW: &str = "";
/// The API server ends a watch after this; it is opened again.
const WATCH_SECONDS: u32 = 290;
/// A person wants to know why only when it takes longer.
const EVENTS_AFTER: Duration = Duration::from_millis(800);
/// A watch that ends without having told anything is opened again after a pause that grows up to this.
const LONGEST_REWATCH_PAUSE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The garbage collector of a cluster comes within a second; after an outage of the API server it may take minutes.
const COLLECTOR_PATIENCE: Duration = Duration::from_secs(2);
/// How long sandboxd may take with one answer while it is being waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
const LOG_LINES: i64 = 5;
/// Of a pod's events that come while it is waited for, the latest are kept.
const MOST_EVENTS: usize = 100;

/// Hears how far an operation is.
pub type Report<'a> = &'a (dyn Fn(&Waiting) + Sync);

/// What is to become of the sandbox.
#[derive(Debug)]
pub(super) enum Aim<'a> {
    /// As this says; or else as the sandbox's own anchor does, which has to be there.
    Running {
        new: Option<(&'a Objects, &'a NewAnchor)>,
    },
    /// As it is: whoever only wants to use it changes nothing.
    There,
    Suspended,
    Gone,
}

type Changes = BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>;

pub(super) struct Operation<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    id: &'a SandboxId,
    profile: Profile,
    names: Names,
    started: Instant,
    deadline: Instant,
    report: Report<'a>,
    observed: Observed,
    /// Parts whose names were looked at, or made: what is not among them may be anybody's.
    looked_at: BTreeSet<Part>,
    /// Pods that this operation has made.
    made: BTreeSet<String>,
    watches: BTreeMap<Part, Changes>,
    /// Parts that were seen before what the server remembers: a watch from there on would be refused again and again.
    forgotten: BTreeSet<Part>,
    /// Before a watch is opened that has ended without telling anything.
    rewatch_pause: Duration,
    /// When the pod's events are looked at, unless they are followed.
    events_at: Instant,
    events: Vec<Event>,
    event_changes: Option<BoxStream<'static, kube::Result<WatchEvent<Event>>>>,
    /// When the garbage collector is not waited for any longer; known once nothing else is waited for.
    collected_by: Option<Instant>,
    /// Whether that is over.
    by_ourselves: bool,
    last: Waiting,
}

impl<'a> Operation<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        settings: &'a Settings,
        id: &'a SandboxId,
        limit: Duration,
        report: Report<'a>,
    ) -> Self {
        let started = Instant::now();
        Self {
            cluster,
            settings,
            id,
            profile: settings.profile,
            names: Names::of(id, settings.profile),
            started,
            deadline: started + limit,
            report,
            observed: Observed::default(),
            looked_at: BTreeSet::new(),
            made: BTreeSet::new(),
            watches: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            rewatch_pause: Duration::ZERO,
            events_at: started + EVENTS_AFTER,
            events: Vec::new(),
            event_changes: None,
            collected_by: None,
            by_ourselves: false,
            last: Waiting::at(Stage::Making),
        }
    }

    pub(super) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The anchor as it was last seen.
    pub(super) fn anchor(&self) -> Result<Anchor, KubernetesError> {
        let seen = self.observed.get(Part::Anchor).ok_or_else(|| KubernetesError::NotFound(self.id.clone()))?;
        Ok(Anchor::read(&seen.object).map_err(Refusal::from)?)
    }

    /// Whether the anchor, as it was last seen, says that the sandbox runs, and stays.
    pub(super) fn is_to_run(&self) -> bool {
        let stays = self.observed.get(Part::Anchor).is_some_and(|seen| !seen.terminating);
        stays && self.anchor().is_ok_and(|anchor| anchor.wanted == Wanted::Running)
    }

    /// Looks at these parts, all at the same time.
    pub(super) async fn observe(&mut self, parts: impl IntoIterator<Item = Part>) -> Result<(), KubernetesError> {
        let report = trouble(self.report);
        let apply = Apply { cluster: self.cluster, deadline: self.deadline, report: &report };
        let parts: Vec<Part> = parts.into_iter().collect();
        let (apply, names, settings) = (&apply, &self.names, self.settings);
        let look = async |part: &Part| match part {
            // The Role of an installation without Ingresses says nothing of them: it has made none.
            Part::Ingress if !settings.ingress.enabled => apply.look(*part, part.name(names)).await,
            part => apply.get(*part, part.name(names)).await,
        };
        let got = join_all(parts.iter().map(look)).await;
        for (part, got) in parts.into_iter().zip(got) {
            self.observed.note(part, got?);
            self.looked_at.insert(part);
        }
        Ok(())
    }

    /// Makes the anchor before anything is looked at; sees the one that is there if somebody else was faster.
    pub(super) async fn make_anchor(&mut self, aim: &Aim<'_>) -> Result<(), KubernetesError> {
        self.carry_out(vec![Step::CreateAnchor], aim).await
    }

    /// All parts that a sandbox of this profile may have.
    pub(super) fn all_parts(&self) -> impl Iterator<Item = Part> + use<> {
        let (profile, hardened) = (self.profile, self.settings.hardened);
        Part::ALL.into_iter().filter(move |part| match (profile, part) {
            // In our own profile there is one Service.
            (Profile::Wharf, Part::CodeService) => false,
            // Nobody needs a right to what the original does not have.
            (Profile::OpenHands, Part::Policy) => hardened,
            (Profile::Wharf | Profile::OpenHands, _) => true,
        })
    }

    fn plan(&self, aim: &Aim<'_>) -> Plan {
        let goal = match aim {
            Aim::Running { new } => Goal::Running {
                new: new.map(|(objects, anchor)| New { objects, bind: &anchor.bind }),
                create: new.is_some(),
                made: &self.made,
            },
            Aim::There => Goal::There,
            Aim::Suspended => Goal::Suspended,
            Aim::Gone => Goal::Gone { by_ourselves: self.by_ourselves },
        };
        let desired = Desired {
            id: self.id.as_str(),
            names: &self.names,
            profile: self.profile,
            installation: &self.settings.installation,
            goal,
        };
        plan(&desired, &self.observed)
    }

    /// Carries out the next steps towards the aim, and does not wait for what comes of them.
    pub(super) async fn begin(&mut self, aim: &Aim<'_>) -> Result<(), KubernetesError> {
        let plan = self.plan(aim);
        if let Next::Refused(refusal) = plan.next {
            return Err(refusal.into());
        }
        self.carry_out(plan.steps, aim).await
    }

    /// Goes on until the aim is reached; a sandbox that is to run is reachable then, at the address that is given.
    pub(super) async fn reach(&mut self, aim: &Aim<'_>) -> Result<Option<String>, KubernetesError> {
        loop {
            let plan = self.plan(aim);
            self.carry_out(plan.steps, aim).await?;
            match plan.next {
                Next::Again => self.in_time()?,
                Next::Reached => return Ok(None),
                Next::Reachable { address } => return Ok(Some(address)),
                Next::Await { parts, waiting } => {
                    // Some were gone as soon as they were deleted.
                    let mut left = parts.iter().filter(|part| self.observed.get(**part).is_some());
                    if matches!(aim, Aim::Gone) && left.all(|part| *part == Part::Anchor) {
                        self.collected_by.get_or_insert_with(|| Instant::now() + COLLECTOR_PATIENCE);
                    }
                    self.tell(self.with_events(waiting));
                    self.change(&parts).await?;
                    self.look_again(aim).await?;
                }
                Next::Refused(Refusal::NotFound) => return Err(KubernetesError::NotFound(self.id.clone())),
                Next::Refused(refusal) => return Err(refusal.into()),
                Next::Failed(failure) => return Err(self.failed(failure).await),
            }
        }
    }

    /// Whoever took away a pod that is to run may have taken more, or the sandbox itself.
    async fn look_again(&mut self, aim: &Aim<'_>) -> Result<(), KubernetesError> {
        match aim {
            Aim::Running { .. } if self.observed.get(Part::Pod).is_none() => self.observe(self.all_parts()).await,
            Aim::Running { .. } | Aim::There | Aim::Suspended | Aim::Gone => Ok(()),
        }
    }

    async fn carry_out(&mut self, steps: Vec<Step>, aim: &Aim<'_>) -> Result<(), KubernetesError> {
        if steps.is_empty() {
            return Ok(());
        }
        let anchor_uid = self.observed.get(Part::Anchor).map_or("", |seen| &seen.uid);
        let owner = Owner::new(&self.settings.installation, &self.names, anchor_uid);
        let stored = self.anchor().ok();
        let renewed = match aim {
            Aim::Running { new } if steps.contains(&Step::Want(Wanted::Running)) => *new,
            Aim::Running { .. } | Aim::There | Aim::Suspended | Aim::Gone => None,
        };
        let objects = renewed.map(|(objects, _)| objects).or_else(|| stored.as_ref().map(|anchor| &anchor.objects));
        let report = trouble(self.report);
        let apply = Apply { cluster: self.cluster, deadline: self.deadline, report: &report };
        let (names, settings) = (&self.names, self.settings);
        let (apply, owner, looked_at, observed) = (&apply, &owner, &self.looked_at, &self.observed);
        // Gives what is there if it is another one by now, or gone.
        let change_anchor =
            async |change: AnchorChange| match apply.change_anchor(&names.anchor, &owner.anchor_uid, &change).await {
                Err(error) if matches!(error.kind, ApiErrorKind::NotFound | ApiErrorKind::Replaced) => {
                    Ok((Part::Anchor, apply.get(Part::Anchor, &names.anchor).await?))
                }
                changed => Ok((Part::Anchor, Some(changed?))),
            };
        let one = async |step: &Step| -> Result<(Part, Option<Value>), ApiError> {
            match step {
                Step::CreateAnchor => {
                    let Aim::Running { new: Some((objects, anchor)) } = aim else { return Ok((Part::Anchor, None)) };
                    let manifest = anchor.manifest(&settings.installation, names, objects);
                    Ok((Part::Anchor, Some(apply.create(Part::Anchor, &names.anchor, &manifest).await?)))
                }
                Step::Want(wanted) => {
                    change_anchor(AnchorChange {
                        wanted: Some(*wanted),
                        objects: renewed.map(|(objects, _)| objects.clone()),
                        bind: renewed.map(|(_, anchor)| anchor.bind.clone()),
                        leased_until: None,
                    })
                    .await
                }
                Step::Keep => change_anchor(AnchorChange { leased_until: Some(None), ..AnchorChange::default() }).await,
                Step::Apply(part) => {
                    let manifest = objects.and_then(|objects| objects.get(part));
                    let Some(manifest) = manifest else { return Ok((*part, None)) };
                    let manifest = match &stored {
                        Some(anchor) if *part == Part::Pod && anchor.profile == Profile::Wharf => {
                            &locked(manifest, &anchor.bind_secret.digest().to_string())
                        }
                        Some(_) | None => manifest,
                    };
                    // What cannot be changed is made, or is what it is.
                    if !looked_at.contains(part) || matches!(part, Part::Pod | Part::Workspace) {
                        // Whatever has the name is not taken over, but seen.
                        let create = async |manifest: &Value| {
                            apply.create(*part, part.name(names), &owner.adopt(manifest)).await
                        };
                        let mut made = create(manifest).await;
                        if *part == Part::Pod && made.as_ref().is_err_and(ApiError::is_about_a_containers_size) {
                            made = create(&evened(manifest)).await;
                        }
                        return Ok((*part, Some(made?)));
                    }
                    Ok((*part, Some(apply.apply(*part, part.name(names), manifest, owner).await?)))
                }
                Step::Adopt(part) => Ok((*part, Some(apply.adopt(*part, part.name(names), owner).await?))),
                Step::Release { uid } => {
                    let seen = observed.get(Part::Anchor).map_or(&Value::Null, |seen| &seen.object);
                    Ok((Part::Anchor, apply.release(&names.anchor, uid, seen).await?))
                }
                Step::Delete { part, uid } => {
                    let for_good = matches!(aim, Aim::Gone);
                    Ok((*part, apply.delete(*part, part.name(names), uid, for_good).await?))
                }
            }
        };
        let done = join_all(steps.iter().map(one)).await;
        let mut first_error = None;
        for (step, done) in steps.iter().zip(done) {
            match done {
                Ok((part, object)) => {
                    if let (Step::Apply(Part::Pod), Some(object)) = (step, &object) {
                        self.made.extend(object["metadata"]["uid"].as_str().map(str::to_owned));
                    }
                    self.watches.remove(&part);
                    self.observed.note(part, object);
                    self.looked_at.insert(part);
                }
                // All others were tried: what could be done is done.
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        match first_error {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }

    /// Waits until one of the parts is seen to have changed.
    async fn change(&mut self, parts: &[Part]) -> Result<(), KubernetesError> {
        for part in parts {
            if self.watches.contains_key(part) || self.observed.get(*part).is_none() {
                continue;
            }
            if !self.rewatch_pause.is_zero() {
                tokio::time::sleep(self.rewatch_pause).await;
                self.in_time()?;
            }
            if self.open_watch(*part).await? {
                // What it was meanwhile is not told by the watch.
                return self.observe([*part]).await;
            }
        }
        // Of a pod that ends nobody is told what events say.
        let about_pod = parts.contains(&Part::Pod) && self.last.stage > Stage::Making;
        if about_pod && self.event_changes.is_none() && Instant::now() >= self.events_at {
            self.look_at_events().await;
            self.tell(self.with_events(self.last.clone()));
        }
        let early = about_pod && self.event_changes.is_none();
        let event_time = if early { self.events_at } else { self.deadline + QUIET };
        let collected_by = self.collected_by.filter(|_| !self.by_ourselves).unwrap_or(self.deadline + QUIET);
        if !self.watches.keys().any(|part| parts.contains(part)) {
            // What was waited for is gone already.
            return self.observe(parts.to_vec()).await;
        }
        let changed = {
            let watches = self.watches.iter_mut().filter(|(part, _)| parts.contains(part));
            let next: Vec<_> =
                watches.map(|(part, changes)| changes.next().map(|change| (*part, change)).boxed()).collect();
            let events = self.event_changes.as_mut();
            let event = async {
                match events {
                    Some(events) => events.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.deadline) => Changed::TimeIsOver,
                (change, ..) = select_all(next) => Changed::Part(change.0, change.1.map(Box::new)),
                event = event => Changed::Event(event.map(Box::new)),
                () = tokio::time::sleep_until(event_time) => Changed::EventTime,
                () = tokio::time::sleep_until(collected_by) => Changed::NotCollected,
                () = tokio::time::sleep(QUIET) => Changed::Quiet,
            }
        };
        match changed {
            Changed::TimeIsOver => return Err(self.timed_out().await),
            Changed::EventTime => {}
            Changed::NotCollected => {
                self.by_ourselves = true;
                self.observe(self.all_parts()).await?;
            }
            Changed::Quiet => self.observe(parts.to_vec()).await?,
            Changed::Event(event) => match event.map(|event| *event) {
                Some(Ok(WatchEvent::Added(event) | WatchEvent::Modified(event))) => {
                    if self.events.len() >= MOST_EVENTS {
                        self.events.remove(0);
                    }
                    self.events.push(event);
                }
                Some(Ok(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_))) => {}
                Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => self.event_changes = None,
            },
            Changed::Part(part, change) => match change.map(|change| *change) {
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    self.rewatch_pause = Duration::ZERO;
                    self.observed.note(part, serde_json::to_value(object).ok());
                }
                Some(Ok(WatchEvent::Deleted(_))) => {
                    self.watches.remove(&part);
                    self.observed.note(part, None);
                }
                Some(Ok(WatchEvent::Bookmark(_))) => {}
                Some(Ok(WatchEvent::Error(_))) => {
                    self.forgotten.insert(part);
                    self.begin_anew(part).await?;
                }
                // It was cut.
                Some(Err(_)) | None => self.begin_anew(part).await?,
            },
        }
        Ok(())
    }

    async fn begin_anew(&mut self, part: Part) -> Result<(), KubernetesError> {
        self.watches.remove(&part);
        self.rewatch_pause = (self.rewatch_pause * 2).clamp(FIRST_PAUSE, LONGEST_REWATCH_PAUSE);
        self.observe([part]).await
    }

    /// What is waited for, in the words of the pod's events where its status says nothing.
    fn with_events(&self, waiting: Waiting) -> Waiting {
        match self.observed.get(Part::Pod).map(|pod| judge(&pod.pod(), &self.events)) {
            Some(Verdict::Waiting(told)) if waiting.stage > Stage::Making => told,
            Some(_) | None => waiting,
        }
    }

    /// Follows a part from where it was seen; says whether the server has forgotten what was there, and follows it from now.
    async fn open_watch(&mut self, part: Part) -> Result<bool, KubernetesError> {
        let version = self.observed.get(part).map(|seen| seen.resource_version.clone()).unwrap_or_default();
        let mut from_now = self.forgotten.remove(&part);
        loop {
            let since = if from_now { FROM_NOW } else { version.as_str() };
            match self.watch(part, since).await {
                Err(error) if error.kind == ApiErrorKind::Expired && !from_now => from_now = true,
                opened => {
                    self.watches.insert(part, opened?);
                    return Ok(from_now);
                }
            }
        }
    }

    async fn watch(&mut self, part: Part, version: &str) -> Result<Changes, ApiError> {
        let api = self.cluster.api(part);
        let name = part.name(&self.names);
        let parameters = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
        let report = trouble(self.report);
        let what = format!("watch {} `{name}`", part.kind());
        let changes = self.cluster.call(&what, self.deadline, &report, || api.watch(&parameters, version)).await?;
        Ok(changes.boxed())
    }

    /// Lists and then follows the events of the pod. A person who may not read them gets fewer reasons.
    async fn look_at_events(&mut self) {
        self.events_at = Instant::now() + QUIET;
        let Some(pod) = self.observed.get(Part::Pod) else { return };
        let api = self.cluster.typed::<Event>();
        let fields = format!("involvedObject.uid={}", pod.uid);
        let list = ListParams::default().fields(&fields).limit(MOST_EVENTS as u32);
        let deadline = self.deadline.min(Instant::now() + ANSWER_PATIENCE);
        let Ok(listed) = self.cluster.ask("list events", deadline, || api.list(&list)).await else { return };
        let version = listed.metadata.resource_version.clone().unwrap_or_default();
        self.events = listed.items;
        let watch = WatchParams::default().fields(&fields).timeout(WATCH_SECONDS);
        if let Ok(changes) = self.cluster.ask("watch events", deadline, || api.watch(&watch, &version)).await {
            self.event_changes = Some(changes.into_stream().boxed());
        }
    }

    /// Goes on until sandboxd of a sandbox that is to run has answered and has its identity; gives the way to it.
    pub(super) async fn reach_usable(&mut self, aim: &Aim<'_>) -> Result<Sandbox, KubernetesError> {
        let address = self.reach(aim).await?.unwrap_or_default();
        self.bind(aim, address).await
    }

    /// Goes on until the sandbox is usable, stays though whoever made it goes, and is still to run: whoever suspended or
    /// removed it meanwhile may have looked before there was a pod.
    pub(super) async fn settle(&mut self, aim: &Aim<'_>) -> Result<Sandbox, KubernetesError> {
        loop {
            let sandbox = self.reach_usable(aim).await?;
            self.keep().await?;
            if self.is_to_run() {
                return Ok(sandbox);
            }
            self.observe(self.all_parts()).await?;
        }
    }

    /// Goes on until sandboxd of a sandbox that somebody else has started has answered, and changes nothing for that.
    ///
    /// # Errors
    ///
    /// [`KubernetesError::NotFound`] if it is not to run, or has lost its pod meanwhile.
    pub(super) async fn attach(&mut self) -> Result<Sandbox, KubernetesError> {
        let sandbox = self.reach_usable(&Aim::There).await?;
        self.observe([Part::Anchor]).await?;
        if self.is_to_run() { Ok(sandbox) } else { Err(KubernetesError::NotFound(self.id.clone())) }
    }

    /// Asks sandboxd at `address` and gives it its identity if it has none; gives the way to it once it is usable.
    async fn bind(&mut self, aim: &Aim<'_>, mut address: String) -> Result<Sandbox, KubernetesError> {
        self.tell(Waiting::at(Stage::Binding));
        loop {
            let anchor = self.anchor()?;
            let pod_uid = self.observed.get(Part::Pod).map_or("", |pod| &pod.uid);
            let route = super::route::route(self.cluster, self.settings.route, &self.names, pod_uid, &address);
            let route =
                route.ok_or_else(|| KubernetesError::Address { id: self.id.clone(), address: address.clone() })?;
            let (id, profile) = (self.id, self.profile);
            let (trouble, told) = watch::channel(None);
            let binding = bind(id, profile, &anchor, route, self.report, &trouble);
            tokio::pin!(binding);
            // The pod may end meanwhile, or another take its place.
            let moved = loop {
                let changed = tokio::select! {
                    biased;
                    bound = &mut binding => return bound,
                    changed = self.change(&[Part::Pod]) => changed,
                };
                changed.map_err(|error| match (error, told.borrow().clone()) {
                    (KubernetesError::TimedOut { id, after, .. }, Some(waiting)) => {
                        KubernetesError::TimedOut { id, after, waiting }
                    }
                    (error, _) => error,
                })?;
                self.look_again(aim).await?;
                match self.reach(aim).await? {
                    Some(now) if now != address => break now,
                    Some(_) => {}
                    None => return Err(KubernetesError::NotFound(self.id.clone())),
                }
            };
            address = moved;
        }
    }

    /// Takes the lease off that the sandbox was made under, and sees its anchor as it is now.
    async fn keep(&mut self) -> Result<(), KubernetesError> {
        if !self.anchor()?.is_half_made() {
            return self.observe([Part::Anchor]).await;
        }
        let Err(error) = self.lease(None).await else { return Ok(()) };
        // Only the answer may be lost.
        self.observe([Part::Anchor]).await?;
        if self.anchor()?.is_half_made() { Err(error) } else { Ok(()) }
    }

    /// Says until when the sandbox is needed.
    pub(super) async fn lease(&mut self, until: Option<Timestamp>) -> Result<(), KubernetesError> {
        let report = trouble(self.report);
        let apply = Apply { cluster: self.cluster, deadline: self.deadline, report: &report };
        let anchor = self.anchor()?;
        let change = AnchorChange { leased_until: Some(until), ..AnchorChange::default() };
        let changed = apply.change_anchor(&self.names.anchor, &anchor.uid, &change).await?;
        self.observed.note(Part::Anchor, Some(changed));
        Ok(())
    }

    fn tell(&mut self, waiting: Waiting) {
        if self.last != waiting {
            (self.report)(&waiting);
            self.last = waiting;
        }
    }

    fn in_time(&self) -> Result<(), KubernetesError> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(KubernetesError::TimedOut {
            id: self.id.clone(),
            after: self.deadline - self.started,
            waiting: self.last.clone(),
        })
    }

    async fn timed_out(&mut self) -> KubernetesError {
        let mut waiting = self.last.clone();
        // A claim says itself why it is not bound.
        if waiting.reason.as_ref().is_some_and(|reason| reason.contains("PersistentVolumeClaim"))
            && let Some(why) = self.claim_events().await
        {
            let reason = waiting.reason.unwrap_or_default();
            waiting.reason = Some(format!("{reason} ({why})"));
        }
        KubernetesError::TimedOut { id: self.id.clone(), after: self.deadline - self.started, waiting }
    }

    async fn claim_events(&mut self) -> Option<String> {
        let fields = format!("involvedObject.kind=PersistentVolumeClaim,involvedObject.name={}", self.names.pvc);
        let list = ListParams::default().fields(&fields);
        let listed =
            tokio::time::timeout(ANSWER_PATIENCE, self.cluster.typed::<Event>().list(&list)).await.ok()?.ok()?;
        listed.items.into_iter().filter_map(|event| event.message).next_back().map(|text| shown(&text))
    }

    /// A failure with the last words of whatever has ended.
    async fn failed(&mut self, failure: Failure) -> KubernetesError {
        let log = match failure.kind {
            FailureKind::CrashLoop | FailureKind::Ended | FailureKind::StartFailed => self.last_words().await,
            FailureKind::PullFailed
            | FailureKind::Unprepared
            | FailureKind::ImageUser
            | FailureKind::OutOfMemory
            | FailureKind::Evicted => Vec::new(),
        };
        KubernetesError::Failed { id: self.id.clone(), failure, log }
    }

    async fn last_words(&mut self) -> Vec<String> {
        let report = |_: &str| {};
        let deadline = Instant::now() + ANSWER_PATIENCE;
        let apply = Apply { cluster: self.cluster, deadline, report: &report };
        let Some(pod) = self.observed.get(Part::Pod) else { return Vec::new() };
        let pod = pod.pod();
        let has_failed = |container: &&ContainerStatus| {
            let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
            ended.is_some_and(|ended| ended.exit_code != 0)
        };
        let failed = own_containers(&pod).into_iter().find(has_failed);
        let name = failed.map_or(container_name(self.profile), |container| container.name.as_str());
        let log = apply.log_end(&self.names.pod, name, LOG_LINES).await.unwrap_or_default();
        log.lines().map(shown).filter(|line| !line.is_empty()).collect()
    }
}

enum Changed {
    TimeIsOver,
    Part(Part, Option<Box<kube::Result<WatchEvent<DynamicObject>>>>),
    Event(Option<Box<kube::Result<WatchEvent<Event>>>>),
    EventTime,
    NotCollected,
    Quiet,
}

/// What a call that is tried again says, as progress.
fn trouble(report: Report<'_>) -> impl Fn(&str) + Sync + '_ {
    move |text| report(&Waiting::because(Stage::Making, text))
}

/// Binds sandboxd, or sees that it is bound to this very sandbox; tries again while nobody answers, and tells why once that
/// takes long.
async fn bind(
    id: &SandboxId,
    profile: Profile,
    anchor: &Anchor,
    route: Route,
    report: Report<'_>,
    trouble: &watch::Sender<Option<Waiting>>,
) -> Result<Sandbox, KubernetesError> {
    let way = route.to_string();
    let sandbox = Sandbox::new(route, anchor.key.clone());
    let blank = sandbox.with_key(anchor.bind_secret.clone());
    let request = anchor.bind_request();
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let once = async {
            match profile {
                Profile::OpenHands => sandbox.alive().await,
                Profile::Wharf => match blank.bind(&request).await {
                    Err(error) if error.kind() == ErrorKind::Refused(ProblemKind::Conflict) => {
                        match sandbox.info().await?.status {
                            HealthStatus::Ready => Ok(()),
                            HealthStatus::Blank | HealthStatus::Stopping => Err(error),
                        }
                    }
                    bound => bound,
                },
            }
        };
        let why = match tokio::time::timeout(ANSWER_PATIENCE, once).await {
            Ok(Ok(())) => return Ok(sandbox),
            Ok(Err(error)) if !is_passing(&error, profile) => {
                return Err(KubernetesError::Bind { id: id.clone(), reason: shown(&error.to_string()) });
            }
            Ok(Err(error)) => causes(&error),
            Err(_) => format!("no answer by {} within {} s", way, ANSWER_PATIENCE.as_secs()),
        };
        if started.elapsed() >= EVENTS_AFTER {
            let waiting = Waiting::because(Stage::Binding, why);
            report(&waiting);
            trouble.send_replace(Some(waiting));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether sandboxd may answer well a moment later.
fn is_passing(error: &ClientError, profile: Profile) -> bool {
    match error.kind() {
        ErrorKind::Unreachable | ErrorKind::TimedOut | ErrorKind::Refused(ProblemKind::Conflict) => true,
        // A service mesh answers for a sandboxd that does not listen yet.
        ErrorKind::BadAnswer => true,
        // The original's server answers errors while its plugins start.
        ErrorKind::Refused(_) => profile == Profile::OpenHands,
        ErrorKind::BadRequest => false,
    }
}
