//! Sandboxes in a cluster: what the flags, a config.toml and the environment say about them.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, bail};
use wharf_protocol::{SandboxId, SandboxSpec};
use wharf_runtime::kubernetes::{
    Access, Carried, Cluster, KubernetesRuntime, Settings, install as installation,
    settings::{Overrides, Sources},
};

use crate::{
    cli::{OutputForm, Place, Shape},
    show,
};

/// A flag that only a cluster understands is a mistake without one.
pub(crate) fn refuse_flags(place: &Place) -> anyhow::Result<()> {
    let given = [
        ("--kubeconfig", place.kubeconfig.is_some()),
        ("--profile", place.profile.is_some()),
        ("--route", place.route.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => bail!("`{flag}` is for sandboxes in a cluster: add `--runtime kubernetes`"),
        None => Ok(()),
    }
}

struct Configured {
    settings: Settings,
    /// Whether a flag, the file or the environment names the namespace.
    namespace_is_set: bool,
}

fn configured(place: &Place, shape: Option<&Shape>) -> anyhow::Result<Configured> {
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
        anstream::eprintln!("warning: {warning}");
    }
    Ok(Configured { settings: loaded.settings, namespace_is_set: loaded.namespace_is_set })
}

/// The cluster of the flags, and the settings.
pub(crate) async fn runtime(place: &Place, shape: Option<&Shape>) -> anyhow::Result<KubernetesRuntime> {
    let Configured { mut settings, namespace_is_set } = configured(place, shape)?;
    let access = Access { kubeconfig: place.kubeconfig.clone(), context: place.context.clone() };
    let namespace = namespace_is_set.then_some(settings.namespace.as_str());
    let cluster = Cluster::find(&access, namespace).await?;
    settings.namespace = cluster.namespace().to_owned();
    Ok(KubernetesRuntime::new(cluster, settings))
}

/// `wharf render`: asks no cluster anything.
pub(crate) async fn render(
    place: &Place,
    id: &SandboxId,
    spec: &SandboxSpec,
    form: OutputForm,
) -> anyhow::Result<ExitCode> {
    let configured = configured(place, None)?;
    let carried = match configured.settings.carrier {
        wharf_runtime::kubernetes::settings::Carrier::InitContainer => Carried::ByInitContainer,
        wharf_runtime::kubernetes::settings::Carrier::ImageVolume
        | wharf_runtime::kubernetes::settings::Carrier::Auto => Carried::ByImageVolume,
    };
    show::manifests(&wharf_runtime::kubernetes::render(&configured.settings, id, spec, carried)?, form)?;
    Ok(ExitCode::SUCCESS)
}

/// `wharf install`: asks no cluster anything either.
pub(crate) fn install(place: &Place, form: OutputForm) -> anyhow::Result<ExitCode> {
    show::manifests(&installation::manifests(&configured(place, None)?.settings), form)?;
    Ok(ExitCode::SUCCESS)
}
