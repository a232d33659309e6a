//! How our bytes reach sandboxd in a pod.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::time::Instant;
use wharf_client::{Dial, Locate, Route, RouteStream};

use super::{
    cluster::{ApiError, Cluster},
    manifest::SERVER_PORT,
    names::Names,
    port_forward,
    reason::{Verdict, judge},
    settings::RouteChoice,
};

/// How long an address is that of a pod that was seen to run: the pod has to end and be taken down before another can be
/// given it, and that one has to start.
const STAYS: Duration = Duration::from_secs(1);

/// The way to a pod that has just been seen; `None` if `address` is none.
///
/// Outside a cluster nothing is ever sent to a pod's address by itself: it may be some other machine's there.
pub(super) fn route(
    cluster: &Cluster,
    choice: RouteChoice,
    names: &Names,
    pod_uid: &str,
    address: &str,
) -> Option<Route> {
    let choice = match choice {
        RouteChoice::Auto if cluster.is_inside() => RouteChoice::PodAddress,
        RouteChoice::Auto => RouteChoice::PortForward,
        chosen @ (RouteChoice::PodAddress | RouteChoice::Service | RouteChoice::PortForward) => chosen,
    };
    Some(match choice {
        RouteChoice::PodAddress => Route::Located(Arc::new(PodAddress {
            pods: cluster.typed::<Pod>(),
            server: cluster.server().to_owned(),
            pod: names.pod.clone(),
            uid: pod_uid.to_owned(),
            address: (address.parse::<IpAddr>().ok()?, SERVER_PORT).into(),
            seen: Mutex::new(Instant::now()),
        })),
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

/// The address of one pod, for as long as it is that pod's: the key would go to whoever has it afterwards.
struct PodAddress {
    pods: Api<Pod>,
    server: String,
    pod: String,
    uid: String,
    address: SocketAddr,
    /// When it was seen to be there.
    seen: Mutex<Instant>,
}

impl PodAddress {
    fn seen(&self) -> MutexGuard<'_, Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_of(&self, pod: &Pod) -> bool {
        let address = match judge(pod, &[]) {
            Verdict::Reachable { address } => address.parse().ok(),
            Verdict::Waiting(_) | Verdict::Failed(_) => None,
        };
        pod.metadata.uid.as_deref() == Some(&*self.uid) && address == Some(self.address.ip())
    }
}

impl Locate for PodAddress {
    fn locate(&self) -> Pin<Box<dyn Future<Output = io::Result<SocketAddr>> + Send + '_>> {
        Box::pin(async {
            if self.seen().elapsed() < STAYS {
                return Ok(self.address);
            }
            let now = Instant::now();
            let found = self.pods.get_opt(&self.pod).await;
            let what = format!("look for Pod `{}`", self.pod);
            let found = found.map_err(|error| io::Error::other(ApiError::of(&what, &self.server, &error)))?;
            if !found.is_some_and(|pod| self.is_of(&pod)) {
                let gone = format!("pod `{}` is gone, and its address may be another's", self.pod);
                return Err(io::Error::new(io::ErrorKind::NotFound, gone));
            }
            *self.seen() = now;
            Ok(self.address)
        })
    }
}

impl fmt::Display for PodAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl fmt::Debug for PodAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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

/// Whether the API server itself knows no such pod. A kubelet that has just started knows none of its pods yet, and says 404
/// too, in words of its own.
fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.reason == "NotFound")
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use kube::api::{DeleteParams, PostParams};
    use serde_json::json;
    use tokio::net::TcpListener;
    use wharf_client::{ClientError, Sandbox};
    use wharf_protocol::{SandboxId, Secret};

    use super::*;
    use crate::kubernetes::{mock_server::MockServer, part::Part, settings::Profile};

    /// All of 127.0.0.0/8 is this machine's, and hardly anybody listens at this part of it.
    const ADDRESS: &str = "127.83.19.61";

    async fn made(pods: &Api<Pod>, name: &str) -> String {
        let pod = json!({ "metadata": { "name": name }, "spec": { "containers": [] } });
        let made = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        made.metadata.uid.unwrap()
    }

    fn status(state: &serde_json::Value) -> serde_json::Value {
        let container = json!({
            "name": "sandbox", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state,
        });
        json!({ "phase": "Running", "podIP": ADDRESS, "containerStatuses": [container] })
    }

    /// A command was lost when its node's kubelet was started anew.
    #[test]
    fn a_pod_is_not_there_when_the_api_server_says_so_and_not_a_kubelet() {
        let of_server = r#"{"kind":"Status","status":"Failure","message":"pods \"wharf-box\" not found","reason":"NotFound","code":404}"#;
        let of_server: kube::core::Status = serde_json::from_str(of_server).unwrap();
        // As kube makes one of an answer that is none.
        let of_kubelet = kube::core::Status::failure("pod does not exist", "Failed to parse error data").with_code(404);
        for (status, expected) in [(of_server, true), (of_kubelet, false)] {
            assert_eq!(is_not_found(&kube::Error::Api(Box::new(status))), expected);
        }
    }

    /// A client that was held up sent its key to the pod that had the address by then.
    #[tokio::test]
    async fn a_key_goes_to_no_other_pod_that_has_the_address_by_now() {
        let stranger = TcpListener::bind((ADDRESS, SERVER_PORT)).await.unwrap();
        let id: SandboxId = "box".parse().unwrap();
        let names = Names::of(&id, Profile::Wharf);
        let running = status(&json!({ "running": {} }));
        let server = MockServer::start();
        server.set_pod_status(running.clone());
        let runtime = server.runtime("");
        let pods: Api<Pod> = runtime.cluster().typed();
        let uid = made(&pods, &names.pod).await;
        let route = route(runtime.cluster(), RouteChoice::Auto, &names, &uid, ADDRESS).unwrap();
        assert_eq!(route.to_string(), format!("{ADDRESS}:{SERVER_PORT}"));
        let sandbox = Sandbox::new(route, Secret::new("k"));
        let ask = async || {
            let called = sandbox.info();
            tokio::select! {
                answer = called => answer.unwrap_err(),
                _ = stranger.accept() => ClientError::TimedOut { after: Duration::ZERO },
            }
        };
        let is_asked = |error: ClientError| matches!(error, ClientError::TimedOut { .. });
        let refused = |error: ClientError| match error {
            ClientError::Connect { source, .. } => source.kind(),
            other => panic!("{other}"),
        };
        let later = async || {
            tokio::time::pause();
            tokio::time::advance(STAYS).await;
            tokio::time::resume();
        };

        // What was seen just now is so.
        assert!(is_asked(ask().await));
        assert!(!server.calls().iter().any(|call| call == "GET pods"));
        later().await;
        assert!(is_asked(ask().await), "it is still there");
        later().await;
        server.fail("GET pods", 403, "Forbidden", "pods is forbidden: User \"u\" cannot get resource \"pods\"");
        assert_eq!(refused(ask().await), ErrorKind::Other);
        server.change(Part::Pod, &names.pod, &json!({ "status": status(&json!({ "terminated": { "exitCode": 0 } })) }));
        assert_eq!(refused(ask().await), ErrorKind::NotFound);
        server.change(
            Part::Pod,
            &names.pod,
            &json!({ "status": { "podIP": "127.0.0.9", "containerStatuses": running["containerStatuses"] } }),
        );
        assert_eq!(refused(ask().await), ErrorKind::NotFound);
        pods.delete(&names.pod, &DeleteParams::default()).await.unwrap();
        assert_eq!(refused(ask().await), ErrorKind::NotFound);
        made(&pods, &names.pod).await;
        assert_eq!(refused(ask().await), ErrorKind::NotFound, "of another life");
    }
}
