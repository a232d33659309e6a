//! What is to be done next with a sandbox: desired and observed in, steps out. Pure.
//!
//! ```text
//!            ┌────────────── steps were carried out, or something changed ─────────────┐
//!            ▼                                                                         │
//!   observed ──▶ plan ──▶ steps (one call each, all at the same time) ──▶ apply ──▶ observed
//!                  │
//!                  └─▶ reached │ wait for these objects │ refused │ failed
//! ```

use std::collections::BTreeSet;

use serde_json::Value;
use wharf_protocol::BindRequest;

use super::{
    anchor::{Anchor, AnchorError, Wanted},
    manifest::{Objects, Owner, Ownership, is_orphan, whose},
    names::Names,
    observe::{Observed, Seen},
    part::Part,
    reason::{Failure, FailureKind, Stage, Verdict, Waiting, judge},
    settings::Profile,
};

/// The finalizer of what was deleted in the foreground: the garbage collector takes it off once nothing is left that the
/// object owns.
pub(super) const FOREGROUND: &str = "foregroundDeletion";

/// Pods that one call makes where nodes start them in the wrong order.
const MOST_PODS: usize = 3;

/// Which sandbox is meant, and what it is to be.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    pub id: &'a str,
    pub names: &'a Names,
    pub profile: Profile,
    pub installation: &'a str,
    pub goal: Goal<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    /// A pod that can be asked, and all that belongs to it.
    Running {
        /// What to make; `None`: what the anchor holds.
        new: Option<New<'a>>,
        /// Whether a sandbox that is not there is made.
        create: bool,
        /// Uids of the pods that this very call has made: one of them that fails is no pod of the past to be replaced.
        made: &'a BTreeSet<String>,
    },
    /// A pod that can be asked, if it is to run and somebody else has made one.
    There,
    /// The workspace alone.
    Suspended,
    /// Nothing.
    Gone {
        /// Whether what the anchor owns is removed without the cluster's garbage collector, which may be away.
        by_ourselves: bool,
    },
}

/// What a sandbox is made of, as its caller has it. It counts once there is no live pod.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    pub objects: &'a Objects,
    /// Without keys: those stay.
    pub bind: &'a BindRequest,
}

/// One change of the cluster: one call, safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    CreateAnchor,
    /// The anchor is to say this; with what the caller has that is new.
    Want(Wanted),
    /// The sandbox is no garbage any more, even if it never starts.
    Keep,
    /// Makes an object and makes it ours.
    Apply(Part),
    /// Makes an object ours that nobody has marked, and leaves it as it is.
    Adopt(Part),
    Delete {
        part: Part,
        uid: String,
    },
    /// Nothing of the sandbox is left for which the deleted anchor has to stay.
    Release {
        uid: String,
    },
}

/// Where it goes on from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Observe again once the steps are done.
    Again,
    /// The pod has an address: sandboxd can be asked and bound.
    Reachable {
        address: String,
    },
    /// Nothing is left to do.
    Reached,
    /// These objects have to change first.
    Await {
        parts: Vec<Part>,
        waiting: Waiting,
    },
    Refused(Refusal),
    Failed(Failure),
}

/// Why a sandbox is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no such sandbox")]
    NotFound,
    #[error("{kind} `{name}` belongs to {owner}")]
    Foreign { kind: &'static str, name: String, owner: String },
    #[error(transparent)]
    Anchor(#[from] AnchorError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub next: Next,
}

impl Plan {
    fn only(next: Next) -> Self {
        Self { steps: Vec::new(), next }
    }
}

/// What to do next.
pub fn plan(desired: &Desired<'_>, observed: &Observed) -> Plan {
    let anchor = match observed.get(Part::Anchor) {
        None => None,
        Some(seen) => match whose(&seen.object["metadata"], desired.installation, desired.names.label(), None) {
            Ownership::Foreign(owner) => return Plan::only(refused(desired, Part::Anchor, owner)),
            Ownership::Unowned => {
                return Plan::only(refused(desired, Part::Anchor, "nobody that Wharf knows".to_owned()));
            }
            Ownership::Ours | Ownership::Stale => match Anchor::read(&seen.object) {
                Ok(anchor) if anchor.id.as_str() != desired.id => {
                    return Plan::only(refused(desired, Part::Anchor, format!("sandbox `{}`", anchor.id)));
                }
                Ok(anchor) => Some((seen, anchor)),
                // A broken anchor can still be removed.
                Err(_) if matches!(desired.goal, Goal::Gone { .. }) => None,
                Err(error) => return Plan::only(Next::Refused(error.into())),
            },
        },
    };
    match desired.goal {
        Goal::Running { new, create, made } => running(desired, observed, anchor, new, create, made),
        Goal::There => Plan::only(there(desired, observed, anchor)),
        Goal::Suspended => suspended(desired, observed, anchor),
        Goal::Gone { by_ourselves } => gone(desired, observed, by_ourselves),
    }
}

fn refused(desired: &Desired<'_>, part: Part, owner: String) -> Next {
    Next::Refused(Refusal::Foreign { kind: part.kind(), name: part.name(desired.names).to_owned(), owner })
}

fn owner_of(desired: &Desired<'_>, anchor: &Anchor) -> Owner {
    Owner::new(desired.installation, desired.names, &anchor.uid)
}

fn running(
    desired: &Desired<'_>,
    observed: &Observed,
    anchor: Option<(&Seen, Anchor)>,
    new: Option<New<'_>>,
    create: bool,
    made: &BTreeSet<String>,
) -> Plan {
    let Some((seen, anchor)) = anchor else {
        if !create {
            return Plan::only(Next::Refused(Refusal::NotFound));
        }
        // What stands in the way is told before anything is made.
        for (part, seen) in observed.parts() {
            match whose(&seen.object["metadata"], desired.installation, desired.names.label(), None) {
                Ownership::Foreign(owner) => return Plan::only(refused(desired, part, owner)),
                Ownership::Unowned if !may_adopt(desired.profile) => {
                    return Plan::only(refused(desired, part, "nobody that Wharf knows".to_owned()));
                }
                Ownership::Unowned | Ownership::Ours | Ownership::Stale => {}
            }
        }
        return Plan { steps: vec![Step::CreateAnchor], next: Next::Again };
    };
    if seen.terminating {
        let waiting = Waiting::because(Stage::Clearing, "a sandbox of this name is still being deleted");
        return Plan::only(Next::Await { parts: vec![Part::Anchor], waiting });
    }
    let owner = owner_of(desired, &anchor);
    let pod = observed.get(Part::Pod);
    let dead = pod.filter(|pod| !pod.terminating).and_then(|pod| match judge(&pod.pod(), &[]) {
        Verdict::Failed(failure) => Some((pod.uid.as_str(), failure)),
        Verdict::Reachable { .. } | Verdict::Waiting(_) => None,
    });
    let live = pod.is_some_and(|pod| !pod.terminating) && dead.is_none();
    let new = new.filter(|new| !live && (*new.objects != anchor.objects || *new.bind != anchor.bind));
    let renewed = new.is_some();
    let objects = new.map_or(&anchor.objects, |new| new.objects);
    let mut steps = Vec::new();
    if anchor.wanted != Wanted::Running || renewed {
        steps.push(Step::Want(Wanted::Running));
    }
    let mut in_the_way = Vec::new();
    for (&part, object) in objects.iter() {
        let Some(seen) = observed.get(part) else {
            // What leads to a pod can wait until there is one: that is what takes long.
            if pod.is_some() || !leads_to_pod(part) {
                steps.push(Step::Apply(part));
            }
            continue;
        };
        match owner.of(&seen.object["metadata"]) {
            Ownership::Foreign(owner) => return Plan::only(refused(desired, part, owner)),
            Ownership::Unowned if !may_adopt(desired.profile) => {
                return Plan::only(refused(desired, part, "nobody that Wharf knows".to_owned()));
            }
            _ if seen.terminating => in_the_way.push(part),
            Ownership::Ours | Ownership::Unowned if part == Part::Pod && dead.is_some() => {
                let is_tried_again =
                    |failure: &Failure| failure.kind == FailureKind::Unprepared && made.len() < MOST_PODS;
                if let Some((_, failure)) =
                    dead.as_ref().filter(|(uid, failure)| made.contains(*uid) && !is_tried_again(failure))
                {
                    return Plan { steps: Vec::new(), next: Next::Failed(failure.clone()) };
                }
                steps.push(Step::Delete { part, uid: seen.uid.clone() });
                in_the_way.push(part);
            }
            // Somebody has cut it loose, or a backup has brought it back: files are never taken for remains.
            Ownership::Stale if part == Part::Workspace && is_orphan(&seen.object["metadata"]) => {
                if anchor.leased_until.is_some() {
                    return Plan { steps: vec![Step::Keep], next: Next::Again };
                }
                steps.push(Step::Adopt(part));
            }
            Ownership::Stale => {
                steps.push(Step::Delete { part, uid: seen.uid.clone() });
                in_the_way.push(part);
            }
            Ownership::Unowned => steps.push(Step::Adopt(part)),
            Ownership::Ours => {
                // Another version's Service may say something else; a pod and a claim cannot be changed.
                let changeable = !matches!(part, Part::Pod | Part::Workspace);
                if renewed && changeable && !is_applied(object, &seen.object) {
                    steps.push(Step::Apply(part));
                }
            }
        }
    }
    if in_the_way.contains(&Part::Workspace)
        && let Some(holder) = pod.filter(|pod| !pod.terminating && !in_the_way.contains(&Part::Pod))
    {
        // It was made beside a claim of an earlier life that nobody had looked at: it would hold that one for ever.
        steps.push(Step::Delete { part: Part::Pod, uid: holder.uid.clone() });
        in_the_way.push(Part::Pod);
    }
    if !in_the_way.is_empty() {
        // A pod would take hold of a claim that is on its way out.
        steps.retain(|step| *step != Step::Apply(Part::Pod));
        let waiting = Waiting::because(Stage::Clearing, "an older pod of this sandbox is still ending");
        return Plan { steps, next: Next::Await { parts: in_the_way, waiting } };
    }
    if !steps.is_empty() {
        return Plan { steps, next: Next::Again };
    }
    let Some(pod) = observed.get(Part::Pod) else { return Plan { steps, next: Next::Again } };
    Plan { steps, next: judged(pod) }
}

fn there(desired: &Desired<'_>, observed: &Observed, anchor: Option<(&Seen, Anchor)>) -> Next {
    let anchor = anchor.filter(|(seen, anchor)| !seen.terminating && anchor.wanted == Wanted::Running);
    let pod = observed.get(Part::Pod).filter(|pod| !pod.terminating);
    let (Some((_, anchor)), Some(pod)) = (anchor, pod) else { return Next::Refused(Refusal::NotFound) };
    match owner_of(desired, &anchor).of(&pod.object["metadata"]) {
        Ownership::Ours => judged(pod),
        Ownership::Foreign(owner) => refused(desired, Part::Pod, owner),
        Ownership::Stale | Ownership::Unowned => Next::Refused(Refusal::NotFound),
    }
}

fn judged(pod: &Seen) -> Next {
    match judge(&pod.pod(), &[]) {
        Verdict::Reachable { address } => Next::Reachable { address },
        Verdict::Waiting(waiting) => Next::Await { parts: vec![Part::Pod], waiting },
        Verdict::Failed(failure) => Next::Failed(failure),
    }
}

fn leads_to_pod(part: Part) -> bool {
    match part {
        Part::Service | Part::CodeService | Part::Ingress => true,
        Part::Anchor | Part::Policy | Part::Workspace | Part::Pod => false,
    }
}

/// The original marks only its pod: what it has left of a session goes on being that session's.
fn may_adopt(profile: Profile) -> bool {
    profile == Profile::OpenHands
}

/// Whether all that the manifest says of `spec` stands in the object.
fn is_applied(manifest: &Value, object: &Value) -> bool {
    fn within(part: &Value, whole: &Value) -> bool {
        match (part, whole) {
            (Value::Object(part), Value::Object(whole)) => {
                part.iter().all(|(name, value)| whole.get(name).is_some_and(|other| within(value, other)))
            }
            (Value::Array(part), Value::Array(whole)) => {
                part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| within(part, whole))
            }
            (part, whole) => part == whole,
        }
    }
    within(&manifest["spec"], &object["spec"])
}

fn suspended(desired: &Desired<'_>, observed: &Observed, anchor: Option<(&Seen, Anchor)>) -> Plan {
    let mut steps = Vec::new();
    match &anchor {
        Some((seen, anchor)) if !seen.terminating && anchor.wanted != Wanted::Suspended => {
            steps.push(Step::Want(Wanted::Suspended));
        }
        Some(_) => {}
        // The original has no anchors; its sessions are closed all the same.
        None if may_adopt(desired.profile) && observed.parts().next().is_some() => {}
        None => return Plan::only(Next::Refused(Refusal::NotFound)),
    }
    let goes = |part: Part| !part.survives_suspension();
    without(desired, observed, goes, false, steps)
}

fn gone(desired: &Desired<'_>, observed: &Observed, by_ourselves: bool) -> Plan {
    let plan = without(desired, observed, |_| true, by_ourselves, Vec::new());
    if by_ourselves && !plan.steps.is_empty() {
        // Most of what is deleted is gone at once: nothing would be told of it.
        return Plan { next: Next::Again, ..plan };
    }
    match (&plan.next, observed.get(Part::Anchor)) {
        (Next::Await { parts, .. }, Some(anchor))
            if by_ourselves && parts == &[Part::Anchor] && is_held_by_what_it_owns(anchor) =>
        {
            Plan { steps: vec![Step::Release { uid: anchor.uid.clone() }], next: Next::Again }
        }
        _ => plan,
    }
}

/// Whether a deleted object is there only until all is gone that it owns.
fn is_held_by_what_it_owns(seen: &Seen) -> bool {
    let finalizers = seen.object["metadata"]["finalizers"].as_array();
    seen.terminating && finalizers.is_some_and(|all| all.iter().any(|one| one == FOREGROUND))
}

/// Deletes the parts that are to go and waits for their end.
fn without(
    desired: &Desired<'_>,
    observed: &Observed,
    goes: impl Fn(Part) -> bool,
    by_ourselves: bool,
    mut steps: Vec<Step>,
) -> Plan {
    let mut left = Vec::new();
    let mut foreign = None;
    let anchor_uid = observed.get(Part::Anchor).filter(|_| goes(Part::Anchor)).map(|seen| seen.uid.as_str());
    for (part, seen) in observed.parts().filter(|(part, _)| goes(*part)) {
        match whose(&seen.object["metadata"], desired.installation, desired.names.label(), anchor_uid) {
            // The garbage collector would pass them over too.
            Ownership::Foreign(_) | Ownership::Unowned if by_ourselves && part != Part::Anchor && part != Part::Pod => {
            }
            Ownership::Foreign(owner) => {
                foreign.get_or_insert(refused(desired, part, owner));
            }
            Ownership::Unowned if !may_adopt(desired.profile) => {
                foreign.get_or_insert(refused(desired, part, "nobody that Wharf knows".to_owned()));
            }
            // The anchor takes these along, and is there until they are gone.
            Ownership::Ours if !by_ourselves && !matches!(part, Part::Anchor | Part::Pod) => {}
            // Each is deleted by itself: one that cannot be deleted keeps none of the others.
            Ownership::Unowned | Ownership::Ours | Ownership::Stale => {
                left.push(part);
                if !seen.terminating {
                    steps.push(Step::Delete { part, uid: seen.uid.clone() });
                }
            }
        }
    }
    let next = if left.is_empty() {
        match (foreign, steps.is_empty()) {
            (Some(refusal), _) => refusal,
            (None, true) => Next::Reached,
            (None, false) => Next::Again,
        }
    } else {
        let why =
            if left.contains(&Part::Pod) { "its processes end" } else { "the cluster removes what belongs to it" };
        Next::Await { parts: left, waiting: Waiting::because(Stage::Clearing, why) }
    };
    Plan { steps, next }
}
