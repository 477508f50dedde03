//! `GET /metrics` in the text format of Prometheus, `/healthz` and `/readyz`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::metrics_page::Source;
use super::troubles::Troubles;

/// Where it listens if nothing else is asked for.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:9671";
/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
/// For one connection, from the first byte to the last.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to get an address that somebody else has.
const RETRY: Duration = Duration::from_secs(10);
/// How long scrapes under way are waited for at the end.
const GRACE: Duration = Duration::from_secs(2);
const PART: &str = "metrics";

/// Answers until it is stopped.
pub(super) struct MetricsServer(Runtime);

impl MetricsServer {
    /// Starts it. Where somebody else has the address, that is told and tried again: metrics never keep a mount
    /// from working.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn start(
        address: SocketAddr,
        source: Arc<dyn Source>,
        troubles: Arc<Troubles>,
    ) -> std::io::Result<MetricsServer> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("metrics")
            .enable_all()
            .build()?;
        runtime.spawn(listen(address, source, troubles));
        Ok(MetricsServer(runtime))
    }

    /// Ends it; it lets go of its source.
    pub fn stop(self) {
        self.0.shutdown_timeout(GRACE);
    }
}

async fn listen(address: SocketAddr, source: Arc<dyn Source>, troubles: Arc<Troubles>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(e) => {
                let text = format!(
                    "no metrics: listening on {address}: {e}; give another one with mount --metrics ADDR, or off"
                );
                troubles.set(PART, Some(text));
                sleep(RETRY).await;
            }
        }
    };
    troubles.set(PART, None);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (stream, slot) = match (listener.accept().await, slots.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(slot)) => (stream, slot),
            // Too many at once: this one is closed.
            (Ok(_), Err(_)) => continue,
            (Err(error), _) => {
                tracing::warn!(%error, "metrics");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let source = source.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request| answer(request, source.clone()));
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever hangs up or asks nonsense needs no answer.
            let _ = timeout(PATIENCE, connection).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    source: Arc<dyn Source>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    if request.method() != Method::GET {
        return Ok(reply(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()));
    }
    // It looks at files, which may take as long as the disk likes.
    let made = tokio::task::spawn_blocking(move || match path.as_str() {
        "/metrics" => source.metrics().map_or_else(
            |e| (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
            |page| (StatusCode::OK, page),
        ),
        "/healthz" => state(source.trouble()),
        "/readyz" => state(source.not_ready()),
        _ => (StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
    });
    let (status, text) =
        made.await.unwrap_or((StatusCode::INTERNAL_SERVER_ERROR, "internal error; see the log\n".to_owned()));
    Ok(reply(status, text))
}

fn state(trouble: Option<String>) -> (StatusCode, String) {
    match trouble {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn reply(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
