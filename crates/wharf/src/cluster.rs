//! Sandboxes in a cluster: what the flags, a config.toml and the environment say about them.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Context;
use wharf_protocol::{SandboxId, SandboxSpec};
use wharf_runtime::{
    Runtime, RuntimeError,
    kubernetes::{
        Access, Carried, Cluster, KubernetesRuntime, Settings, install as installation, render as rendered,
        settings::{Carrier, Loaded, Overrides, Sources},
    },
};

use crate::{
    cli::{OutputForm, Place, RuntimeArg, Shape},
    error::WrongUsage,
    show,
};

/// A flag that only the other runtime understands is a mistake.
pub(crate) fn refuse_flags(place: &Place, shape: Option<&Shape>) -> Result<(), WrongUsage> {
    let is_local = matches!(place.runtime, RuntimeArg::Local);
    let start_timeout = shape.and_then(|shape| shape.start_timeout).filter(|_| is_local).map(|_| "start-timeout");
    let Some(flag) = place.given.first().copied().or(start_timeout) else { return Ok(()) };
    let flag = flag.replace('_', "-");
    Err(WrongUsage(if is_local {
        format!("`--{flag}` is for sandboxes in a cluster: add `--runtime kubernetes`")
    } else {
        format!("`--{flag}` is for sandboxes on this machine: add `--runtime local`, or leave it out")
    }))
}

/// What the flags, the file and the environment say; what was passed over is told.
fn configured(place: &Place, shape: Option<&Shape>) -> anyhow::Result<Loaded> {
    let text = match &place.config {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("could not read `{}`", path.display()))?)
        }
        None => None,
    };
    let text_of = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let environment: BTreeMap<String, String> = std::env::vars_os().filter_map(text_of).collect();
    let loaded = Settings::load(&Sources {
        toml: text.as_deref(),
        environment: &environment,
        overrides: Overrides {
            profile: place.profile.map(Into::into),
            namespace: place.namespace.clone(),
            route: place.route.map(Into::into),
            start_timeout: shape.and_then(|shape| shape.start_timeout),
            ..Overrides::default()
        },
        process_uid: rustix::process::geteuid().as_raw(),
    })?;
    for warning in &loaded.warnings {
        crate::out::note!("warning: {warning}");
    }
    Ok(loaded)
}

fn access(place: &Place) -> Access {
    Access { kubeconfig: place.kubeconfig.clone(), context: place.context.clone() }
}

/// The settings with the namespace that all other commands would use; asks no cluster anything.
fn settings(place: &Place) -> anyhow::Result<Settings> {
    let Loaded { mut settings, namespace_is_set, warnings: _ } = configured(place, None)?;
    if !namespace_is_set && let Some(namespace) = access(place).namespace()? {
        settings.namespace = namespace;
    }
    Ok(settings)
}

/// The cluster of the flags, and the settings.
pub(crate) async fn runtime(place: &Place, shape: Option<&Shape>) -> anyhow::Result<KubernetesRuntime> {
    let Loaded { mut settings, namespace_is_set, warnings: _ } = configured(place, shape)?;
    let access = access(place);
    let namespace = namespace_is_set.then_some(settings.namespace.as_str());
    let cluster = Cluster::find(&access, namespace).await?;
    settings.namespace = cluster.namespace().to_owned();
    Ok(KubernetesRuntime::new(cluster, settings))
}

/// Says by how much this machine's clock is off, if that is more than clocks differ: logs and ages are hard to read then.
pub(crate) fn warn_of_skew(runtime: &Runtime) {
    const CLOCKS_DIFFER_SECONDS: u64 = 30;
    let Runtime::Kubernetes(kubernetes) = runtime else { return };
    let Some(skew) = kubernetes.cluster().skew() else { return };
    let direction = if skew.is_negative() { "behind" } else { "ahead of" };
    let seconds = skew.as_secs().unsigned_abs();
    if seconds <= CLOCKS_DIFFER_SECONDS {
        return;
    }
    crate::out::note!(
        "warning: this machine's clock is {seconds} s {direction} the API server's; leases and ages go by the API server's"
    );
}

/// `wharf render`.
pub(crate) fn render(place: &Place, id: &SandboxId, spec: &SandboxSpec, form: OutputForm) -> anyhow::Result<ExitCode> {
    let settings = settings(place)?;
    let carried = match settings.carrier {
        Carrier::InitContainer => Carried::ByInitContainer,
        Carrier::ImageVolume | Carrier::Auto => Carried::ByImageVolume,
    };
    let manifests = rendered(&settings, id, spec, carried).map_err(RuntimeError::from)?;
    show::manifests(&manifests, form)?;
    Ok(ExitCode::SUCCESS)
}

/// `wharf install`.
pub(crate) fn install(place: &Place, form: OutputForm) -> anyhow::Result<ExitCode> {
    show::manifests(&installation::manifests(&settings(place)?), form)?;
    Ok(ExitCode::SUCCESS)
}
