//! Requests per second and their 99th percentile, beside `wasmtime serve`.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::container::{Plan, Running, prepare};
use crate::containerd::Containerd;
use crate::image::{Form, Image};
use crate::programs::Programs;
use crate::report::{Goal, HttpRow, Report};
use crate::spec::Network;
use crate::stats::Summary;
use crate::target::Target;

const PATIENCE: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_millis(10);

/// Which server listens on a port.
enum Server<'a> {
    Skiff(Running<'a>),
    Wasmtime(Child),
}

struct Contender<'a> {
    name: String,
    port: u16,
    server: Server<'a>,
    requests: Vec<f64>,
    p99: Vec<f64>,
}

/// The same components under skiff and under `wasmtime serve`, running at the same time and loaded in turns.
///
/// # Errors
/// When a server does not answer, or `wrk` fails.
pub(crate) async fn requests(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    seconds: u64,
    report: &mut Report,
) -> Result<()> {
    let mut contenders = Vec::new();
    for guest in ["rust-p2-http.wasm", "rust-p3-http.wasm"] {
        contenders.push(wasmtime(programs, guest).await?);
        contenders.push(skiff(containerd, programs, guest).await?);
    }
    for _ in 0..rounds {
        for contender in &mut contenders {
            let load = load(&programs.tool("wrk"), contender.port, seconds).await;
            let (requests, p99) = load.with_context(|| format!("loading {} failed", contender.name))?;
            contender.requests.push(requests);
            contender.p99.push(p99);
        }
    }
    let mut rows = Vec::new();
    for contender in contenders {
        rows.push(contender.end().await?);
    }
    for (pair, version) in rows.chunks(2).zip(["0.2", "0.3"]) {
        let ratio = pair[1].requests.median / pair[0].requests.median;
        report.goal(Goal::at_least(format!("HTTP (WASI {version}) requests a second, × `wasmtime serve`"), ratio, 0.9));
    }
    report.http(rows);
    Ok(())
}

impl Contender<'_> {
    async fn end(self) -> Result<HttpRow> {
        match self.server {
            Server::Skiff(running) => running.end().await?,
            Server::Wasmtime(mut child) => child.kill().await?,
        }
        Ok(HttpRow { name: self.name, requests: Summary::of(&self.requests), p99_ms: Summary::of(&self.p99) })
    }
}

async fn wasmtime(programs: &Programs, guest: &str) -> Result<Contender<'static>> {
    let port = free_port()?;
    let child = Command::new(programs.tool("wasmtime"))
        .args(["serve", "-Scli,p3", "-Wcomponent-model-async", "--addr", &format!("127.0.0.1:{port}")])
        .arg(programs.guest(guest))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start `wasmtime serve`")?;
    answers(port).await.with_context(|| format!("`wasmtime serve` of `{guest}` does not answer"))?;
    Ok(Contender::new(format!("`wasmtime serve`, {guest}"), port, Server::Wasmtime(child)))
}

async fn skiff<'a>(containerd: &'a Containerd, programs: &Programs, guest: &str) -> Result<Contender<'a>> {
    let port = free_port()?;
    let image: Image = containerd.image_of(&programs.guest(guest), Form::File).await?;
    let plan =
        Plan { environment: vec![format!("PORT={port}")], network: Network::Host, ..Plan::new(Target::Skiff, &image) };
    let id = containerd.id(&format!("http-{port}"));
    let running = prepare(containerd, id, &plan).await?.begin("").await?;
    answers(port).await.with_context(|| format!("skiff's `{guest}` does not answer"))?;
    Ok(Contender::new(format!("skiff, {guest}"), port, Server::Skiff(running)))
}

impl<'a> Contender<'a> {
    fn new(name: String, port: u16, server: Server<'a>) -> Self {
        Self { name, port, server, requests: Vec::new(), p99: Vec::new() }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn answers(port: u16) -> Result<()> {
    let answer = async {
        while get(port).await.is_err() {
            tokio::time::sleep(OFTEN).await;
        }
    };
    Ok(tokio::time::timeout(PATIENCE, answer).await?)
}

async fn get(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "the answer is `{answer}`");
    Ok(())
}

/// Requests a second, and the 99th percentile of the latency in milliseconds.
async fn load(wrk: &Path, port: u16, seconds: u64) -> Result<(f64, f64)> {
    let output = Command::new(wrk)
        .args(["-t1", "-c16", &format!("-d{seconds}s"), "--latency", &format!("http://127.0.0.1:{port}/")])
        .output()
        .await
        .context("cannot run `wrk`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !text.contains("Non-2xx"), "`wrk` says `{text}`");
    figures(&text).with_context(|| format!("`wrk` says `{text}`"))
}

fn figures(text: &str) -> Option<(f64, f64)> {
    let after = |word: &str| text.lines().find_map(|line| line.trim().strip_prefix(word)).map(str::trim);
    Some((after("Requests/sec:")?.parse().ok()?, milliseconds(after("99%")?)?))
}

fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_wrk_are_read() {
        let text = "  Latency Distribution\n     50%  860.00us\n     99%    8.80ms\nRequests/sec:  15073.12\n";
        assert_eq!(figures(text), Some((15073.12, 8.8)));
        assert_eq!(milliseconds("750.00us"), Some(0.75));
        assert_eq!(milliseconds("1.50s"), Some(1500.0));
        assert_eq!(milliseconds("fast"), None);
    }
}
