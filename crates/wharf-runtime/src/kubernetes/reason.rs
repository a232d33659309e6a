//! Why a pod is not ready: from its status and its events to words for a person, and to a verdict whether waiting helps.
//! Pure.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod};
use serde::Serialize;

use super::{
    manifest::{PREPARE, container_name},
    settings::Profile,
};

/// Longest text that is taken over from the cluster or a sandbox.
const LONGEST_TEXT: usize = 600;

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// An older pod or a deleted sandbox of the same name ends first.
    Clearing,
    /// Its objects are being made.
    Making,
    Scheduling,
    Mounting,
    Pulling,
    Starting,
    /// sandboxd gets its identity.
    Binding,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clearing => "clearing",
            Self::Making => "making",
            Self::Scheduling => "scheduling",
            Self::Mounting => "mounting",
            Self::Pulling => "pulling",
            Self::Starting => "starting",
            Self::Binding => "binding",
        }
    }
}

/// What is being waited for, and why it takes so long, if that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub stage: Stage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Waiting {
    /// Whether it waits for room on a node, which others may have taken.
    pub fn is_for_capacity(&self) -> bool {
        self.stage == Stage::Scheduling && self.reason.as_deref().is_some_and(lacks_capacity)
    }

    pub(super) fn at(stage: Stage) -> Self {
        Self { stage, reason: None }
    }

    pub(super) fn because(stage: Stage, reason: impl AsRef<str>) -> Self {
        Self { stage, reason: Some(shown(reason.as_ref())).filter(|text| !text.is_empty()) }
    }
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{}: {reason}", self.stage.as_str()),
            None => f.write_str(self.stage.as_str()),
        }
    }
}

/// Why a pod will never be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    PullFailed,
    StartFailed,
    /// Its node has started it before there was a working directory for it.
    Unprepared,
    /// The image's user is none that a sandbox may run as.
    ImageUser,
    CrashLoop,
    OutOfMemory,
    Evicted,
    /// Its processes have ended.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

impl Failure {
    fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        Self { kind, message: shown(message.as_ref()) }
    }
}

/// What a pod's status says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has an address: sandboxd can be asked.
    Reachable {
        address: String,
    },
    Waiting(Waiting),
    Failed(Failure),
}

/// What comes from a cluster or a sandbox, on one line and without control characters.
pub(super) fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut safe: String = line.chars().filter(|character| !character.is_control()).take(LONGEST_TEXT).collect();
    if line.chars().count() > LONGEST_TEXT {
        safe.push('…');
    }
    safe
}

/// Judges a pod that is to run. `events` are those about it, in any order.
pub fn judge(pod: &Pod, events: &[Event]) -> Verdict {
    let Some(status) = &pod.status else { return Verdict::Waiting(Waiting::at(Stage::Scheduling)) };
    let containers = own_containers(pod);
    if let Some(failure) = unprepared(&containers) {
        return Verdict::Failed(failure);
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return Verdict::Failed(ended(pod, &containers));
    }
    if let Some(failure) = containers.iter().find_map(|container| failure_of(container)) {
        return Verdict::Failed(failure);
    }
    let state = containers.iter().find(|container| is_sandbox(container)).and_then(|sandbox| sandbox.state.as_ref());
    if state.is_some_and(|state| state.terminated.is_some()) {
        return Verdict::Failed(ended(pod, &containers));
    }
    let prepared = containers.iter().find(|container| container.name == PREPARE);
    let not_prepared = prepared.and_then(|prepare| prepare.state.as_ref()?.terminated.as_ref());
    if let Some(ended) = not_prepared.filter(|ended| ended.exit_code != 0)
        && state.is_none_or(|state| state.running.is_none())
    {
        return Verdict::Failed(not_ready(ended, events));
    }
    let running = state.is_some_and(|state| state.running.is_some());
    if let Some(address) = status.pod_ip.as_ref().filter(|address| running && !address.is_empty()) {
        return Verdict::Reachable { address: address.clone() };
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let message = condition.message.as_deref().unwrap_or_default();
        let why =
            if lacks_capacity(message) { format!("no node has room for it: {message}") } else { message.to_owned() };
        return Verdict::Waiting(Waiting::because(Stage::Scheduling, why));
    }
    if pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_none() {
        return Verdict::Waiting(Waiting::at(Stage::Scheduling));
    }
    Verdict::Waiting(containers.iter().find_map(|container| waiting_of(container)).unwrap_or_else(|| told_by(events)))
}

/// Whether the scheduler's words are about what nodes have left of a resource, or of pods.
fn lacks_capacity(message: &str) -> bool {
    message.contains(" Insufficient ") || message.contains(" Too many pods")
}

/// What runs before the sandbox, and then the sandbox itself. Others may have been put beside it, such as a service mesh's
/// proxy: what those do says nothing of the sandbox.
pub(super) fn own_containers(pod: &Pod) -> Vec<&ContainerStatus> {
    let init = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let main = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let before = init.filter(|container| !is_sidecar(pod, &container.name));
    let ours = main.filter(|container| is_sandbox(container) || container.name == PREPARE);
    before.chain(ours).collect()
}

fn is_sandbox(container: &ContainerStatus) -> bool {
    [Profile::Wharf, Profile::OpenHands].map(container_name).contains(&container.name.as_str())
}

/// Whether an init container goes on beside the others (Kubernetes 1.29).
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let mut init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
}

/// A kubelet that cannot start `prepare`, because its image does not come at once, goes on with the sandbox; if that one's image
/// is there by then, directories are made where `prepare` would have made a directory of the user's own and files.
fn unprepared(containers: &[&ContainerStatus]) -> Option<Failure> {
    let sandbox = containers.iter().find(|container| is_sandbox(container))?.state.as_ref()?;
    let prepare = containers.iter().find(|container| container.name == PREPARE)?.state.as_ref()?;
    let held_up = prepare.waiting.as_ref().filter(|waiting| {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        reason.contains("Image") || reason.contains("Pull") || reason.contains("ContainerError")
    });
    let has_begun = sandbox.running.is_some() || sandbox.terminated.is_some();
    let refused = sandbox.terminated.as_ref().and_then(|ended| ended.message.as_deref()).filter(|message| {
        message.contains("volume-subpaths/wharf-etc/") && message.to_lowercase().contains("not a directory")
    });
    let why =
        held_up.filter(|_| has_begun).map(|waiting| waiting.message.as_deref().unwrap_or_default()).or(refused)?;
    Some(Failure::new(
        FailureKind::Unprepared,
        format!("its node started it before container `{PREPARE}` had made its working directory: {why}"),
    ))
}

/// Why the working directory could not be made, in the words of the hook that makes it.
fn not_ready(ended: &ContainerStateTerminated, events: &[Event]) -> Failure {
    let hook = events.iter().find(|event| event.reason.as_deref() == Some("FailedPostStartHook"));
    let told = hook.and_then(|event| event.message.as_deref());
    let message =
        told.map_or_else(|| format!("container `{PREPARE}` ended with code {}", ended.exit_code), str::to_owned);
    Failure::new(FailureKind::StartFailed, format!("its working directory could not be made: {message}"))
}

/// How a pod that has ended came to its end.
fn ended(pod: &Pod, containers: &[&ContainerStatus]) -> Failure {
    let status = pod.status.as_ref();
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let reason = text(status.and_then(|status| status.reason.as_ref()));
    let message = text(status.and_then(|status| status.message.as_ref()));
    if reason == "Evicted" {
        return Failure::new(FailureKind::Evicted, format!("its pod was evicted: {message}"));
    }
    if reason == "DeadlineExceeded" {
        return Failure::new(FailureKind::Ended, "its deadline has passed");
    }
    let terminated = containers.iter().find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0 || ended.reason.as_deref() == Some("OOMKilled"))
            .then_some((container.name.as_str(), ended))
    });
    match terminated {
        Some((_, ended)) if ended.reason.as_deref() == Some("OOMKilled") => Failure::new(
            FailureKind::OutOfMemory,
            "its processes took more memory than its limit, and the kernel killed it",
        ),
        Some((name, ended)) => {
            let why = ended.message.clone().or_else(|| ended.reason.clone().filter(|reason| reason != "Error"));
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            Failure::new(FailureKind::Ended, format!("container `{name}` ended with code {}{why}", ended.exit_code))
        }
        None if reason.is_empty() && message.is_empty() => Failure::new(FailureKind::Ended, "its processes have ended"),
        None => Failure::new(FailureKind::Ended, format!("its pod ended: {reason} {message}")),
    }
}

/// That a pod has lived as long as it was to live, if that is why it has ended.
pub(super) fn passed_deadline(pod: &Pod, deadline_seconds: Option<u64>) -> Option<String> {
    let seconds = deadline_seconds?;
    let told = || Some(format!("its deadline of {seconds} s has passed"));
    if pod.status.as_ref()?.reason.as_deref() == Some("DeadlineExceeded") {
        return told();
    }
    let sandbox = own_containers(pod).into_iter().find(|container| is_sandbox(container))?;
    let ended = sandbox.state.as_ref()?.terminated.as_ref()?;
    if ended.reason.as_deref() == Some("OOMKilled") {
        return None;
    }
    let lived = ended.finished_at.as_ref()?.0.duration_since(ended.started_at.as_ref()?.0);
    // Times of Kubernetes are cut to seconds.
    (lived.as_secs() + 1 >= i64::try_from(seconds).ok()?).then(told).flatten()
}

/// A state of a container that waiting does not better.
fn failure_of(container: &ContainerStatus) -> Option<Failure> {
    let state = container.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        let never_ran = matches!(ended.reason.as_deref(), Some("StartError" | "ContainerCannotRun"));
        return never_ran.then(|| Failure::new(FailureKind::StartFailed, ended.message.as_deref().unwrap_or_default()));
    }
    let waiting = state.waiting.as_ref()?;
    let message = waiting.message.as_deref().unwrap_or_default();
    match waiting.reason.as_deref()? {
        "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
            Some(Failure::new(FailureKind::PullFailed, message))
        }
        "ErrImagePull" | "ImagePullBackOff" if is_permanent(message) => {
            Some(Failure::new(FailureKind::PullFailed, message))
        }
        // Other faults of a configuration may pass, such as a Secret that is not there yet.
        "CreateContainerConfigError" if message.contains("runAsNonRoot") => {
            Some(Failure::new(FailureKind::ImageUser, message))
        }
        "CreateContainerError" | "RunContainerError" | "PostStartHookError" => {
            Some(Failure::new(FailureKind::StartFailed, message))
        }
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let last = last.map(|ended| format!(" (it ended with code {})", ended.exit_code)).unwrap_or_default();
            Some(Failure::new(FailureKind::CrashLoop, format!("{message}{last}")))
        }
        _ => None,
    }
}

/// Whether a registry has said no, rather than nothing.
fn is_permanent(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["not found", "manifest unknown", "unauthorized", "denied", "forbidden", "name unknown", "invalid reference"]
        .iter()
        .any(|no| message.contains(no))
}

fn waiting_of(container: &ContainerStatus) -> Option<Waiting> {
    let waiting = match container.state.as_ref()? {
        ContainerState { waiting: Some(waiting), .. } => waiting,
        ContainerState { .. } => return None,
    };
    let message = waiting.message.as_deref().unwrap_or_default();
    match waiting.reason.as_deref()? {
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => Some(Waiting::because(Stage::Pulling, message)),
        // These two say nothing: events may.
        "ContainerCreating" | "PodInitializing" => None,
        _ => Some(Waiting::because(Stage::Starting, message)),
    }
}

/// What the latest event that says something is about.
fn told_by(events: &[Event]) -> Waiting {
    let time = |event: &Event| {
        let micro = event.event_time.as_ref().map(|time| time.0);
        // Several come within the second that a time tells.
        let version = event.metadata.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok());
        (event.last_timestamp.as_ref().map(|time| time.0).max(micro), version)
    };
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| std::cmp::Reverse(time(event)));
    for event in events {
        let message = event.message.as_deref().unwrap_or_default();
        match event.reason.as_deref() {
            Some("FailedMount" | "FailedAttachVolume" | "FailedMapVolume") => {
                return Waiting::because(Stage::Mounting, message);
            }
            Some("Pulling") => return Waiting::because(Stage::Pulling, message),
            Some("FailedCreatePodSandBox" | "FailedPodSandBoxStatus" | "NetworkNotReady") => {
                return Waiting::because(Stage::Starting, message);
            }
            Some("Pulled" | "Created" | "Started") => return Waiting::at(Stage::Starting),
            _ => {}
        }
    }
    Waiting::at(Stage::Starting)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(status: Value, events: Value, expected: &str) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {}, "status": status,
            "spec": {
                "containers": [], "nodeName": "node",
                "initContainers": [{ "name": "istio-proxy", "restartPolicy": "Always" }],
            },
        }))
        .unwrap();
        let events: Vec<Event> = serde_json::from_value(events).unwrap();
        let verdict = match judge(&pod, &events) {
            Verdict::Reachable { address } => format!("reachable at {address}"),
            Verdict::Waiting(waiting) => format!("{waiting}"),
            Verdict::Failed(failure) => format!("{:?}: {}", failure.kind, failure.message),
        };
        assert_eq!(verdict, expected);
    }

    fn container(state: Value) -> Value {
        json!({ "phase": "Pending", "containerStatuses": [{
            "name": "sandbox", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state
        }] })
    }

    fn event(reason: &str, message: &str, time: &str) -> Value {
        json!({ "metadata": {}, "involvedObject": {}, "reason": reason, "message": message, "lastTimestamp": time })
    }

    #[test]
    fn a_pod_without_a_place_says_so_in_the_schedulers_words() {
        let message = "0/3 nodes are available: 3 Insufficient memory.";
        let status = json!({ "phase": "Pending", "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message }
        ] });
        check(status, json!([]), &format!("scheduling: no node has room for it: {message}"));
    }

    #[test]
    fn an_image_that_a_registry_refuses_is_a_failure_and_one_that_does_not_answer_is_waited_for() {
        let waiting =
            |reason: &str, message: &str| container(json!({ "waiting": { "reason": reason, "message": message } }));
        check(waiting("ErrImagePull", "x: not found"), json!([]), "PullFailed: x: not found");
        check(waiting("ErrImageNeverPull", "not present"), json!([]), "PullFailed: not present");
        check(waiting("ImagePullBackOff", "dial tcp: i/o timeout"), json!([]), "pulling: dial tcp: i/o timeout");
    }

    #[test]
    fn an_image_whose_user_is_root_or_a_name_is_a_failure_and_a_missing_secret_is_waited_for() {
        let waiting = |message: &str| {
            container(json!({ "waiting": { "reason": "CreateContainerConfigError", "message": message } }))
        };
        let root = "container has runAsNonRoot and image will run as root";
        check(waiting(root), json!([]), &format!("ImageUser: {root}"));
        check(waiting("secret \"a\" not found"), json!([]), "starting: secret \"a\" not found");
    }

    #[test]
    fn a_mount_that_fails_is_told_by_events_the_latest_first() {
        let events = json!([
            event("Pulling", "Pulling image \"x\"", "2026-01-01T00:00:01Z"),
            event("FailedMount", "MountVolume.SetUp failed", "2026-01-01T00:00:02Z"),
        ]);
        let creating = json!({ "waiting": { "reason": "ContainerCreating" } });
        check(container(creating.clone()), events, "mounting: MountVolume.SetUp failed");
        check(container(creating), json!([]), "starting");
    }

    #[test]
    fn an_end_is_told_with_its_cause() {
        let ended = |ended: Value| {
            let mut status = container(json!({ "terminated": ended }));
            status["phase"] = json!("Failed");
            status
        };
        check(
            ended(json!({ "exitCode": 137, "reason": "OOMKilled" })),
            json!([]),
            "OutOfMemory: its processes took more memory than its limit, and the kernel killed it",
        );
        check(
            ended(json!({ "exitCode": 1, "reason": "Error" })),
            json!([]),
            "Ended: container `sandbox` ended with code 1",
        );
        let evicted = json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" });
        check(evicted, json!([]), "Evicted: its pod was evicted: low on memory");
    }

    #[test]
    fn a_deadline_is_named_if_the_pod_lived_as_long() {
        let passed = |ended: Value, deadline| {
            let pod = json!({ "metadata": {}, "status": container(json!({ "terminated": ended })) });
            passed_deadline(&serde_json::from_value(pod).unwrap(), deadline)
        };
        let lived =
            |finished: &str| json!({ "exitCode": 1, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": finished });
        let told = Some("its deadline of 60 s has passed".to_owned());
        assert_eq!(passed(lived("2026-01-01T00:01:00Z"), Some(60)), told);
        assert_eq!(passed(lived("2026-01-01T00:00:59Z"), Some(60)), told);
        assert_eq!(passed(lived("2026-01-01T00:00:30Z"), Some(60)), None);
        assert_eq!(passed(lived("2026-01-01T00:01:00Z"), None), None);
        let mut killed = lived("2026-01-01T00:01:00Z");
        killed["reason"] = json!("OOMKilled");
        assert_eq!(passed(killed, Some(60)), None);
    }

    #[test]
    fn a_crash_loop_and_a_program_that_cannot_start_are_failures() {
        let mut status = container(json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } }));
        status["containerStatuses"][0]["lastState"] = json!({ "terminated": { "exitCode": 3 } });
        check(status, json!([]), "CrashLoop: back-off (it ended with code 3)");
        let start =
            json!({ "terminated": { "exitCode": 128, "reason": "StartError", "message": "exec format error" } });
        check(container(start), json!([]), "StartFailed: exec format error");
    }

    #[test]
    fn a_sandbox_that_was_started_before_it_was_prepared_is_a_failure_of_its_own() {
        let told = "Unprepared: its node started it before container `prepare` had made its working directory: ";
        let with = |prepare: Value, sandbox: Value| {
            let mut status = container(sandbox);
            status["podIP"] = json!("10.1.2.3");
            let mut before = status["containerStatuses"][0].clone();
            before["name"] = json!("prepare");
            before["state"] = prepare;
            status["containerStatuses"].as_array_mut().unwrap().insert(0, before);
            status
        };
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "i/o timeout" } });
        let running = || json!({ "running": {} });
        check(with(waiting("ErrImagePull"), running()), json!([]), &format!("{told}i/o timeout"));
        check(with(waiting("ErrImagePull"), waiting("ImagePullBackOff")), json!([]), "pulling: i/o timeout");
        check(with(running(), running()), json!([]), "reachable at 10.1.2.3");
        check(with(waiting("ContainerCreating"), running()), json!([]), "reachable at 10.1.2.3");
        let message =
            "error mounting \"/p/volume-subpaths/wharf-etc/sandbox/2\" to rootfs at \"/etc/passwd\": not a directory";
        let refused = json!({ "terminated": { "exitCode": 128, "reason": "StartError", "message": message } });
        check(with(running(), refused.clone()), json!([]), &format!("{told}{message}"));
        let mut ended = with(running(), refused);
        ended["phase"] = json!("Failed");
        check(ended, json!([]), &format!("{told}{message}"));
    }

    #[test]
    fn what_is_beside_the_sandbox_in_its_pod_says_nothing_of_it() {
        let beside = |sandbox: Value, proxy: Value, kind: &str| {
            let mut status = container(sandbox);
            status["phase"] = json!("Running");
            status["podIP"] = json!("10.1.2.3");
            let mut beside = status["containerStatuses"][0].clone();
            beside["name"] = json!("istio-proxy");
            beside["state"] = proxy;
            let mut all = status[kind].as_array().cloned().unwrap_or_default();
            all.insert(0, beside);
            status[kind] = json!(all);
            status
        };
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "m" } });
        let ended =
            |code: u8, reason: &str| json!({ "terminated": { "exitCode": code, "reason": reason, "message": "m" } });
        let running = || json!({ "running": {} });
        for kind in ["containerStatuses", "initContainerStatuses"] {
            check(beside(waiting("ContainerCreating"), running(), kind), json!([]), "starting");
            check(beside(running(), waiting("CrashLoopBackOff"), kind), json!([]), "reachable at 10.1.2.3");
            check(
                beside(ended(137, "OOMKilled"), ended(2, "Error"), kind),
                json!([]),
                "OutOfMemory: its processes took more memory than its limit, and the kernel killed it",
            );
        }
    }

    #[test]
    fn a_running_pod_is_reachable_once_it_has_an_address() {
        let mut status = container(json!({ "running": {} }));
        check(status.clone(), json!([]), "starting");
        status["podIP"] = json!("10.1.2.3");
        check(status, json!([]), "reachable at 10.1.2.3");
    }

    #[test]
    fn what_a_cluster_says_cannot_write_over_the_terminal() {
        assert_eq!(shown("a\u{1b}[2J\nb\u{7}"), "a[2J b");
        assert_eq!(shown(&"x".repeat(2000)).chars().count(), LONGEST_TEXT + 1);
    }
}
