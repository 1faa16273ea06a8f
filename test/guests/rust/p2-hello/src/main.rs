//! The command of WASI 0.2: `hello`, or `env`, `cwd`, `exit N`, `fail`, `panic`, `read PATH`, `sleep MS`, `resolve HOST`,
//! `get HOST:PORT PATH`,
//! `fetch HOST:PORT COUNT`.

mod fetch;

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long `get` waits for its server, and how long between two attempts.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String, String> {
    match words {
        [] => Ok("hello from WASI 0.2\n".into()),
        ["env"] => Ok(std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
        ["cwd"] => std::env::current_dir().map(|path| format!("{}\n", path.display())).map_err(|e| e.to_string()),
        ["exit", code] => std::process::exit(code.parse().map_err(|_| "not a number")?),
        ["fail"] => Err("failed on purpose".into()),
        ["panic"] => panic!("on purpose"),
        ["read", path] => std::fs::read_to_string(path).map_err(|e| e.to_string()),
        ["sleep", ms] => sleep(ms.parse().map_err(|_| "not a number")?),
        ["resolve", host] => resolve(host),
        ["fetch", server, count] => fetch::get(server, count.parse().map_err(|_| "not a number")?),
        ["get", server, path] => get(server, path).map_err(|e| format!("{server}: {e}")),
        _ => Err(format!("unknown: {words:?}")),
    }
}

fn sleep(ms: u64) -> Result<String, String> {
    println!("sleeping");
    std::thread::sleep(Duration::from_millis(ms));
    Ok("woke\n".into())
}

fn resolve(host: &str) -> Result<String, String> {
    let addresses = (host, 80).to_socket_addrs().map_err(|e| e.to_string())?;
    Ok(addresses.map(|address| format!("{}\n", address.ip())).collect())
}

/// The body of what the server answers to a request of HTTP/1.0, over a plain TCP connection.
fn get(server: &str, path: &str) -> std::io::Result<String> {
    let mut connection = connect(server)?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned()))
}

/// Connects as soon as there is such a server.
fn connect(server: &str) -> std::io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(server) {
            Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}
