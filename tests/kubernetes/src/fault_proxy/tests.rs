use std::{convert::Infallible, sync::Mutex};

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const PODS: &str = "/api/v1/namespaces/n/pods";
const WATCH: &str = "/api/v1/namespaces/n/pods?watch=true";

/// Stands for an API server: tells of the request it got, streams the lines that a test sends, or echoes a tunnel.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    /// What watches stream, the first one only.
    lines: mpsc::UnboundedSender<&'static str>,
    tasks: JoinSet<()>,
}

type Lines = Arc<Mutex<Option<mpsc::UnboundedReceiver<&'static str>>>>;

impl Server {
    async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (lines, receiver) = mpsc::unbounded_channel();
        let receiver: Lines = Arc::new(Mutex::new(Some(receiver)));
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let seen = seen.clone();
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let (seen, receiver) = (seen.clone(), receiver.clone());
                    let service = service_fn(move |request: Request<Incoming>| {
                        seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                        serve_request(request, receiver.clone())
                    });
                    let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                    connections.spawn(async move {
                        let _ = connection.with_upgrades().await;
                    });
                }
            }
        });
        Self { address, seen, lines, tasks }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve_request(mut request: Request<Incoming>, lines: Lines) -> Result<Response<Streamed>, Infallible> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
        let mut answer = json_answer(StatusCode::SWITCHING_PROTOCOLS, String::new());
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
        return Ok(answer);
    }
    if request.uri().query().is_some_and(|query| query.contains("watch")) {
        let lines = lines.lock().unwrap().take().unwrap();
        let frames = stream::unfold(lines, async |mut lines| {
            let line = lines.recv().await?;
            Some((Ok(Frame::data(Bytes::from(line))), lines))
        });
        return Ok(Response::new(StreamBody::new(frames).boxed_unsync()));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(json_answer(StatusCode::CREATED, format!("got {}", String::from_utf8_lossy(&body))))
}

struct Bench {
    server: Server,
    proxy: FaultProxy,
    client: Client,
}

impl Bench {
    async fn start() -> Self {
        let server = Server::start().await;
        let upstream = Config::new(format!("http://{}", server.address).parse().unwrap());
        let proxy = FaultProxy::start(upstream).await;
        let client = client_of(&proxy);
        Self { server, proxy, client }
    }

    async fn send(&self, method: &str, uri: &str, body: &str) -> kube::Result<(u16, String)> {
        let request = Request::builder().method(method).uri(uri).body(Body::from(body.as_bytes().to_vec())).unwrap();
        let answer = self.client.send(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect_bytes().await?;
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    async fn create(&self) -> kube::Result<(u16, String)> {
        self.send("POST", PODS, "a pod").await
    }

    async fn watch(&self) -> Body {
        self.client.send(Request::get(WATCH).body(Body::empty()).unwrap()).await.unwrap().into_body()
    }

    fn add_once(&self, action: Action) -> FaultId {
        self.proxy.add(Fault::once(Match::default(), action))
    }

    fn calls(&self) -> Vec<String> {
        self.proxy.calls().iter().map(ToString::to_string).collect()
    }
}

fn client_of(proxy: &FaultProxy) -> Client {
    let mut config = proxy.kube_config("n");
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn created() -> (u16, String) {
    (201, "got a pod".to_owned())
}

/// The next bytes of a stream: `Ok(None)` if it has ended, an error if it was cut.
async fn next(body: &mut Body) -> Result<Option<String>, kube::Error> {
    let Some(frame) = body.frame().await else { return Ok(None) };
    Ok(Some(String::from_utf8(frame?.into_data().unwrap().to_vec()).unwrap()))
}

#[tokio::test]
async fn requests_and_answers_pass_as_they_are() {
    let bench = Bench::start().await;
    assert_eq!(bench.send("POST", &format!("{PODS}?dryRun=All"), "a pod").await.unwrap(), created());
    assert_eq!(bench.server.seen(), [format!("POST {PODS}?dryRun=All")]);
    let [call] = &bench.proxy.calls()[..] else { panic!("one call") };
    assert_eq!((call.method.as_str(), call.path.as_str(), call.query.as_deref()), ("POST", PODS, Some("dryRun=All")));
    assert_eq!((call.status(), call.fault), (Some(201), None));
}

#[tokio::test]
async fn calls_are_told_in_the_order_in_which_they_came() {
    let bench = Bench::start().await;
    bench.create().await.unwrap();
    bench.send("DELETE", &format!("{PODS}/a"), "").await.unwrap();
    bench.send("GET", "/version", "").await.unwrap();
    bench.add_once(Action::CutBefore);
    bench.send("GET", PODS, "").await.unwrap_err();
    assert_eq!(bench.calls(), ["create pods: 201", "delete pods a: 201", "get /version: 201", "list pods: cut"]);
}

#[tokio::test]
async fn a_stream_passes_as_it_comes() {
    let bench = Bench::start().await;
    let mut watch = bench.watch().await;
    for line in ["one\n", "two\n"] {
        bench.server.lines.send(line).unwrap();
        assert_eq!(next(&mut watch).await.unwrap().as_deref(), Some(line));
    }
    drop(bench.server.lines);
    assert_eq!(next(&mut watch).await.unwrap(), None);
}

#[tokio::test]
async fn a_client_that_leaves_a_watch_ends_it_at_the_server_too() {
    let bench = Bench::start().await;
    drop(bench.watch().await);
    bench.server.lines.closed().await;
}

async fn open_tunnel(bench: &Bench) -> TokioIo<hyper::upgrade::Upgraded> {
    let request = Request::post(format!("{PODS}/a/exec"))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "echo")
        .body(Body::empty())
        .unwrap();
    let answer = bench.client.send(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()[header::UPGRADE], "echo");
    TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel_both_ways() {
    let bench = Bench::start().await;
    let (mut reader, mut writer) = tokio::io::split(open_tunnel(&bench).await);
    let sent: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut received = vec![0; sent.len()];
    let (written, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received));
    written.unwrap();
    read.unwrap();
    assert!(received == sent);
    assert_eq!(bench.calls(), ["connect pods/exec a: 101"]);
    // Half closed: what was sent is echoed to its end.
    writer.write_all(b"last").await.unwrap();
    writer.shutdown().await.unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"last");
}

#[tokio::test]
async fn a_status_is_an_error_of_kubernetes() {
    let bench = Bench::start().await;
    let id = bench.add_once(Action::Status {
        code: 429,
        reason: "TooManyRequests",
        message: "slow down".to_owned(),
        retry_after: Some(Duration::from_secs(7)),
    });
    let request = || Request::get(PODS).body(Vec::new()).unwrap();
    let error = bench.client.request_text(request()).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str(), status.message.as_str()), (429, "TooManyRequests", "slow down"));
    assert_eq!(status.details.unwrap().retry_after_seconds, 7);
    assert_eq!(bench.server.seen(), [""; 0]);
    bench.client.request_text(request()).await.unwrap();
    let calls = bench.proxy.calls();
    assert_eq!((calls[0].fault, calls[0].status(), calls[1].fault), (Some(id), Some(429), None));
}

#[tokio::test]
async fn a_cut_before_the_server_does_not_reach_it() {
    let bench = Bench::start().await;
    bench.add_once(Action::CutBefore);
    bench.create().await.unwrap_err();
    assert_eq!(bench.server.seen(), [""; 0]);
    assert_eq!(bench.create().await.unwrap(), created());
}

#[tokio::test]
async fn a_cut_after_the_server_leaves_the_request_carried_out() {
    let bench = Bench::start().await;
    bench.add_once(Action::CutAfter);
    bench.create().await.unwrap_err();
    assert_eq!(bench.server.seen(), [format!("POST {PODS}")]);
    assert_eq!(bench.create().await.unwrap(), created());
}

#[tokio::test]
async fn silence_lasts_until_the_client_gives_up() {
    let bench = Bench::start().await;
    bench.add_once(Action::Silence);
    tokio::select! {
        answer = bench.create() => panic!("{answer:?}"),
        () = bench.proxy.wait_for(Match::default(), 1) => {}
    }
    assert_eq!(bench.create().await.unwrap(), created());
    assert_eq!(bench.calls(), ["create pods: unanswered", "create pods: 201"]);
    assert_eq!(bench.server.seen().len(), 1);
}

#[tokio::test]
async fn a_delay_comes_before_the_server() {
    let bench = Bench::start().await;
    let delay = Duration::from_millis(30);
    bench.add_once(Action::Delay(delay));
    let start = tokio::time::Instant::now();
    assert_eq!(bench.create().await.unwrap(), created());
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn a_gate_holds_requests_up_before_the_server_or_after_it() {
    for (action, seen_at_gate) in [(Action::PauseBefore as fn(Gate) -> Action, 0), (Action::PauseAfter, 1)] {
        let bench = Bench::start().await;
        let gate = Gate::default();
        bench.add_once(action(gate.clone()));
        let at_gate = async {
            gate.reached().await;
            assert_eq!(bench.calls(), ["create pods: unanswered"]);
            assert_eq!(bench.server.seen().len(), seen_at_gate);
            gate.open();
        };
        let (answer, ()) = tokio::join!(bench.create(), at_gate);
        assert_eq!(answer.unwrap(), created());
        assert_eq!(bench.server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_stream_is_cut_once_its_events_have_passed() {
    let bench = Bench::start().await;
    bench.add_once(Action::CutStreamAfterEvents(3));
    let mut watch = bench.watch().await;
    bench.server.lines.send("one\ntw").unwrap();
    assert_eq!(next(&mut watch).await.unwrap().as_deref(), Some("one\ntw"));
    // No more is needed for the cut than the end of the third line.
    bench.server.lines.send("o\nthree\nfour\nfi").unwrap();
    assert_eq!(next(&mut watch).await.unwrap().as_deref(), Some("o\nthree\n"));
    next(&mut watch).await.unwrap_err();
    bench.server.lines.closed().await;
}

#[tokio::test]
async fn a_stream_is_cut_before_its_first_event() {
    let bench = Bench::start().await;
    bench.add_once(Action::CutStreamAfterEvents(0));
    let mut watch = bench.watch().await;
    next(&mut watch).await.unwrap_err();
    assert_eq!(bench.calls(), ["watch pods: 200"]);
}

#[tokio::test]
async fn a_stream_that_is_ended_looks_complete() {
    let bench = Bench::start().await;
    bench.add_once(Action::EndStreamAfterEvents(1));
    let mut watch = bench.watch().await;
    bench.server.lines.send("one\ntwo\n").unwrap();
    assert_eq!(next(&mut watch).await.unwrap().as_deref(), Some("one\n"));
    assert_eq!(next(&mut watch).await.unwrap(), None);
}

#[tokio::test]
async fn a_watch_that_is_gone_has_one_event() {
    let bench = Bench::start().await;
    bench.add_once(Action::Gone);
    let request = Request::get(WATCH).body(Vec::new()).unwrap();
    let events = bench.client.request_events::<kube::core::DynamicObject>(request).await.unwrap();
    let events: Vec<_> = std::pin::pin!(events).collect().await;
    let [Ok(kube::api::WatchEvent::Error(status))] = &events[..] else { panic!("{events:?}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert_eq!(bench.server.seen(), [""; 0]);
}

#[tokio::test]
async fn the_first_fault_that_matches_and_has_not_run_out_is_applied() {
    let bench = Bench::start().await;
    let refuse = |code| Action::Status { code, reason: "x", message: String::new(), retry_after: None };
    let creates = || Match::new(Verb::Create, "pods");
    bench.proxy.add(Fault::once(Match::new(Verb::Create, "secrets"), refuse(400)));
    bench.proxy.add(Fault { after: 1, times: Times::N(2), ..Fault::once(creates(), refuse(401)) });
    // Counts what the one before it lets pass: the first create, and the fourth.
    bench.proxy.add(Fault { after: 1, ..Fault::once(creates(), refuse(402)) });
    bench.proxy.add(Fault::always(Match { name: Some("a".to_owned()), ..Match::default() }, refuse(403)));
    for _ in 0..5 {
        bench.create().await.unwrap();
    }
    for _ in 0..2 {
        bench.send("GET", &format!("{PODS}/a"), "").await.unwrap();
        bench.send("GET", &format!("{PODS}/b"), "").await.unwrap();
    }
    let statuses: Vec<_> = bench.proxy.calls().iter().filter_map(Call::status).collect();
    assert_eq!(statuses, [201, 401, 401, 402, 201, 403, 201, 403, 201]);
    bench.proxy.clear();
    assert_eq!(bench.send("GET", &format!("{PODS}/a"), "").await.unwrap().0, 201);
}

#[tokio::test]
async fn all_connections_can_be_cut_at_once() {
    let bench = Bench::start().await;
    let mut watch = bench.watch().await;
    let mut tunnel = open_tunnel(&bench).await;
    bench.proxy.cut_connections();
    next(&mut watch).await.unwrap_err();
    assert!(!matches!(tunnel.read(&mut [0]).await, Ok(1)));
    assert_eq!(bench.create().await.unwrap(), created());
}

#[tokio::test]
async fn a_dropped_proxy_leaves_no_connection() {
    let bench = Bench::start().await;
    let mut watch = bench.watch().await;
    let mut tunnel = open_tunnel(&bench).await;
    let address = bench.proxy.address();
    drop(bench.proxy);
    next(&mut watch).await.unwrap_err();
    assert!(!matches!(tunnel.read(&mut [0]).await, Ok(1)));
    bench.server.lines.closed().await;
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn while_the_server_is_away_connections_are_cut() {
    let mut bench = Bench::start().await;
    bench.create().await.unwrap();
    let address = bench.server.address;
    bench.server.tasks.shutdown().await;
    bench.create().await.unwrap_err();
    bench.server = Server::start_at(address).await;
    assert_eq!(bench.create().await.unwrap(), created());
    assert_eq!(bench.calls(), ["create pods: 201", "create pods: cut", "create pods: 201"]);
}

#[tokio::test]
async fn the_kubeconfig_leads_to_the_proxy() {
    let bench = Bench::start().await;
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&bench.proxy.kubeconfig("here")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    assert_eq!(config.cluster_url.to_string(), format!("http://{}/", bench.proxy.address()));
    assert_eq!(config.default_namespace, "here");
}
