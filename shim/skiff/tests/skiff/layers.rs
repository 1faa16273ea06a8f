//! `skiff layers` as the shim runs it: a containerd that stands in for the real one, and images of strangers.

use std::convert::Infallible;
use std::fs;
use std::future::ready;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use containerd_client::services::v1::{
    Container, GetContainerResponse, GetImageResponse, Image, Plugin, PluginsResponse, snapshots,
};
use containerd_client::types::Descriptor;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{is_root, sentence, skiff, wait_until};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A containerd with one container.
struct Containerd {
    directory: TempDir,
}

impl Containerd {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("content/blobs/sha256")).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Stores a blob and returns its descriptor.
    fn add(&self, media_type: &str, text: &str) -> Value {
        let digest: String =
            <sha2::Sha256 as sha2::Digest>::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(self.path("content/blobs/sha256").join(&digest), text).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()})
    }

    /// Serves the image `target`, or, without one, accepts connections and does not reply.
    fn serve(&self, target: Option<&Value>) {
        let listener = UnixListener::bind(self.path("socket")).unwrap();
        let Some(target) = target.cloned() else {
            std::mem::forget(listener);
            return;
        };
        listener.set_nonblocking(true).unwrap();
        let root = self.path("content").display().to_string();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(listener, target, root));
        });
    }

    fn command(&self) -> Command {
        let socket = self.path("socket").display().to_string();
        skiff(&["layers", "--address", &socket, "--namespace", "default", "--container", "c"])
    }

    fn start(&self) -> Child {
        self.command().spawn().unwrap()
    }

    fn layers(&self, target: &Value) -> Output {
        self.serve(Some(target));
        self.start().wait_with_output().unwrap()
    }
}

async fn accept(listener: UnixListener, target: Value, root: String) {
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (target, root) = (target.clone(), root.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let answer = answer(request.uri().path(), &target, &root);
                async move { Ok::<_, Infallible>(answer) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn answer(path: &str, target: &Value, root: &str) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let text = |key: &str| target[key].as_str().unwrap().to_owned();
    let message = match path.rsplit('/').next().unwrap() {
        "Get" if path.contains("Containers") => {
            let container = Container {
                image: "r/i:1".into(),
                snapshotter: "s".into(),
                snapshot_key: "k".into(),
                ..Container::default()
            };
            GetContainerResponse { container: Some(container) }.encode_to_vec()
        }
        "Get" => {
            let size = target["size"].as_i64().unwrap();
            let target =
                Descriptor { media_type: text("mediaType"), digest: text("digest"), size, ..Descriptor::default() };
            GetImageResponse { image: Some(Image { target: Some(target), ..Image::default() }) }.encode_to_vec()
        }
        "Plugins" => {
            let exports = [("root".to_owned(), root.to_owned())].into();
            PluginsResponse { plugins: vec![Plugin { exports, ..Plugin::default() }] }.encode_to_vec()
        }
        "Stat" => snapshots::StatSnapshotResponse { info: Some(snapshots::Info::default()) }.encode_to_vec(),
        other => panic!("{other}"),
    };
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from(framed)).with_trailers(ready(Some(Ok(trailers))));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

#[test]
fn the_wasm_layers_of_an_image_are_told_with_their_files() {
    if !is_root() {
        return;
    }
    let containerd = Containerd::new();
    let mut layer = containerd.add("application/wasm", "\0asm");
    layer["annotations"] = json!({"org.opencontainers.image.title": "a.wasm", "other": "x"});
    let other = containerd.add("application/vnd.oci.image.layer.v1.tar", "tar");
    let config = containerd.add(CONFIG, "{}");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [other, layer]}).to_string();
    let manifest = containerd.add(MANIFEST, &manifest);
    let output = containerd.layers(&manifest);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let digest = layer["digest"].as_str().unwrap();
    let path = containerd.path("content/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    let expected = json!({
        "image": "r/i:1", "announced": true, "config_media_type": CONFIG,
        "layers": [{"media_type": "application/wasm", "digest": digest, "size": 4, "title": "a.wasm", "path": path}],
    });
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);
}

/// How a process ended.
struct Ran {
    code: i32,
    stderr: String,
    time: Duration,
    /// Its peak memory, in bytes.
    peak_bytes: u64,
}

/// Runs `command`, and measures it when it is about to end.
#[allow(clippy::zombie_processes, reason = "it is waited for by its pid, as a tracer does")]
fn run_watched(mut command: Command) -> Ran {
    // SAFETY: between fork and exec the closure makes one system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(pid, Signal::SIGTRAP));
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACEEXIT | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let mut signal = None;
    let mut peak_bytes = 0;
    let code = loop {
        ptrace::cont(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceEvent(..) => {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
                peak_bytes = peak.unwrap().parse::<u64>().unwrap() << 10;
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => break code,
            other => panic!("{other:?}"),
        }
    };
    let time = start.elapsed();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Ran { code, stderr, time, peak_bytes }
}

#[test]
fn hostile_images_are_refused_within_a_second_and_64_mebibytes() {
    if !is_root() {
        return;
    }
    let check = |build: &dyn Fn(&Containerd) -> Value, expected: &str| {
        let containerd = Containerd::new();
        containerd.serve(Some(&build(&containerd)));
        // Beside other load it may take longer, but not each time.
        let is_quick = (0..5).any(|_| {
            let Ran { code, stderr, time, peak_bytes } = run_watched(containerd.command());
            println!("{expected}: {time:?}, {} KiB", peak_bytes >> 10);
            assert_eq!(code, 1, "{expected}: {stderr}");
            assert!(stderr.starts_with("skiff: cannot read image `r/i:1`: ") && stderr.contains(expected), "{stderr}");
            assert!(peak_bytes < 64 << 20, "{expected}: {peak_bytes} bytes");
            time < Duration::from_secs(1)
        });
        assert!(is_quick, "{expected}");
    };
    let index = |containerd: &Containerd, manifests: &[Value], salt: &str| {
        containerd.add(INDEX, &json!({"manifests": manifests, "salt": salt}).to_string())
    };
    // Forty different indexes on each of three levels: sixty thousand ways to an image.
    check(
        &|containerd| {
            let mut level: Vec<_> = (0..40).map(|n| index(containerd, &[], &n.to_string())).collect();
            for height in 0..2 {
                level = (0..40).map(|n| index(containerd, &level, &format!("{height} {n}"))).collect();
            }
            index(containerd, &level, "outermost")
        },
        "its indexes name more than 2000 manifests",
    );
    let large = "x".repeat((4 << 20) - 1000);
    check(
        &|containerd| {
            let manifests: Vec<_> = (0..10).map(|n| index(containerd, &[], &format!("{n} {large}"))).collect();
            index(containerd, &manifests, "outermost")
        },
        "its documents have more than 32 MiB in total",
    );
    let digest = format!("sha256:{}", "0".repeat(64));
    let descriptor = json!({"mediaType": MANIFEST, "digest": digest, "size": 1});
    check(
        &|containerd| index(containerd, &vec![descriptor.clone(); 25_000], "many"),
        "a list has more than 1000 entries",
    );
    let annotations: serde_json::Map<_, _> = (0..200_000).map(|n| (n.to_string(), json!(""))).collect();
    check(
        &|containerd| {
            let config = json!({"mediaType": CONFIG, "digest": digest, "size": 1, "annotations": annotations});
            let manifest = json!({"config": config, "layers": []}).to_string();
            let manifest = containerd.add(MANIFEST, &manifest);
            index(
                containerd,
                &[manifest, json!({"mediaType": "x", "digest": format!("sha256:{}", "1".repeat(64)), "size": 1})],
                "",
            )
        },
        "`x` is neither a manifest nor an index",
    );
    check(&|containerd| containerd.add(INDEX, &"[".repeat(4 << 20)), "cannot read `sha256:");
}

#[test]
fn a_containerd_that_is_silent_is_waited_for_within_bounds() {
    if !is_root() {
        return;
    }
    let containerd = Containerd::new();
    containerd.serve(None);
    let child = containerd.start();
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap();
    wait_until("the bounds of the process", || read("status").contains("NoNewPrivs:\t1"));
    assert_eq!(read("oom_score_adj"), "1000\n");
    let limits = read("limits");
    let limit = |name: &str| {
        limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(limit("Max address space"), "Max address space 536870912 536870912 bytes");
    assert_eq!(limit("Max cpu time"), "Max cpu time 10 11 seconds");
    assert_eq!(limit("Max file size"), "Max file size 0 0 bytes");
    assert_eq!(limit("Max open files"), "Max open files 32 32 files");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(sentence(&output).ends_with("does not respond"), "{}", sentence(&output));
}
