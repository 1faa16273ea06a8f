//! What a stream of the engine has said so far.

use std::io::Read;
use std::sync::{Arc, Mutex};

/// What a stream has said so far, read by a thread.
pub(crate) struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Collected {
    pub(crate) fn of(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut block) {
                sink.lock().unwrap().extend_from_slice(&block[..length]);
            }
        });
        Self { bytes, thread }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    pub(crate) fn whole(self) -> String {
        self.thread.join().unwrap();
        let bytes = self.bytes.lock().unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
