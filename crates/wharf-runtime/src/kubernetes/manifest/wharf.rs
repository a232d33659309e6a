//! The objects of our own profile: any image, sandboxd carried in, and walls around it.

use serde_json::{Value, json};

use super::{
    APP_PORTS, Carried, DEADLINE_GRACE_SECONDS, Objects, PREPARE, Request, SERVER_PORT, Workspace,
    add_container_extras, add_extra_volumes, add_pod_extras, claim, container_name, ingress, metadata,
    ownership::SANDBOX_LABEL, policy, pull_policy, resources,
};
use crate::kubernetes::{
    names::Names,
    part::Part,
    settings::{IngressMode, Profile, RunAs, Settings, sum},
};

/// Where the pod has what is ours. Images have nothing there.
const PROGRAM_DIRECTORY: &str = "/wharf/bin";
/// Where what is made before a sandbox starts has its volumes.
const VOLUME_DIRECTORY: &str = "/wharf/volume";
const ETC_DIRECTORY: &str = "/wharf/etc";
/// The working directory in its volume: the volume's root belongs to whoever made it, and git refuses to work there.
const WORKSPACE_DIRECTORY: &str = ".wharf-workspace";
/// The abstract socket by which `prepare` learns of the sandbox's end.
const COMPANION: &str = "wharf-companion";
/// sandboxd's own patience with what runs in it, and some more.
const GRACE_SECONDS: u32 = 15;

pub(super) fn objects(names: &Names, settings: &Settings, request: &Request) -> Objects {
    let ports: Vec<u16> = [SERVER_PORT].into_iter().chain(APP_PORTS).collect();
    let mut objects = Objects::from([
        (Part::Policy, policy::policy(names, settings, selector(names), &ports)),
        (Part::Pod, pod(names, settings, request)),
        (Part::Service, service(names)),
    ]);
    if request.workspace == Workspace::Claimed {
        objects.insert(Part::Workspace, claim(settings, &names.pvc));
    }
    if settings.ingress.enabled {
        objects.insert(Part::Ingress, web_ingress(names, settings));
    }
    objects
}

fn selector(names: &Names) -> Value {
    json!({ SANDBOX_LABEL: names.label() })
}

fn service(names: &Names) -> Value {
    let apps = APP_PORTS.map(|port| json!({ "name": format!("app-{port}"), "port": port, "targetPort": port }));
    let ports: Vec<_> =
        [json!({ "name": "http", "port": SERVER_PORT, "targetPort": "http" })].into_iter().chain(apps).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": names.service },
        "spec": { "type": "ClusterIP", "selector": selector(names), "ports": ports },
    })
}

/// sandboxd, which asks for a key, and the ports of web applications.
fn web_ingress(names: &Names, settings: &Settings) -> Value {
    let (domain, token, service) = (&settings.ingress.domain, &names.token, names.service.as_str());
    let root = || "/".to_owned();
    let (hosts, routes) = match settings.ingress.mode {
        IngressMode::Subdomain => {
            let main = (format!("{token}.{domain}"), vec![(root(), service, SERVER_PORT)]);
            let apps = APP_PORTS.map(|port| (format!("{port}-{token}.{domain}"), vec![(root(), service, port)]));
            let routes: Vec<_> = [main].into_iter().chain(apps).collect();
            (routes.iter().map(|(host, _)| host.clone()).collect(), routes)
        }
        IngressMode::Path => {
            let main = (format!("/{token}/"), service, SERVER_PORT);
            let apps = APP_PORTS.map(|port| (format!("/{token}/{port}/"), service, port));
            // The longest path first, for controllers that take the first that fits.
            (vec![domain.clone()], vec![(domain.clone(), apps.into_iter().chain([main]).collect())])
        }
    };
    ingress(&names.ingress, settings, &hosts, routes)
}

fn pod(names: &Names, settings: &Settings, request: &Request) -> Value {
    let workspace = match request.workspace {
        Workspace::Claimed => json!({ "name": "workspace", "persistentVolumeClaim": { "claimName": names.pvc } }),
        Workspace::Ephemeral => json!({ "name": "workspace", "emptyDir": { "sizeLimit": settings.storage_size } }),
    };
    let program = match request.carried {
        Carried::ByInitContainer => json!({ "name": "wharf-bin", "emptyDir": { "sizeLimit": "64Mi" } }),
        Carried::ByImageVolume => {
            let mut image = json!({ "reference": settings.sandboxd_image });
            if let Some(policy) = settings.image_pull_policy {
                image["pullPolicy"] = json!(pull_policy(policy));
            }
            json!({ "name": "wharf-bin", "image": image })
        }
    };
    let etc = json!({ "name": "wharf-etc", "emptyDir": { "sizeLimit": "16Mi" } });
    let mut volumes = vec![workspace, program, etc];
    let program = json!({ "name": "wharf-bin", "mountPath": PROGRAM_DIRECTORY, "readOnly": true });
    let mut mounts = vec![
        json!({ "name": "workspace", "mountPath": settings.workspace_path, "subPath": WORKSPACE_DIRECTORY }),
        program.clone(),
    ];
    mounts.extend(["passwd", "group"].map(
        |file| json!({ "name": "wharf-etc", "mountPath": format!("/etc/{file}"), "subPath": file, "readOnly": true }),
    ));
    add_extra_volumes(&mut mounts, &mut volumes, settings);
    let ports: Vec<_> = [json!({ "containerPort": SERVER_PORT, "name": "http" })]
        .into_iter()
        .chain(APP_PORTS.map(|port| json!({ "containerPort": port, "name": format!("app-{port}") })))
        .collect();
    let mut resources = resources(settings);
    // A kubelet counts an ephemeral workspace with all else that the pod writes.
    if request.workspace == Workspace::Ephemeral
        && let Some(limit) = &settings.ephemeral_storage_limit
        && let Some(both) = sum(limit, &settings.storage_size)
    {
        resources["limits"]["ephemeral-storage"] = json!(both);
    }
    let mut container = json!({
        "name": container_name(settings.profile),
        "image": settings.image,
        "command": [
            format!("{PROGRAM_DIRECTORY}/wharf-sandboxd"),
            "serve",
            "--listen",
            format!("tcp:[::]:{SERVER_PORT}"),
            "--companion",
            COMPANION,
        ],
        "ports": ports,
        "volumeMounts": mounts,
        "resources": resources,
        // No probe: it would say of a blank sandboxd that it is ready, costs a node a request per sandbox for ever, and keeps
        // a Service closed for a period if it comes before sandboxd listens.
        "securityContext": container_security(settings),
    });
    if let Some(container) = container.as_object_mut() {
        add_container_extras(container, settings);
    }
    let mut spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security(settings),
        // Kubelets start them in this order, each once the hook of the one before has ended.
        "containers": [prepare(settings, program), container],
        "volumes": volumes,
    });
    if request.carried == Carried::ByInitContainer {
        let mut carrier = json!({
            "name": "carry-sandboxd",
            "image": settings.sandboxd_image,
            "command": ["/wharf-sandboxd", "install", PROGRAM_DIRECTORY],
            "volumeMounts": [{ "name": "wharf-bin", "mountPath": PROGRAM_DIRECTORY }],
            "resources": small(),
            "securityContext": restricted(),
        });
        if let Some(carrier) = carrier.as_object_mut() {
            add_container_extras(carrier, settings);
        }
        spec["initContainers"] = json!([carrier]);
    }
    if let Some(seconds) = request.deadline_seconds {
        spec["activeDeadlineSeconds"] = json!(seconds.saturating_add(DEADLINE_GRACE_SECONDS));
    }
    if let Some(spec) = spec.as_object_mut() {
        add_pod_extras(spec, settings);
    }
    let mut metadata = metadata(&names.pod, selector(names), settings);
    // For kubectl, which takes the first one otherwise.
    metadata["annotations"]["kubectl.kubernetes.io/default-container"] = json!(container_name(settings.profile));
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

/// What makes the working directory and the user's name before the sandbox starts, in the sandbox's own image and as its
/// user, so that what it makes belongs to that one.
///
/// An init container could do it too, but a kubelet looks once a second whether one has ended: its start would take three
/// times as long. This one's work is done by its hook; then it only waits for the end of the sandbox, because a pod with a
/// container that has ended is not ready.
fn prepare(settings: &Settings, program: Value) -> Value {
    let ourselves = format!("{PROGRAM_DIRECTORY}/wharf-sandboxd");
    let workspace = format!("{VOLUME_DIRECTORY}/{WORKSPACE_DIRECTORY}");
    let options = ["--workspace", &workspace, "--etc", ETC_DIRECTORY, "--home", &settings.workspace_path];
    let with_options = |words: &[&str]| json!([&[&*ourselves], words, &options].concat());
    let mut prepare = json!({
        "name": PREPARE,
        "image": settings.image,
        // It prepares too: a kubelet that is restarted between the two has forgotten the hook
        // (https://github.com/kubernetes/kubernetes/issues/122803).
        "command": with_options(&["accompany", COMPANION]),
        "lifecycle": { "postStart": { "exec": { "command": with_options(&["prepare"]) } } },
        "volumeMounts": [
            program,
            { "name": "workspace", "mountPath": VOLUME_DIRECTORY },
            { "name": "wharf-etc", "mountPath": ETC_DIRECTORY },
        ],
        "resources": small(),
        "securityContext": restricted(),
    });
    if let Some(prepare) = prepare.as_object_mut() {
        add_container_extras(prepare, settings);
    }
    prepare
}

/// For containers of ours that do next to nothing.
fn small() -> Value {
    json!({
        "limits": { "memory": "32Mi", "cpu": "1", "ephemeral-storage": "64Mi" },
        "requests": { "memory": "8Mi", "cpu": "10m", "ephemeral-storage": "1Mi" },
    })
}

/// The pod whose sandboxd takes its identity from who has the bind secret of this digest.
///
/// The secret itself can be read neither in the sandbox nor by who may see pods, and no kubelet has to fetch it.
pub(crate) fn locked(pod: &Value, digest: &str) -> Value {
    let mut pod = pod.clone();
    let containers = pod["spec"]["containers"].as_array_mut().into_iter().flatten();
    let sandbox = containers.into_iter().find(|container| container["name"] == container_name(Profile::Wharf));
    if let Some(command) = sandbox.and_then(|sandbox| sandbox["command"].as_array_mut()) {
        command.extend([json!("--bind-secret-sha256"), json!(digest)]);
    }
    pod
}

/// The pod whose containers beside the sandbox are no smaller than that one asks to be, and no larger: for a namespace whose
/// LimitRange allows no small ones. Whatever it allows of the sandbox it allows of them.
pub(crate) fn evened(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let is_sandbox = |container: &Value| container["name"] == container_name(Profile::Wharf);
    let sandbox = pod["spec"]["containers"].as_array().and_then(|all| all.iter().find(|one| is_sandbox(one)));
    let requests = sandbox.map_or(Value::Null, |sandbox| sandbox["resources"]["requests"].clone());
    for kind in ["containers", "initContainers"] {
        let containers = pod["spec"].get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter(|container| !is_sandbox(container)) {
            container["resources"] = json!({ "limits": requests, "requests": requests });
        }
    }
    pod
}

/// What Pod Security's level `restricted` asks of a container.
fn restricted() -> Value {
    json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } })
}

fn container_security(settings: &Settings) -> Value {
    if settings.privileged { json!({ "privileged": true }) } else { restricted() }
}

fn pod_security(settings: &Settings) -> Value {
    let mut security = json!({
        // The workspace belongs to the sandbox's group; a large one is not walked at every start.
        "fsGroup": settings.run_as_group,
        "fsGroupChangePolicy": "OnRootMismatch",
    });
    if let RunAs::Id(user) = settings.run_as_user {
        security["runAsUser"] = json!(user);
        security["runAsGroup"] = json!(settings.run_as_group);
    }
    if settings.run_as_user != RunAs::Id(0) {
        security["runAsNonRoot"] = json!(true);
    }
    if !settings.privileged {
        security["seccompProfile"] = json!({ "type": "RuntimeDefault" });
    }
    security
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::kubernetes::settings::{Overrides, Sources};

    fn settings(toml: &str) -> Settings {
        let environment = BTreeMap::new();
        let sources =
            Sources { toml: Some(toml), environment: &environment, overrides: Overrides::default(), process_uid: 0 };
        Settings::load(&sources).unwrap().settings
    }

    fn made(settings: &Settings, workspace: Workspace, carried: Carried) -> Value {
        let names = Names::of(&"box".parse().unwrap(), settings.profile);
        pod(&names, settings, &Request { workspace, carried, ..Request::default() })
    }

    /// Kubernetes takes a limit for the request where that is left out, and a node is full of what is reserved.
    #[test]
    fn no_limit_is_reserved_as_a_request() {
        let settings = settings("wharf = { image = 'i', cpu_limit = '4', gpu = { resource = 'nvidia.com/gpu' } }");
        for workspace in [Workspace::Claimed, Workspace::Ephemeral] {
            let pod = made(&settings, workspace, Carried::ByInitContainer);
            let containers = ["containers", "initContainers"].map(|kind| pod["spec"][kind].as_array().unwrap().clone());
            for container in containers.concat() {
                let (limits, requests) = (&container["resources"]["limits"], &container["resources"]["requests"]);
                for (resource, limit) in limits.as_object().unwrap() {
                    // An accelerator is one whole, or none.
                    let is_divisible = !resource.contains('/');
                    assert_eq!(requests.get(resource).is_some(), is_divisible, "{resource}");
                    assert_ne!(requests.get(resource), Some(limit), "{resource}");
                }
            }
            let requests = &pod["spec"]["containers"][1]["resources"]["requests"];
            assert_eq!(requests, &json!({ "cpu": "100m", "memory": "256Mi", "ephemeral-storage": "256Mi" }));
        }
    }
}
