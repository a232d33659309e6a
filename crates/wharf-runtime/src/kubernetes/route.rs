//! How our bytes reach sandboxd in a pod.

use std::{fmt, io, net::IpAddr, pin::Pin, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, client::UpgradeConnectionError};
use wharf_client::{Dial, Route, RouteStream};

use super::{
    cluster::{ApiError, Cluster},
    manifest::SERVER_PORT,
    names::Names,
    port_forward,
    settings::RouteChoice,
};

/// The way to a pod; `None` if `address` is none.
///
/// Outside a cluster nothing is ever sent to a pod's address by itself: it may be some other machine's there.
pub(super) fn route(cluster: &Cluster, choice: RouteChoice, names: &Names, address: &str) -> Option<Route> {
    let choice = match choice {
        RouteChoice::Auto if cluster.is_inside() => RouteChoice::PodAddress,
        RouteChoice::Auto => RouteChoice::PortForward,
        chosen @ (RouteChoice::PodAddress | RouteChoice::Service | RouteChoice::PortForward) => chosen,
    };
    Some(match choice {
        RouteChoice::PodAddress => Route::Tcp((address.parse::<IpAddr>().ok()?, SERVER_PORT).into()),
        RouteChoice::Service => Route::Host(service_host(names, cluster.namespace()), SERVER_PORT),
        RouteChoice::Auto | RouteChoice::PortForward => {
            let pods = cluster.typed::<Pod>();
            Route::Through(Arc::new(PortForward {
                pods,
                server: cluster.server().to_owned(),
                namespace: cluster.namespace().to_owned(),
                pod: names.pod.clone(),
            }))
        }
    })
}

/// The Service's name inside the cluster. The suffix is left to the resolver: it is not `cluster.local` everywhere.
pub(super) fn service_host(names: &Names, namespace: &str) -> String {
    format!("{}.{namespace}.svc", names.service)
}

/// A port-forward through the API server: a connection of its own for every stream, so that one that breaks takes no other
/// along.
#[derive(Clone)]
struct PortForward {
    pods: Api<Pod>,
    server: String,
    namespace: String,
    pod: String,
}

impl Dial for PortForward {
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<RouteStream>> + Send + '_>> {
        Box::pin(async {
            let request = kube::core::Request::new(self.pods.resource_url()).portforward(&self.pod, &[SERVER_PORT]);
            let request = request.map_err(io::Error::other)?;
            let opened = port_forward::open(&self.pods.clone().into_client(), request).await;
            // In the API server's own words, which kube's error says twice, once as a structure.
            let refused = |error: kube::Error| {
                let message = ApiError::of("open a port-forward", &self.server, &error).message;
                // Without the pod nobody needs to try again.
                let kind = if is_not_found(&error) { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
                io::Error::new(kind, message)
            };
            opened.map_err(refused)
        })
    }
}

fn is_not_found(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 404,
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            *status == http::StatusCode::NOT_FOUND
        }
        _ => false,
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port-forward to {}/{}", self.namespace, self.pod)
    }
}

impl fmt::Debug for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
