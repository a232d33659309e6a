//! One API server and one namespace of it: how it is found, and how a call to it is made.
//!
//! Every call has a time limit. What may go well later is tried again, with growing pauses, until the operation's deadline:
//! conflicts, "too many requests", errors of the server, lost connections.

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper_util::{
    client::{legacy::connect::HttpConnector, proxy::matcher::Matcher},
    rt::TokioExecutor,
};
use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, Config,
    client::{ClientBuilder, ConfigExt},
    config::{Context, KubeConfigOptions, Kubeconfig},
    core::DynamicObject,
};
use tokio::{sync::OnceCell, time::Instant};
use tower::{BoxError, ServiceBuilder, util::MapResponseLayer};

use super::{
    clock::ServerClock,
    manifest::Carried,
    part::Part,
    settings::{Carrier, Profile, Settings},
};

const PROXY_SCHEMES: [&str; 3] = ["http", "https", "socks5"];
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const WRITE_PATIENCE: Duration = Duration::from_secs(15);
/// How long one call may take; watches go on as long as they like.
const CALL_PATIENCE: Duration = Duration::from_secs(15);
/// How long an API server that has never answered is tried.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// An API server that has just started refuses everybody but administrators until it has read the roles: for so long after
/// its first answer a refusal may pass.
const REFUSAL_MAY_PASS: Duration = Duration::from_secs(10);
/// How long a ServiceAccount that a pod needs may be missing: that of a namespace that was just made comes a moment later.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Image volumes are part of Kubernetes since this minor version, which asks for a container runtime that has them.
const IMAGE_VOLUMES_SINCE: u32 = 36;

/// How an API server is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// `None`: `KUBECONFIG`, or `~/.kube/config`; inside a cluster without either, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
}

impl Access {
    /// The namespace of the context, or of the pod that this is; `None` if there is none. Asks no cluster anything.
    ///
    /// # Errors
    ///
    /// [`ClusterError`], but for [`ClusterError::Nowhere`].
    pub fn namespace(&self) -> Result<Option<String>, ClusterError> {
        match self.read() {
            Ok(Some(kubeconfig)) => {
                let context = context_of(&kubeconfig, self.context.as_deref());
                Ok(context.and_then(|context| context.namespace.clone()).filter(|name| !name.is_empty()))
            }
            Ok(None) => Ok(Config::incluster().ok().map(|config| config.default_namespace)),
            Err(ClusterError::Nowhere) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `None`: this is a pod, and nothing says another cluster than its own.
    fn read(&self) -> Result<Option<Kubeconfig>, ClusterError> {
        let read = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let kubeconfig = match read {
            Ok(kubeconfig) => kubeconfig,
            // One that cannot be used says so, and is not passed over for another cluster.
            Err(error) if self.is_configured() => return Err(unquoted(&error)),
            Err(_) if self.context.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                return Ok(None);
            }
            Err(_) => return Err(ClusterError::Nowhere),
        };
        if let Some(wanted) = &self.context
            && context_of(&kubeconfig, Some(wanted)).is_none()
        {
            let known: Vec<_> = kubeconfig.contexts.iter().map(|context| format!("`{}`", context.name)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ClusterError::Context { wanted: wanted.clone(), known });
        }
        Ok(Some(kubeconfig))
    }

    /// Whether somebody says which kubeconfig it is, or has one where it usually is.
    fn is_configured(&self) -> bool {
        let said = self.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty());
        said || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists())
    }
}

/// Why no cluster could be addressed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("could not use the kubeconfig: {0}")]
    Kubeconfig(String),
    #[error("there is no context `{wanted}` in the kubeconfig; it has {known}")]
    Context { wanted: String, known: String },
    #[error("no cluster is configured: there is no kubeconfig, and this is not a pod")]
    Nowhere,
    #[error("could not use the pod's service account")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    #[error("the proxy's URL begins with `{0}`; http, https and socks5 are known")]
    Proxy(String),
    #[error("could not make a client for `{server}`")]
    Client { server: String, source: Box<kube::Error> },
}

/// One namespace of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    server: String,
    inside: bool,
    health: Arc<Mutex<ServerHealth>>,
    minor: Arc<OnceCell<u32>>,
    clock: ServerClock,
}

/// How calls to the API server have gone.
#[derive(Default)]
struct ServerHealth {
    has_answered: bool,
    is_away: bool,
    /// When it first answered after it was away.
    back_since: Option<Instant>,
}

impl ServerHealth {
    /// Takes note of how a call has gone; says whether the server has come back with it.
    fn note(&mut self, is_away: bool) -> bool {
        let is_back = self.is_away && !is_away;
        if is_back {
            self.back_since = Some(Instant::now());
        }
        self.has_answered |= !is_away;
        self.is_away = is_away;
        is_back
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).field("namespace", &self.namespace).finish()
    }
}

impl Cluster {
    /// Finds a cluster without asking it anything; `namespace` or else the context's own.
    ///
    /// # Errors
    ///
    /// [`ClusterError`].
    pub async fn find(access: &Access, namespace: Option<&str>) -> Result<Self, ClusterError> {
        let Some(kubeconfig) = access.read()? else {
            let config = Config::incluster().map_err(|error| ClusterError::InCluster(Box::new(error)))?;
            return Self::of_config(config, namespace, true);
        };
        let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
        let own_proxy = has_own_proxy(&kubeconfig, access.context.as_deref());
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let mut config = config.map_err(|error| unquoted(&error))?;
        // kube compares NO_PROXY with the proxy and not with the server (kube 5.0.0).
        if !own_proxy && !is_proxied(&config.cluster_url, &Matcher::from_env()) {
            config.proxy_url = None;
        }
        Self::of_config(config, namespace, false)
    }

    /// The cluster of a configuration; `inside` says that pods are reached by their addresses.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Client`].
    pub fn of_config(mut config: Config, namespace: Option<&str>, inside: bool) -> Result<Self, ClusterError> {
        // The rest of its URL may be a password.
        let scheme = config.proxy_url.as_ref().map(|proxy| proxy.scheme_str().unwrap_or_default());
        if let Some(scheme) = scheme.filter(|scheme| !PROXY_SCHEMES.contains(scheme)) {
            return Err(ClusterError::Proxy(scheme.to_owned()));
        }
        config.connect_timeout = Some(CONNECT_PATIENCE);
        config.write_timeout = Some(WRITE_PATIENCE);
        // Calls have limits of their own, and are tried again by us, who know which are safe to repeat.
        config.read_timeout = None;
        config.default_retry = false;
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        let server = match &config.proxy_url {
            // Without its user and password.
            Some(proxy) => {
                let port = proxy.port().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{} by the proxy {}{port}", config.cluster_url, proxy.host().unwrap_or_default())
            }
            None => config.cluster_url.to_string(),
        };
        let clock = ServerClock::default();
        let client = client(config, &clock)
            .map_err(|source| ClusterError::Client { server: server.clone(), source: Box::new(source) })?;
        let (health, minor) = Default::default();
        Ok(Self { client, namespace, server, inside, health, minor, clock })
    }

    /// A cluster that answers without a network.
    #[cfg(test)]
    pub(super) fn of_service<S, B>(service: S, namespace: &str) -> Self
    where
        S: tower::Service<http::Request<kube::client::Body>, Response = http::Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: hyper::body::Body<Data = hyper::body::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let clock = ServerClock::default();
        let (health, minor) = Default::default();
        let service = ServiceBuilder::new().map_response(listener(&clock)).service(service);
        let client = Client::new(service, namespace);
        Self { client, namespace: namespace.to_owned(), server: "mock".to_owned(), inside: true, health, minor, clock }
    }

    /// The API server's time, as its last answer told it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// By how much this machine's clock is ahead of the API server's; `None` before it has answered.
    pub fn skew(&self) -> Option<SignedDuration> {
        self.clock.skew()
    }

    /// The API server's time; asks for it if no answer has told it yet.
    pub(super) async fn ensure_time(&self, deadline: Instant) -> Result<Timestamp, ApiError> {
        if !self.clock.has_been_heard() {
            self.call("ask for the time", deadline, &|_| {}, || self.client.apiserver_version()).await?;
        }
        Ok(self.clock.now())
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// How errors call the API server.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Whether we run in a pod of the cluster.
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    pub(super) fn api(&self, part: Part) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &part.resource())
    }

    pub(super) fn typed<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes a call that is safe to repeat, again and again until it goes well, is refused, or `deadline` has passed.
    pub(super) async fn call<T, F>(
        &self,
        what: &str,
        deadline: Instant,
        report: &(dyn Fn(&str) + Sync),
        attempt: impl Fn() -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        self.try_again(what, deadline, report, true, attempt).await
    }

    /// The same for what can be done without: a refusal is always taken as it is.
    pub(super) async fn ask<T, F>(&self, what: &str, deadline: Instant, attempt: impl Fn() -> F) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        self.try_again(what, deadline, &|_| {}, false, attempt).await
    }

    async fn try_again<T, F>(
        &self,
        what: &str,
        deadline: Instant,
        report: &(dyn Fn(&str) + Sync),
        refusals_may_pass: bool,
        attempt: impl Fn() -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let (error, was_answered) = match tokio::time::timeout(CALL_PATIENCE, attempt()).await {
                Ok(Ok(answer)) => {
                    self.health().note(false);
                    return Ok(answer);
                }
                Ok(Err(error)) => (ApiError::of(what, &self.server, &error), matches!(error, kube::Error::Api(_))),
                Err(_) => (ApiError::silence(what, &self.server), false),
            };
            let (given_up, may_pass) = {
                let mut health = self.health();
                let first = !health.has_answered;
                // A proxy before it answers for an API server that is away.
                let away = error.kind.is_unreachable() || error.kind == ApiErrorKind::Server;
                if health.note(away) {
                    pause = FIRST_PAUSE;
                }
                let back_lately = health.back_since.is_some_and(|since| since.elapsed() < REFUSAL_MAY_PASS);
                let given_up = match error.kind {
                    ApiErrorKind::NoServiceAccount => started.elapsed() >= ACCOUNT_PATIENCE,
                    kind => kind.is_unreachable() && first && started.elapsed() >= FIRST_PATIENCE,
                };
                let refused = matches!(error.kind, ApiErrorKind::Forbidden | ApiErrorKind::Unauthorized);
                (given_up, refusals_may_pass && was_answered && refused && back_lately)
            };
            let next =
                error.retry_after.map_or(pause, |asked| asked.max(pause)).mul_f64(0.75 + 0.5 * random_fraction());
            if !(error.is_retryable() || may_pass) || given_up || Instant::now() + next >= deadline {
                return Err(error);
            }
            report(&error.message);
            tokio::time::sleep(next).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn health(&self) -> MutexGuard<'_, ServerHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How sandboxd gets into pods of this cluster.
    pub(super) async fn carried(&self, settings: &Settings, deadline: Instant) -> Result<Carried, ApiError> {
        match settings.carrier {
            // Its images have a server of their own.
            _ if settings.profile == Profile::OpenHands => Ok(Carried::default()),
            Carrier::InitContainer => Ok(Carried::ByInitContainer),
            Carrier::ImageVolume => Ok(Carried::ByImageVolume),
            Carrier::Auto => {
                let asked = || async {
                    self.call("ask for the version of Kubernetes", deadline, &|_| {}, || {
                        self.client.apiserver_version()
                    })
                    .await
                    // Some providers write `36+`.
                    .map(|info| info.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0))
                };
                let minor = *self.minor.get_or_try_init(asked).await?;
                Ok(if minor >= IMAGE_VOLUMES_SINCE { Carried::ByImageVolume } else { Carried::ByInitContainer })
            }
        }
    }
}

/// A client as kube makes it, but that no small packet waits for another: on a connection with Nagle's algorithm the
/// first call after a handshake takes 40 ms more (measured: a port-forward opens in 14 ms and not in 56).
fn client(config: Config, clock: &ServerClock) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        return Ok(ClientBuilder::try_from(config)?.with_layer(&MapResponseLayer::new(listener(clock))).build());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .map_response(listener(clock))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// Passes answers on and hears what time it is.
fn listener<B>(clock: &ServerClock) -> impl Fn(http::Response<B>) -> http::Response<B> + Clone + Send + use<B> {
    let clock = clock.clone();
    move |response| {
        clock.note(response.headers());
        response
    }
}

fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

/// What lies at the bottom of an error.
fn last_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// An error and what caused it in one line, without what is said twice: some layers repeat the text of the one below.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let below = error.to_string();
        if !text.contains(&below) {
            text = format!("{text}: {below}");
        }
        cause = error.source();
    }
    text
}

/// The context of this name, or else the current one.
fn context_of<'a>(kubeconfig: &'a Kubeconfig, context: Option<&str>) -> Option<&'a Context> {
    let name = context.or(kubeconfig.current_context.as_deref());
    kubeconfig.contexts.iter().find(|known| Some(known.name.as_str()) == name)?.context.as_ref()
}

/// Whether the kubeconfig itself says by which proxy its cluster is reached.
fn has_own_proxy(kubeconfig: &Kubeconfig, context: Option<&str>) -> bool {
    let cluster = context_of(kubeconfig, context).map(|context| &context.cluster);
    let cluster = kubeconfig.clusters.iter().find(|known| Some(&known.name) == cluster);
    cluster.and_then(|known| known.cluster.as_ref()?.proxy_url.as_ref()).is_some_and(|url| !url.is_empty())
}

/// Whether HTTPS_PROXY and NO_PROXY send through a proxy what goes to this server; never what stays on this machine.
fn is_proxied(server: &http::Uri, proxies: &Matcher) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    !is_here && proxies.intercept(server).is_some()
}

/// A kubeconfig's error without the lines that it shows of the file: there are keys in it.
fn unquoted(error: &kube::config::KubeconfigError) -> ClusterError {
    ClusterError::Kubeconfig(error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// What an API server's refusal means, for callers who act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiErrorKind {
    NotFound,
    AlreadyExists,
    Conflict,
    /// The object that was meant is gone; another has its name.
    Replaced,
    Unauthorized,
    Forbidden,
    /// The namespace has no ServiceAccount of the name that the pod is to run as.
    NoServiceAccount,
    /// A ResourceQuota is used up.
    Quota,
    /// A LimitRange allows no object of this size.
    LimitRange,
    /// Pod Security, a webhook or another admission plugin says no.
    Admission,
    /// The object is not one that the API server takes.
    Invalid,
    /// A watch has to begin anew.
    Expired,
    Busy,
    Server,
    Unreachable,
    TimedOut,
    Other,
}

impl ApiErrorKind {
    pub fn is_unreachable(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut)
    }
}

/// A call to the API server that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not {what}: {message}")]
pub struct ApiError {
    pub what: String,
    pub kind: ApiErrorKind,
    /// The API server's own words, or what the connection did.
    pub message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn of(what: &str, server: &str, error: &kube::Error) -> Self {
        let (kind, message, retry_after) = match error {
            kube::Error::Api(status) => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let retry_after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
                let message = if status.message.is_empty() {
                    format!("the API server answered {} {}", status.code, status.reason)
                } else {
                    status.message.clone()
                };
                (kind_of(status.code, &status.reason, &status.message), message, retry_after)
            }
            other => {
                let message = last_cause(other);
                let kind = match other {
                    kube::Error::Auth(_) => ApiErrorKind::Unauthorized,
                    _ => ApiErrorKind::Unreachable,
                };
                (kind, format!("`{server}`: {message}"), None)
            }
        };
        Self {
            what: what.to_owned(),
            kind,
            message: message.split_whitespace().collect::<Vec<_>>().join(" "),
            retry_after,
        }
    }

    fn silence(what: &str, server: &str) -> Self {
        Self {
            what: what.to_owned(),
            kind: ApiErrorKind::TimedOut,
            message: format!("no answer of `{server}` within {} s", CALL_PATIENCE.as_secs()),
            retry_after: None,
        }
    }

    /// An object of ours that is none.
    pub(super) fn malformed(error: &serde_json::Error) -> Self {
        Self {
            what: "make an object".to_owned(),
            kind: ApiErrorKind::Invalid,
            message: error.to_string(),
            retry_after: None,
        }
    }

    /// Whether a LimitRange allows no container of this size.
    pub(super) fn is_about_a_containers_size(&self) -> bool {
        self.kind == ApiErrorKind::LimitRange && self.message.contains(PER_CONTAINER)
    }

    /// Whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            ApiErrorKind::Conflict
            | ApiErrorKind::Busy
            | ApiErrorKind::Server
            | ApiErrorKind::Unreachable
            | ApiErrorKind::NoServiceAccount
            | ApiErrorKind::TimedOut => true,
            ApiErrorKind::Forbidden
            | ApiErrorKind::NotFound
            | ApiErrorKind::AlreadyExists
            | ApiErrorKind::Replaced
            | ApiErrorKind::Unauthorized
            | ApiErrorKind::Quota
            | ApiErrorKind::LimitRange
            | ApiErrorKind::Admission
            | ApiErrorKind::Invalid
            | ApiErrorKind::Expired
            | ApiErrorKind::Other => false,
        }
    }
}

/// What a LimitRange says it is about.
const LIMITED: [&str; 3] = [PER_CONTAINER, " per Pod is ", " per PersistentVolumeClaim is "];
const PER_CONTAINER: &str = " per Container is ";

fn kind_of(code: u16, reason: &str, message: &str) -> ApiErrorKind {
    match (code, reason) {
        (404, _) => ApiErrorKind::NotFound,
        (409, "AlreadyExists") => ApiErrorKind::AlreadyExists,
        // A patch says it in the first words, a deletion in the second.
        (409, _) if message.contains("UID in precondition") || message.contains("UID in the precondition") => {
            ApiErrorKind::Replaced
        }
        (409, _) => ApiErrorKind::Conflict,
        (401, _) => ApiErrorKind::Unauthorized,
        // An admission plugin that is still starting.
        (403, _) if message.contains("not yet ready to handle request") => ApiErrorKind::Busy,
        (403, _) if message.contains("exceeded quota") || message.contains("failed quota") => ApiErrorKind::Quota,
        (403, _) if LIMITED.iter().any(|limited| message.contains(limited)) => ApiErrorKind::LimitRange,
        (403, _) if message.contains("violates PodSecurity") || message.contains("admission webhook") => {
            ApiErrorKind::Admission
        }
        (403, _) if message.contains("error looking up service account") => ApiErrorKind::NoServiceAccount,
        // RBAC says who may not; all other plugins say why not.
        (403, _) if !message.contains(" cannot ") => ApiErrorKind::Admission,
        (403, _) => ApiErrorKind::Forbidden,
        (410, _) | (_, "Expired") => ApiErrorKind::Expired,
        (429, _) => ApiErrorKind::Busy,
        (400 | 422, _) => ApiErrorKind::Invalid,
        (500.., _) => ApiErrorKind::Server,
        _ => ApiErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_for_servers_elsewhere_that_no_proxy_does_not_name() {
        let proxies = Matcher::builder().https("http://proxy:3128").no("10.0.0.0/8,.corp").build();
        for (server, expected) in [
            ("https://api.example.com:6443", true),
            ("https://192.0.2.7:6443", true),
            ("https://10.1.2.3:6443", false),
            ("https://api.corp", false),
            ("https://localhost:6443", false),
            ("https://127.0.0.1:6443", false),
            ("https://[::1]:6443", false),
        ] {
            assert_eq!(is_proxied(&server.parse().unwrap(), &proxies), expected, "{server}");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_cannot_be_used_is_refused_without_its_password() {
        let mut config = Config::new("https://192.0.2.7:6443".parse().unwrap());
        config.proxy_url = Some("socks4://user:s3cr3t@proxy:1080".parse().unwrap());
        let error = Cluster::of_config(config, None, false).unwrap_err().to_string();
        assert_eq!(error, "the proxy's URL begins with `socks4`; http, https and socks5 are known");
    }

    #[test]
    fn a_refusal_is_told_from_a_passing_fault() {
        let rbac = "secrets is forbidden: User \"u\" cannot create resource \"secrets\" in API group \"\"";
        for (code, reason, message, kind, retryable) in [
            (409, "AlreadyExists", "", ApiErrorKind::AlreadyExists, false),
            (409, "Conflict", "", ApiErrorKind::Conflict, true),
            (409, "Conflict", "Precondition failed: UID in precondition: a", ApiErrorKind::Replaced, false),
            (409, "Conflict", "the UID in the precondition (a) does not match the UID", ApiErrorKind::Replaced, false),
            (403, "Forbidden", rbac, ApiErrorKind::Forbidden, false),
            (403, "Forbidden", "pods \"x\" is forbidden: exceeded quota: q", ApiErrorKind::Quota, false),
            (403, "Forbidden", "maximum cpu usage per Container is 1, but limit is 2", ApiErrorKind::LimitRange, false),
            (403, "Forbidden", "violates PodSecurity \"restricted:latest\"", ApiErrorKind::Admission, false),
            (403, "Forbidden", "unable to create new content in namespace x", ApiErrorKind::Admission, false),
            (403, "Forbidden", "error looking up service account n/default", ApiErrorKind::NoServiceAccount, true),
            (403, "Forbidden", "pods is forbidden: not yet ready to handle request", ApiErrorKind::Busy, true),
            (429, "TooManyRequests", "", ApiErrorKind::Busy, true),
            (503, "", "", ApiErrorKind::Server, true),
            (410, "Expired", "", ApiErrorKind::Expired, false),
        ] {
            let status = kube::core::Status {
                code,
                reason: reason.into(),
                message: message.into(),
                ..kube::core::Status::default()
            };
            let error = ApiError::of("try", "", &kube::Error::Api(Box::new(status)));
            assert_eq!((error.kind, error.is_retryable()), (kind, retryable), "{code} {reason} {message}");
        }
    }
}
