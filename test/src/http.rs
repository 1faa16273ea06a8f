//! A small HTTP/1.1 client that exposes the parts of a response as they arrive.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::container::Container;
use crate::job::Job;
use crate::wait::until;

/// How long a server may take to listen: the first one may have to be compiled.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a server may be silent. In the node of another kernel, a processor writes to some 9,000 new pages a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its transfer encoding.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection to a server.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

/// A port that is free, and that no connection takes meanwhile.
pub fn free_port() -> u16 {
    /// Below those that the kernel gives to connections (`ip_local_port_range`).
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(next % u32::from(PORTS.end - PORTS.start)).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Starts a container of an HTTP guest and waits until it listens on `port` of this machine.
pub fn serving<'a>(job: Job<'a>, port: u16) -> Container<'a> {
    let container = job.host_network().env(&format!("PORT={port}")).start();
    let is_up = until(START_LIMIT, || Connection::open(port).is_ok());
    assert!(is_up, "nobody listens on port {port}: {}", container.streams.stderr());
    container
}

/// Requests `path`.
pub fn get(port: u16, path: &str) -> std::io::Result<Answer> {
    request(port, "GET", path, b"")
}

/// Makes one request on a connection of its own.
pub fn request(port: u16, method: &str, path: &str, body: &[u8]) -> std::io::Result<Answer> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = Connection::open(port)?;
    connection.send(head.as_bytes())?;
    connection.send(body)?;
    connection.answer()
}

impl Connection {
    /// Connects to a port of this machine.
    pub fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads the head of the response: its status and headers.
    pub fn head(&mut self) -> std::io::Result<Answer> {
        let status = self.line()?.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other("no status line"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        Ok(Answer { status, headers, body: Vec::new() })
    }

    /// Reads the next chunk of a chunked body; empty at its end.
    pub fn chunk(&mut self) -> std::io::Result<Vec<u8>> {
        let size = usize::from_str_radix(self.line()?.trim(), 16).map_err(std::io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok(chunk)
    }

    /// Reads a whole response.
    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let mut answer = self.head()?;
        let value = |name: &str| answer.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        if value("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                match self.chunk()? {
                    chunk if chunk.is_empty() => break,
                    chunk => answer.body.extend(chunk),
                }
            }
        } else if let Some(length) = value("content-length").and_then(|length| length.parse().ok()) {
            answer.body.resize(length, 0);
            self.reader.read_exact(&mut answer.body)?;
        } else {
            self.reader.read_to_end(&mut answer.body)?;
        }
        Ok(answer)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_string())
    }
}
