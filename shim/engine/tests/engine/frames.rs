//! Frames of HTTP/2, written and read by hand: what no well-behaved client sends.

use std::io::{Read, Write};
use std::net::TcpStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The beginning of a connection.
pub(crate) fn hello() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, b"")].concat()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of `GET path` without a body.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(path))
}

/// A header block: GET, http, the path, and `test` as the authority.
pub(crate) fn block(path: &str) -> Vec<u8> {
    let literal = |index: u8, text: &str| [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0x82, 0x86], literal(0x04, path), literal(0x01, "test")].concat()
}

/// The kinds of all whole frames in `bytes`.
pub(crate) fn kinds(bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    let mut rest = bytes;
    while let [a, b, c, kind, ..] = *rest {
        kinds.push(kind);
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    kinds
}

/// Replies to each ping, and does nothing else, until the server closes the connection. Returns whether a response began.
pub(crate) fn reply_to_pings(mut stream: TcpStream) -> bool {
    let mut has_begun = false;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return has_begun;
        }
        has_begun |= head[3] == HEADERS;
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).is_err() {
            return has_begun;
        }
        if head[3] == PING && head[4] & ACK == 0 && stream.write_all(&frame(PING, ACK, 0, &payload)).is_err() {
            return has_begun;
        }
    }
}
