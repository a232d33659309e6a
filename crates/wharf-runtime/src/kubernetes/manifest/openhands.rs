//! The objects of OpenHands' V0 `KubernetesRuntime`: section 4 of its specification, `tests/golden`.

use serde_json::{Value, json};

use super::{
    APP_PORTS, CODE_PORT, KEY, Objects, Request, SERVER_PORT, add_container_extras, add_extra_volumes, add_pod_extras,
    claim, container_name, ingress, metadata, policy, resources,
};
use crate::kubernetes::{
    names::Names,
    part::Part,
    settings::{IngressMode, OpenHandsVersion, Settings},
};

const CODE_PLUGIN: &str = "vscode";

pub(super) fn objects(names: &Names, settings: &Settings, request: &Request) -> Objects {
    let mut objects = Objects::from([
        (Part::Workspace, claim(settings, &names.pvc)),
        (Part::Pod, pod(names, settings, request)),
        (Part::Service, service(names, &names.service, "execution-server", SERVER_PORT, "http")),
        (Part::CodeService, service(names, &names.code_service, "code", CODE_PORT, "vscode")),
    ]);
    if settings.ingress.enabled {
        objects.insert(Part::Ingress, code_ingress(names, settings));
    }
    if settings.hardened {
        objects.insert(Part::Policy, policy::policy(names, settings, selector(names), &[SERVER_PORT, CODE_PORT]));
    }
    objects
}

fn selector(names: &Names) -> Value {
    json!({ "app": "openhands-runtime", "session": names.token })
}

fn service(names: &Names, name: &str, port_name: &str, port: u16, target: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": {
            "type": "ClusterIP",
            "selector": selector(names),
            "ports": [{ "name": port_name, "port": port, "targetPort": target }],
        },
    })
}

fn code_ingress(names: &Names, settings: &Settings) -> Value {
    let domain = &settings.ingress.domain;
    let (host, path) = match settings.ingress.mode {
        IngressMode::Subdomain => (format!("{}.{domain}", names.token), "/".to_owned()),
        IngressMode::Path => (domain.clone(), format!("/{}/", names.token)),
    };
    let routes = vec![(host.clone(), vec![(path, names.code_service.as_str(), CODE_PORT)])];
    ingress(&names.ingress, settings, &[host], routes)
}

/// The command that starts the server of the original's image: section 5.
fn command(settings: &Settings, request: &Request) -> Vec<String> {
    let mut command: Vec<String> = [
        "/openhands/micromamba/bin/micromamba",
        "run",
        "-n",
        "openhands",
        "poetry",
        "run",
        "python",
        "-u",
        "-m",
        "openhands.runtime.action_execution_server",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut add = |words: &[&str]| command.extend(words.iter().map(|word| (*word).to_owned()));
    add(&[&SERVER_PORT.to_string(), "--working-dir", &settings.workspace_path]);
    if !request.plugins.is_empty() {
        add(&["--plugins"]);
        add(&request.plugins.iter().map(String::as_str).collect::<Vec<_>>());
    }
    add(&["--username", "root", "--user-id", &settings.server_user_id.to_string()]);
    if let Some(environment) = &settings.browsergym_eval_env {
        add(&["--browsergym-eval-env"]);
        add(&environment.split(' ').collect::<Vec<_>>());
    }
    if !settings.enable_browser && settings.version == OpenHandsVersion::V0_62 {
        add(&["--no-enable-browser"]);
    }
    command
}

fn environment(settings: &Settings, names: &Names) -> Vec<Value> {
    let pair = |name: &str, value: &str| json!({ "name": name, "value": value });
    let mut environment = vec![
        pair("port", &SERVER_PORT.to_string()),
        pair("PYTHONUNBUFFERED", "1"),
        pair("VSCODE_PORT", &CODE_PORT.to_string()),
    ];
    if settings.debug {
        environment.push(pair("DEBUG", "true"));
    }
    environment.extend(settings.environment.iter().map(|(name, value)| pair(name, value)));
    if settings.hardened {
        let key = json!({ "secretKeyRef": { "name": names.anchor, "key": KEY } });
        environment.push(json!({ "name": "SESSION_API_KEY", "valueFrom": key }));
    }
    environment
}

fn pod(names: &Names, settings: &Settings, request: &Request) -> Value {
    let mut ports = vec![json!({ "containerPort": SERVER_PORT, "name": "http" })];
    if request.plugins.iter().any(|plugin| plugin == CODE_PLUGIN) {
        ports.push(json!({ "containerPort": CODE_PORT, "name": "vscode" }));
    }
    ports.extend(APP_PORTS.map(|port| json!({ "containerPort": port })));
    let mut mounts = vec![json!({ "name": "workspace-volume", "mountPath": settings.workspace_path })];
    let mut volumes = vec![json!({ "name": "workspace-volume", "persistentVolumeClaim": { "claimName": names.pvc } })];
    add_extra_volumes(&mut mounts, &mut volumes, settings);
    let mut security = json!({ "privileged": settings.privileged });
    if settings.hardened && !settings.privileged {
        // Its server changes users and owners: what it needs of root's powers stays.
        security["capabilities"] = json!({ "drop": ["NET_RAW", "MKNOD", "SYS_CHROOT", "SETFCAP", "SETPCAP"] });
        security["seccompProfile"] = json!({ "type": "RuntimeDefault" });
    }
    let mut container = json!({
        "name": container_name(settings.profile),
        "image": settings.image,
        "command": command(settings, request),
        "workingDir": "/openhands/code/",
        "env": environment(settings, names),
        "ports": ports,
        "volumeMounts": mounts,
        "resources": resources(settings),
        "readinessProbe": {
            "httpGet": { "path": "/alive", "port": SERVER_PORT },
            "initialDelaySeconds": 5,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
        "securityContext": security,
    });
    if let Some(container) = container.as_object_mut() {
        add_container_extras(container, settings);
    }
    let mut spec = json!({ "restartPolicy": "Never", "containers": [container], "volumes": volumes });
    if let Some(spec) = spec.as_object_mut() {
        add_pod_extras(spec, settings);
    }
    if settings.hardened {
        spec["automountServiceAccountToken"] = json!(false);
        spec["enableServiceLinks"] = json!(false);
    }
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata(&names.pod, selector(names), settings), "spec": spec })
}
