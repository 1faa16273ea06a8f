//! Requests per second, their 99th percentile and the processor time of each, beside `wasmtime serve`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::container::{Plan, Running, prepare};
use crate::containerd::Containerd;
use crate::image::{Form, Image};
use crate::processes::processor_time;
use crate::programs::Programs;
use crate::report::{Goal, HttpRow, Report};
use crate::spec::Network;
use crate::stats::Summary;
use crate::target::Target;

/// `wasmtime serve` compiles the component first.
const PATIENCE: Duration = Duration::from_secs(600);
const OFTEN: Duration = Duration::from_millis(10);

/// How many connections send requests at once.
const CONNECTIONS: [u32; 2] = [16, 64];
/// The smallest component of WASI 0.2 that responds with a body.
const TINY: &str = include_str!("tiny.wat");

/// A component, and how many times as many requests a second skiff is to serve.
struct Guest {
    name: &'static str,
    program: PathBuf,
    goal: f64,
}

/// Which server listens on a port.
enum Server<'a> {
    Skiff(Running<'a>),
    Wasmtime(Child),
}

struct Contender<'a> {
    name: String,
    port: u16,
    process: u32,
    server: Server<'a>,
    loads: [Loads; CONNECTIONS.len()],
}

/// What was measured with one number of connections.
#[derive(Default)]
struct Loads {
    requests: Vec<f64>,
    p99_ms: Vec<f64>,
    processor_us: Vec<f64>,
}

/// The same components under skiff and under `wasmtime serve`, running at the same time and loaded in turns.
///
/// # Errors
/// When a server does not answer, or `wrk` fails.
pub(crate) async fn requests(
    containerd: &Containerd,
    programs: &Programs,
    rounds: usize,
    seconds: u32,
    report: &mut Report,
) -> Result<()> {
    let guests = guests(programs, containerd.directory())?;
    let mut contenders = Vec::new();
    for guest in &guests {
        contenders.push(wasmtime(programs, guest).await?);
        contenders.push(skiff(containerd, guest).await?);
    }
    for _ in 0..rounds {
        for number in 0..CONNECTIONS.len() {
            for contender in &mut contenders {
                let loading = contender.load(&programs.tool("wrk"), number, seconds).await;
                loading.with_context(|| format!("loading {} failed", contender.name))?;
            }
        }
    }
    let mut rows = Vec::new();
    for contender in contenders {
        rows.push(contender.end().await?);
    }
    for (guest, pair) in guests.iter().zip(rows.chunks(2)) {
        for (theirs, ours) in pair[0].iter().zip(&pair[1]) {
            let what = format!("HTTP, {}, {} connections: × `wasmtime serve`", guest.name, ours.connections);
            report.goal(Goal::at_least(what, ours.requests.median / theirs.requests.median, guest.goal));
        }
    }
    report.http(rows.into_iter().flatten().collect());
    Ok(())
}

fn guests(programs: &Programs, directory: &Path) -> Result<[Guest; 4]> {
    let tiny = directory.join("tiny-p2-http.wasm");
    std::fs::write(&tiny, wat::parse_str(TINY)?)?;
    let built = |name: &str| programs.guest(&format!("{name}.wasm"));
    Ok([
        Guest { name: "tiny (WASI 0.2)", program: tiny, goal: 1.2 },
        Guest { name: "Rust (WASI 0.2)", program: built("rust-p2-http"), goal: 1.2 },
        Guest { name: "JavaScript (WASI 0.2)", program: built("js-http"), goal: 1.1 },
        Guest { name: "Rust (WASI 0.3)", program: built("rust-p3-http"), goal: 1.1 },
    ])
}

impl Contender<'_> {
    /// Loads it with one of the numbers of connections.
    async fn load(&mut self, wrk: &Path, number: usize, seconds: u32) -> Result<()> {
        let before = processor_time(self.process)?;
        let (requests, p99_ms) = load(wrk, self.port, CONNECTIONS[number], seconds).await?;
        let used = processor_time(self.process)? - before;
        let loads = &mut self.loads[number];
        loads.requests.push(requests);
        loads.p99_ms.push(p99_ms);
        loads.processor_us.push(used.as_secs_f64() * 1e6 / (requests * f64::from(seconds)));
        Ok(())
    }

    async fn end(self) -> Result<Vec<HttpRow>> {
        match self.server {
            Server::Skiff(running) => running.end().await?,
            Server::Wasmtime(mut child) => child.kill().await?,
        }
        let row = |(connections, loads): (u32, &Loads)| HttpRow {
            name: self.name.clone(),
            connections,
            requests: Summary::of(&loads.requests),
            p99_ms: Summary::of(&loads.p99_ms),
            processor_us: Summary::of(&loads.processor_us),
        };
        Ok(CONNECTIONS.into_iter().zip(&self.loads).map(row).collect())
    }
}

async fn wasmtime(programs: &Programs, guest: &Guest) -> Result<Contender<'static>> {
    let port = free_port()?;
    let mut child = Command::new(programs.tool("wasmtime"))
        .args(["serve", "-Scli,p3", "-Wcomponent-model-async", "--addr", &format!("127.0.0.1:{port}")])
        .arg(&guest.program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start `wasmtime serve`")?;
    let answered = tokio::select! {
        answered = answers(port, OFTEN) => answered,
        ended = child.wait() => Err(anyhow!("it has ended: {}", ended?)),
    };
    answered.with_context(|| format!("`wasmtime serve` of {} does not answer", guest.name))?;
    let process = child.id().context("`wasmtime serve` has ended")?;
    let name = format!("`wasmtime serve`, {}", guest.name);
    Ok(Contender { name, port, process, server: Server::Wasmtime(child), loads: Default::default() })
}

async fn skiff<'a>(containerd: &'a Containerd, guest: &Guest) -> Result<Contender<'a>> {
    let port = free_port()?;
    let image: Image = containerd.image_of(&guest.program, Form::File).await?;
    let plan =
        Plan { environment: vec![format!("PORT={port}")], network: Network::Host, ..Plan::new(Target::Skiff, &image) };
    let id = containerd.id(&format!("http-{port}"));
    let running = prepare(containerd, id, &plan).await?.begin("").await?;
    answers(port, OFTEN).await.with_context(|| format!("skiff's server of {} does not answer", guest.name))?;
    let process = running.process().await?;
    let name = format!("skiff, {}", guest.name);
    Ok(Contender { name, port, process, server: Server::Skiff(running), loads: Default::default() })
}

/// A port of the loopback interface on which nobody listens.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until a server answers, which is asked each time that `pause` is over.
pub(crate) async fn answers(port: u16, pause: Duration) -> Result<()> {
    let answer = async {
        while get(port).await.is_err() {
            tokio::time::sleep(pause).await;
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
async fn load(wrk: &Path, port: u16, connections: u32, seconds: u32) -> Result<(f64, f64)> {
    let output = Command::new(wrk)
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency"])
        .arg(format!("http://127.0.0.1:{port}/"))
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
