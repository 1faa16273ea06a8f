//! What confinement costs: a hello module compiled confined, in a control group, and plainly, in turn.
//! Run it as root: `cargo bench -p skiff --bench confine`.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often each variant is measured.
const ROUNDS: usize = 100;
const WAYS: [(&str, &[&str]); 3] = [
    ("plain", &["compile"]),
    ("confined", &["compile", "--confine"]),
    ("confined, with a control group", &["compile", "--confine", "--cgroup", "bench"]),
];

fn main() -> io::Result<()> {
    let mut times = [const { Vec::new() }; WAYS.len()];
    for _ in 0..ROUNDS {
        for (way, times) in WAYS.iter().zip(&mut times) {
            times.push(measure(way.1)?);
        }
    }
    let mut out = io::stdout().lock();
    for ((name, _), mut times) in WAYS.iter().zip(times) {
        times.sort();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let (least, median) = (milliseconds(times[0]), milliseconds(times[ROUNDS / 2]));
        writeln!(out, "{name:32} median {median:6.2} ms, least {least:6.2} ms")?;
    }
    Ok(())
}

fn measure(arguments: &[&str]) -> io::Result<Duration> {
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b";
    let start = Instant::now();
    let mut compiler = Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    if let Some(mut input) = compiler.stdin.take() {
        input.write_all(module)?;
    }
    let status = compiler.wait()?;
    let time = start.elapsed();
    if status.success() { Ok(time) } else { Err(io::Error::other("the compiler failed")) }
}
