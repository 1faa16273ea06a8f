//! What becomes of requests that their guests abandon.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper::body::Bytes;
use skiff_protocol::{Account, MemoryLimit};
use tokio::sync::Notify;
use wasmtime_wasi_http::{Error, WasiBody};

use super::client::Client;
use super::settings::Settings;
use crate::memory::budget::Budget;
use crate::names::resolver::Resolver;

/// The client of a container with 16 MiB, which has 16 connections at the most.
fn small_client() -> Client {
    let mut limit = tempfile::NamedTempFile::new().unwrap();
    limit.write_all(b"16777216\n").unwrap();
    let limits = vec![MemoryLimit { limit: limit.reopen().unwrap(), stat: File::open("/dev/null").unwrap() }];
    let budget = Budget::new(limits, None, Account::keep_in(&Account::create().unwrap()).unwrap());
    let settings = Settings::new(|_| None, "/", &[]);
    Client::new(settings, &Arc::new(Resolver::of_container()), &budget, &Arc::default(), Arc::default())
}

fn request(method: &str, address: SocketAddr, body: WasiBody) -> Request<WasiBody> {
    Request::builder().method(method).uri(format!("http://{address}/")).body(body).unwrap()
}

#[test]
fn an_abandoned_upload_to_a_server_that_does_not_read_keeps_no_connection() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let answering = TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent_address, address) = (silent.local_addr().unwrap(), answering.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = answering.accept().unwrap();
        let _read = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let client = small_client();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for _ in 0..20 {
            let begun = Arc::new(Notify::new());
            let begins = Arc::clone(&begun);
            // More than the kernel keeps.
            let body = Full::new(Bytes::from(vec![0; 8 << 20])).map_err(|never| match never {});
            let body = body.map_frame(move |frame| {
                begins.notify_one();
                frame
            });
            tokio::select! {
                sent = client.send(request("POST", silent_address, body.boxed_unsync()), None) => {
                    panic!("a response: {:?}", sent.err());
                }
                () = begun.notified() => {}
            }
        }
        let empty = Empty::new().map_err(Error::from).boxed_unsync();
        let (response, _) = client.send(request("GET", address, empty), None).await.unwrap();
        assert_eq!(response.status(), 200);
    });
}
