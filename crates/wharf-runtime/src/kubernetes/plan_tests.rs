use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use wharf_protocol::{BindRequest, Environment, SandboxId, Secret};

use super::{
    anchor::NewAnchor,
    manifest::{Objects, Owner, Request, objects},
    names::Names,
    observe::Observed,
    part::Part,
    plan::{Desired, Goal, New, Next, plan},
    settings::{Overrides, Profile, Settings, Sources},
};

fn bind() -> BindRequest {
    BindRequest {
        keys: Vec::new(),
        environment: Environment::new(),
        inherit_environment: true,
        user: None,
        working_dir: "/workspace".to_owned(),
        limits: Default::default(),
        deadline_seconds: None,
    }
}

/// One sandbox `box` of the installation `here`, and what is seen of it.
struct World {
    settings: Settings,
    names: Names,
    objects: Objects,
    observed: Observed,
    made: BTreeSet<String>,
}

impl World {
    fn new(profile: Profile) -> Self {
        let sources = Sources {
            toml: None,
            environment: &std::collections::BTreeMap::new(),
            overrides: Overrides {
                profile: Some(profile),
                image: Some("i".to_owned()),
                installation: Some("here".to_owned()),
                ..Overrides::default()
            },
            process_uid: 0,
        };
        let settings = Settings::load(&sources).unwrap().settings;
        let id: SandboxId = "box".parse().unwrap();
        Self {
            names: Names::of(&id, profile),
            objects: objects(&id, &settings, &Request::default()),
            settings,
            observed: Observed::default(),
            made: BTreeSet::new(),
        }
    }

    fn with_anchor(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let anchor = NewAnchor {
            id: "box".parse().unwrap(),
            profile: self.settings.profile,
            creation: "c".to_owned(),
            leased_until: Some(Timestamp::UNIX_EPOCH),
            key: Secret::new("k"),
            bind_secret: Secret::new("b"),
            bind: bind(),
        };
        let mut object = anchor.manifest("here", &self.names, &self.objects);
        // As the API server stores it.
        let data = object["stringData"].as_object().unwrap().clone();
        for (name, text) in data {
            object["data"][name] = json!(ByteString(text.as_str().unwrap().as_bytes().to_vec()));
        }
        object["metadata"]["uid"] = json!("anchor-1");
        change(&mut object);
        self.observed.note(Part::Anchor, Some(object));
        self
    }

    fn anchored(self) -> Self {
        self.with_anchor(|_| {})
    }

    /// A part as this sandbox's own.
    fn with(mut self, part: Part, change: impl FnOnce(&mut Value)) -> Self {
        let owner = Owner::new("here", &self.names, "anchor-1");
        let mut object = owner.adopt(&self.objects[&part]);
        object["metadata"]["uid"] = json!(format!("{part:?}-1").to_lowercase());
        change(&mut object);
        self.observed.note(part, Some(object));
        self
    }

    fn whole(mut self) -> Self {
        let parts: Vec<Part> = self.objects.keys().copied().filter(|part| *part != Part::Pod).collect();
        for part in parts {
            self = self.with(part, |_| {});
        }
        self
    }

    #[track_caller]
    fn check(&self, goal: Goal<'_>, steps: &str, next: &str) {
        let desired =
            Desired { id: "box", names: &self.names, profile: self.settings.profile, installation: "here", goal };
        let plan = plan(&desired, &self.observed);
        let said: Vec<String> = plan.steps.iter().map(|step| format!("{step:?}")).collect();
        let next_said = match plan.next {
            Next::Again => "again".to_owned(),
            Next::Reached => "reached".to_owned(),
            Next::Reachable { address } => format!("reachable at {address}"),
            Next::Await { parts, waiting } => format!("await {parts:?}: {waiting}"),
            Next::Refused(refusal) => format!("refused: {refusal}"),
            Next::Failed(failure) => format!("failed: {}", failure.message),
        };
        assert_eq!((said.join(", ").as_str(), next_said.as_str()), (steps, next));
    }

    #[track_caller]
    fn check_running(&self, steps: &str, next: &str) {
        let new = Some(New { objects: &self.objects, bind: &bind() });
        self.check(Goal::Running { new, create: true, made: &self.made }, steps, next);
    }
}

fn running(object: &mut Value) {
    object["status"] = json!({ "phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [{
        "name": "sandbox", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": {} }
    }] });
}

fn ended(object: &mut Value) {
    object["status"] = json!({ "phase": "Failed", "reason": "Evicted", "message": "disk" });
}

fn terminating(object: &mut Value) {
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
}

fn foreign(object: &mut Value) {
    object["metadata"]["labels"]["wharf.dev/installation"] = json!("there");
}

fn unmarked(object: &mut Value) {
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.shift_remove("labels");
    metadata.shift_remove("ownerReferences");
}

#[test]
fn the_anchor_is_made_first_then_the_pod_with_what_it_needs_then_what_leads_to_it() {
    World::new(Profile::Wharf).check_running("CreateAnchor", "again");
    World::new(Profile::Wharf).anchored().check_running("Apply(Policy), Apply(Workspace), Apply(Pod)", "again");
    World::new(Profile::Wharf)
        .anchored()
        .with(Part::Policy, |_| {})
        .with(Part::Workspace, |_| {})
        .with(Part::Pod, |_| {})
        .check_running("Apply(Service)", "again");
}

#[test]
fn what_is_there_already_is_not_made_again() {
    let world = World::new(Profile::Wharf).anchored().whole();
    world.check_running("Apply(Pod)", "again");
    world.with(Part::Pod, running).check_running("", "reachable at 10.0.0.7");
    World::new(Profile::Wharf).anchored().whole().with(Part::Pod, |_| {}).check_running("", "await [Pod]: scheduling");
}

#[test]
fn a_pod_does_not_keep_a_claim_of_an_earlier_life_from_going() {
    let of_an_earlier_life = |object: &mut Value| object["metadata"]["ownerReferences"][0]["uid"] = json!("anchor-0");
    let world = |end: fn(&mut Value)| {
        World::new(Profile::Wharf).anchored().whole().with(Part::Pod, running).with(Part::Workspace, |object| {
            of_an_earlier_life(object);
            end(object);
        })
    };
    let clearing = "await [Workspace, Pod]: clearing: an older pod of this sandbox is still ending";
    let delete_pod = "Delete { part: Pod, uid: \"pod-1\" }";
    let delete_both = format!("Delete {{ part: Workspace, uid: \"workspace-1\" }}, {delete_pod}");
    world(|_| {}).check_running(&delete_both, clearing);
    world(terminating).check_running(delete_pod, clearing);
    world(terminating).with(Part::Pod, terminating).check_running("", clearing);
}

#[test]
fn a_pod_of_the_past_that_has_ended_is_replaced_and_one_of_this_call_is_a_failure() {
    let mut world = World::new(Profile::Wharf).anchored().whole().with(Part::Pod, ended);
    world.check_running(
        "Delete { part: Pod, uid: \"pod-1\" }",
        "await [Pod]: clearing: an older pod of this sandbox is still ending",
    );
    world.made.insert("pod-1".to_owned());
    world.check_running("", "failed: its pod was evicted: disk");
}

#[test]
fn a_pod_that_its_node_has_started_unprepared_is_replaced_and_not_for_ever() {
    let unprepared = |object: &mut Value| {
        running(object);
        let mut prepare = object["status"]["containerStatuses"][0].clone();
        prepare["name"] = json!("prepare");
        prepare["state"] = json!({ "waiting": { "reason": "ErrImagePull", "message": "i/o timeout" } });
        object["status"]["containerStatuses"].as_array_mut().unwrap().insert(0, prepare);
    };
    let mut world = World::new(Profile::Wharf).anchored().whole().with(Part::Pod, unprepared);
    for uid in ["pod-1", "pod-2"] {
        world.made.insert(uid.to_owned());
        world.check_running(
            "Delete { part: Pod, uid: \"pod-1\" }",
            "await [Pod]: clearing: an older pod of this sandbox is still ending",
        );
    }
    world.made.insert("pod-3".to_owned());
    let why = "its node started it before container `prepare` had made its working directory: i/o timeout";
    world.check_running("", &format!("failed: {why}"));
}

#[test]
fn what_is_ending_is_waited_out() {
    World::new(Profile::Wharf)
        .anchored()
        .whole()
        .with(Part::Pod, terminating)
        .check_running("", "await [Pod]: clearing: an older pod of this sandbox is still ending");
    World::new(Profile::Wharf)
        .with_anchor(terminating)
        .check_running("", "await [Anchor]: clearing: a sandbox of this name is still being deleted");
}

#[test]
fn what_belongs_to_an_earlier_life_goes_before_it_is_made_anew() {
    World::new(Profile::Wharf)
        .anchored()
        .whole()
        .with(Part::Workspace, |object| object["metadata"]["ownerReferences"][0]["uid"] = json!("anchor-0"))
        .check_running(
            "Delete { part: Workspace, uid: \"workspace-1\" }",
            "await [Workspace]: clearing: an older pod of this sandbox is still ending",
        );
}

#[test]
fn files_that_were_cut_loose_or_restored_go_on_and_are_no_garbage_from_then_on() {
    let loose = |object: &mut Value| drop(object["metadata"].as_object_mut().unwrap().shift_remove("ownerReferences"));
    let kept = |anchor: &mut Value| {
        drop(anchor["metadata"]["annotations"].as_object_mut().unwrap().shift_remove("wharf.dev/leased-until"));
    };
    World::new(Profile::Wharf).anchored().whole().with(Part::Workspace, loose).check_running("Keep", "again");
    World::new(Profile::Wharf)
        .with_anchor(kept)
        .whole()
        .with(Part::Workspace, loose)
        .check_running("Adopt(Workspace), Apply(Pod)", "again");
}

#[test]
fn what_belongs_to_somebody_else_is_left_alone() {
    let refusal = "refused: Pod `wharf-box` belongs to installation `there`";
    World::new(Profile::Wharf).with(Part::Pod, foreign).check_running("", refusal);
    World::new(Profile::Wharf).anchored().with(Part::Pod, foreign).check_running("", refusal);
    World::new(Profile::Wharf).with_anchor(foreign).check(
        Goal::Gone { by_ourselves: false },
        "",
        "refused: Secret `wharf-box` belongs to installation `there`",
    );
    World::new(Profile::Wharf)
        .with(Part::Service, unmarked)
        .check_running("", "refused: Service `wharf-box` belongs to nobody that Wharf knows");
    World::new(Profile::Wharf)
        .with_anchor(|anchor| anchor["metadata"]["annotations"]["wharf.dev/id"] = json!("other"))
        .check_running("", "refused: Secret `wharf-box` belongs to sandbox `other`");
}

#[test]
fn what_the_original_has_left_goes_on_as_ours_under_its_profile() {
    let world = World::new(Profile::OpenHands).with(Part::Workspace, unmarked).with(Part::Pod, |pod| {
        running(pod);
        unmarked(pod);
    });
    world.check_running("CreateAnchor", "again");
    world
        .anchored()
        .check_running("Adopt(Workspace), Adopt(Pod), Apply(Service), Apply(CodeService), Apply(Ingress)", "again");
}

#[test]
fn new_settings_count_once_there_is_no_live_pod() {
    let world = World::new(Profile::Wharf).anchored().whole();
    let mut newer = world.objects.clone();
    newer.get_mut(&Part::Pod).unwrap()["spec"]["containers"][0]["image"] = json!("newer");
    let other = BindRequest { environment: [("A".to_owned(), "b".to_owned())].into(), ..bind() };
    for new in [New { objects: &newer, bind: &bind() }, New { objects: &world.objects, bind: &other }] {
        let goal = || Goal::Running { new: Some(new), create: true, made: &world.made };
        world.check(goal(), "Want(Running), Apply(Pod)", "again");
        let live = World::new(Profile::Wharf).anchored().whole().with(Part::Pod, running);
        live.check(goal(), "", "reachable at 10.0.0.7");
    }
}

#[test]
fn who_only_uses_a_sandbox_changes_nothing_of_it() {
    let missing = "refused: there is no such sandbox";
    let suspended = |anchor: &mut Value| anchor["metadata"]["annotations"]["wharf.dev/desired"] = json!("suspended");
    let whole = || World::new(Profile::Wharf).anchored().whole();
    whole().with(Part::Pod, running).check(Goal::There, "", "reachable at 10.0.0.7");
    whole().with(Part::Pod, |_| {}).check(Goal::There, "", "await [Pod]: scheduling");
    whole().with(Part::Pod, ended).check(Goal::There, "", "failed: its pod was evicted: disk");
    whole().with(Part::Pod, terminating).check(Goal::There, "", missing);
    whole().check(Goal::There, "", missing);
    World::new(Profile::Wharf).with_anchor(suspended).with(Part::Pod, running).check(Goal::There, "", missing);
    let theirs = "refused: Pod `wharf-box` belongs to installation `there`";
    whole().with(Part::Pod, foreign).check(Goal::There, "", theirs);
}

#[test]
fn a_suspended_sandbox_keeps_its_workspace_and_says_so_first() {
    let world = World::new(Profile::Wharf).anchored().whole().with(Part::Pod, running);
    let deletes = "Want(Suspended), Delete { part: Pod, uid: \"pod-1\" }, Delete { part: Service, uid: \"service-1\" }";
    world.check(Goal::Suspended, deletes, "await [Pod, Service]: clearing: its processes end");
    let suspended = |anchor: &mut Value| anchor["metadata"]["annotations"]["wharf.dev/desired"] = json!("suspended");
    World::new(Profile::Wharf).with_anchor(suspended).check(Goal::Suspended, "", "reached");
    World::new(Profile::Wharf).check(Goal::Suspended, "", "refused: there is no such sandbox");
    World::new(Profile::Wharf).with_anchor(suspended).with(Part::Workspace, |_| {}).check(
        Goal::Running { new: None, create: false, made: &BTreeSet::new() },
        "Want(Running), Apply(Policy), Apply(Pod)",
        "again",
    );
}

#[test]
fn the_anchor_takes_all_along_and_what_it_does_not_own_is_deleted_by_itself() {
    World::new(Profile::Wharf).anchored().whole().with(Part::Pod, running).check(
        Goal::Gone { by_ourselves: false },
        "Delete { part: Anchor, uid: \"anchor-1\" }, Delete { part: Pod, uid: \"pod-1\" }",
        "await [Anchor, Pod]: clearing: its processes end",
    );
    World::new(Profile::Wharf).with(Part::Service, |_| {}).check(
        Goal::Gone { by_ourselves: false },
        "Delete { part: Service, uid: \"service-1\" }",
        "await [Service]: clearing: the cluster removes what belongs to it",
    );
    World::new(Profile::Wharf).check(Goal::Gone { by_ourselves: false }, "", "reached");
    // One that a hand has broken goes too.
    let broken = World::new(Profile::Wharf).with_anchor(|anchor| anchor["data"] = json!({}));
    broken.check(
        Goal::Gone { by_ourselves: false },
        "Delete { part: Anchor, uid: \"anchor-1\" }",
        "await [Anchor]: clearing: the cluster removes what belongs to it",
    );
    broken.check_running("", "refused: Secret `wharf-box` is not what Wharf has made: `key` is missing");
}

#[test]
fn every_manifest_is_one_that_the_api_types_take_whole() {
    fn check<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), *object);
    }
    for profile in [Profile::Wharf, Profile::OpenHands] {
        for (part, object) in World::new(profile).objects.iter() {
            match part {
                Part::Pod => check::<k8s_openapi::api::core::v1::Pod>(object),
                Part::Workspace => check::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(object),
                Part::Service | Part::CodeService => check::<k8s_openapi::api::core::v1::Service>(object),
                Part::Ingress => check::<k8s_openapi::api::networking::v1::Ingress>(object),
                Part::Policy => check::<k8s_openapi::api::networking::v1::NetworkPolicy>(object),
                Part::Anchor => unreachable!("it is not among them"),
            }
        }
    }
}
