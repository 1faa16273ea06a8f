//! Pods through the CRI of a real containerd, with `crictl` and CNI: a node of a cluster without the cluster.
//!
//! containerd runs in a network namespace of its own, so bridges and addresses do not collide. The cgroups of its pods are below
//! one that carries the node's random token.

mod pod;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::image::{self, Archive};
use crate::machine::{cgroups_with, clean_up, files_below, mounts_with};
use crate::names::token;
use crate::places::{Sandboxer, guest, launcher, programs, sandboxer, search_path, shared_code, tools};
use crate::process::{is_alive, processes_touching, signal};
use crate::wait::until;

pub use pod::{Pod, merge, pid_in};

/// containerd's namespace of everything that comes through the CRI.
const NAMESPACE: &str = "k8s.io";
/// The sandbox image, for pods of the node's default runtime.
const PAUSE: &str = "localhost/pause:1";
/// An image with busybox.
pub const BUSYBOX: &str = "localhost/busybox:1";
const START_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const LEFT_LIMIT: Duration = Duration::from_secs(8);
const LOG_LINES: usize = 80;

/// A node: a containerd with its CRI.
pub struct Node {
    /// The random word in the names of everything.
    pub token: String,
    /// The directory that holds everything.
    pub dir: PathBuf,
    containerd: Option<Child>,
    sandboxer: Sandboxer,
    /// The sockets of its pods' shims.
    sockets: Mutex<Vec<PathBuf>>,
}

impl Node {
    /// Starts a node that has the images of `guests`, each as `localhost/GUEST:1`, and busybox.
    pub fn start(guests: &[&str]) -> Self {
        let node = Self::without_pause_image(sandboxer(), guests);
        node.import(PAUSE, "pause", fs::read(tools().join("pause")).unwrap());
        node
    }

    /// Starts one whose runtime `skiff` makes sandboxes by itself. It has no pause image.
    pub fn of_the_sandbox_api(guests: &[&str]) -> Self {
        Self::without_pause_image(Sandboxer::Shim, guests)
    }

    fn without_pause_image(sandboxer: Sandboxer, guests: &[&str]) -> Self {
        let token = token();
        let dir = std::env::temp_dir().join(format!("skiff-{token}"));
        fs::create_dir_all(dir.join("cni")).unwrap();
        let mut node = Self { token, dir, containerd: None, sandboxer, sockets: Mutex::default() };
        node.write_configuration();
        node.start_containerd();
        node.import(BUSYBOX, "busybox", fs::read(tools().join("busybox")).unwrap());
        for name in guests {
            node.import(&image_of(name), "app.wasm", fs::read(guest(name)).unwrap());
        }
        node
    }

    fn write_configuration(&self) {
        let dir = self.dir.display();
        let cri = "plugins.'io.containerd.cri.v1.runtime'";
        let configuration = format!(
            "version = 3\nroot = '{dir}/root'\nstate = '{dir}/state'\n\
             [grpc]\naddress = '{dir}/c.sock'\n[ttrpc]\naddress = '{dir}/c.sock.ttrpc'\n\
             [plugins.'io.containerd.internal.v1.opt']\npath = '{dir}/opt'\n\
             [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE}'\n\
             [{cri}]\nrestrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
             [{cri}.containerd]\ndefault_runtime_name = 'runc'\n\
             [{cri}.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
             [{cri}.containerd.runtimes.skiff]\nruntime_type = 'io.containerd.skiff.v1'\n{}\
             pod_annotations = ['limits.skiff.dev/*', '*.limits.skiff.dev/*', 'http.skiff.dev/*', '*.http.skiff.dev/*', \
             'calls.skiff.dev/*', '*.calls.skiff.dev/*', 'debug.skiff.dev/*', '*.debug.skiff.dev/*']\n\
             [{cri}.containerd.runtimes.skiff.options]\nRoot = '{dir}/runc'\nCacheDir = '{}'\n{}\
             [{cri}.containerd.runtimes.skiff-plain]\nruntime_type = 'io.containerd.skiff.v1'\n\
             [{cri}.cni]\nbin_dirs = ['{}']\nconf_dir = '{dir}/cni'\n",
            self.sandboxer.configuration(),
            shared_code().display(),
            launcher(),
            tools().display(),
        );
        fs::write(self.dir.join("containerd.toml"), configuration).unwrap();
        fs::write(self.dir.join("crictl.yaml"), format!("runtime-endpoint: unix://{dir}/c.sock\ntimeout: 30\n"))
            .unwrap();
        let network = json!({"cniVersion": "1.0.0", "name": self.token, "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": format!("{dir}/addresses"), "ranges": [[{"subnet": "10.88.0.0/16"}]],
                     "routes": [{"dst": "0.0.0.0/0"}]},
        }]});
        fs::write(self.dir.join("cni/10-bridge.conflist"), network.to_string()).unwrap();
    }

    /// Starts containerd in new namespaces, or in those of an earlier containerd whose pods still run. Directories that no
    /// option can move are mounts of the node's own there.
    fn start_containerd(&mut self) {
        let log = File::options().append(true).create(true).open(self.dir.join("containerd.log")).unwrap();
        let words = self.keeper().map(|pid| vec!["nsenter".into(), "--target".into(), pid.to_string()]);
        let is_new = words.is_none();
        let mut script = String::new();
        if is_new {
            script += "mount --make-rprivate / && ip link set lo up &&";
            for place in ["/run/skiff", "/var/lib/skiff", "/var/lib/cni"] {
                let own = self.dir.join(&place[1..]);
                fs::create_dir_all(&own).unwrap();
                script += &format!(" mkdir -p {place} && mount --bind {} {place} &&", own.display());
            }
        }
        script += " exec \"$0\" --config \"$1\"";
        let mut command = Command::new(tools().join("busybox"));
        command.args(words.unwrap_or_else(|| vec!["unshare".into()])).args(["--net", "--mount"]);
        command.arg(tools().join("busybox")).args(["sh", "-c", &script]);
        command.arg(tools().join("containerd")).arg(self.dir.join("containerd.toml"));
        command.env("PATH", search_path(programs())).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
        self.containerd = Some(command.spawn().unwrap());
        let ready = || self.crictl(&["info", "-q"]).status.success();
        assert!(until(START_LIMIT, ready), "containerd did not start:\n{}", self.log());
    }

    /// A process that holds the node's namespaces while containerd is down.
    fn keeper(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.join("keeper")).ok()?;
        text.trim().parse().ok().filter(|pid| is_alive(*pid))
    }

    /// Kills containerd and starts it again on the same state. Pods keep running.
    pub fn restart_containerd(&mut self, while_down: impl FnOnce(&Self)) {
        self.restart_containerd_after(Signal::SIGKILL, while_down);
    }

    /// Ends containerd with `by` and starts it again.
    pub fn restart_containerd_after(&mut self, by: Signal, while_down: impl FnOnce(&Self)) {
        let mut keeper = self.inside(&tools().join("busybox"), &["sleep", "1000"]).spawn().unwrap();
        fs::write(self.dir.join("keeper"), keeper.id().to_string()).unwrap();
        assert!(until(REQUEST_LIMIT, || fs::read_link(format!("/proc/{}/ns/net", keeper.id())).ok() == self.network()));
        let mut containerd = self.containerd.take().unwrap();
        signal(containerd.id(), by).unwrap();
        containerd.wait().unwrap();
        while_down(self);
        self.start_containerd();
        keeper.kill().unwrap();
        keeper.wait().unwrap();
    }

    fn network(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/ns/net", self.pid())).ok()
    }

    /// A process in the node's network namespace: containerd's, or its stand-in's.
    fn pid(&self) -> u32 {
        self.containerd.as_ref().map(Child::id).or_else(|| self.keeper()).unwrap()
    }

    /// A command in the node's namespaces.
    pub fn inside(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(tools().join("busybox"));
        let pid = self.pid().to_string();
        command.args(["nsenter", "--net", "--mount", "--target", &pid, "--"]).arg(program).args(args);
        command
    }

    /// Imports an image with one file, which is its entry point.
    pub fn import(&self, reference: &str, name: &str, content: Vec<u8>) {
        let files = [image::File::program(name, content)];
        self.import_archive(reference, &Archive::ordinary(&files, &[&format!("/{name}")]));
    }

    /// Imports the image of a guest with this stop signal.
    pub fn import_stopped_by(&self, reference: &str, name: &str, stop_signal: &str) {
        let files = [image::File::program("app.wasm", fs::read(guest(name)).unwrap())];
        self.import_archive(reference, &Archive::ordinary(&files, &["/app.wasm"]).stopped_by(stop_signal));
    }

    fn import_archive(&self, reference: &str, image: &Archive) {
        let archive = self.dir.join("image.tar");
        fs::write(&archive, image.pack(reference)).unwrap();
        let mut command = Command::new(tools().join("ctr"));
        command.arg("--address").arg(self.dir.join("c.sock")).args([
            "--namespace",
            NAMESPACE,
            "images",
            "import",
            "--local",
        ]);
        let output = command.arg(&archive).output().unwrap();
        assert!(output.status.success(), "`ctr images import`: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs `crictl`.
    pub fn crictl(&self, args: &[&str]) -> Output {
        self.crictl_command(args).output().unwrap()
    }

    /// `crictl` with these arguments, to be run.
    pub fn crictl_command(&self, args: &[&str]) -> Command {
        let config = self.dir.join("crictl.yaml");
        let args = [&["--config", config.to_str().unwrap()], args].concat();
        self.inside(&tools().join("crictl"), &args)
    }

    /// Runs `crictl` and returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn ask(&self, args: &[&str]) -> String {
        let output = self.crictl(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`crictl {}`: {said}\n{}", args.join(" "), self.log());
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    }

    /// Runs `crictl` and returns its output as JSON.
    pub fn ask_json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ask(args)).unwrap()
    }

    /// The description of a pod.
    pub fn pod(&self, name: &str) -> Value {
        let logs = self.dir.join("logs").join(name);
        fs::create_dir_all(&logs).unwrap();
        json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("{name}-{}", self.token), "attempt": 0},
            "hostname": name, "log_directory": logs,
            "linux": {
                "cgroup_parent": format!("{}/{name}", self.cgroup()),
                "security_context": {"namespace_options": {"network": 0, "pid": 1, "ipc": 0}},
            },
        })
    }

    /// The parent of all pods' cgroups.
    fn cgroup(&self) -> String {
        format!("/skiff-test-{}", self.token)
    }

    /// Runs a pod with the runtime `skiff`.
    ///
    /// # Panics
    /// When the pod does not start.
    pub fn run_pod(&self, pod: &Value) -> Pod<'_> {
        self.try_pod("skiff", pod).unwrap_or_else(|said| panic!("no pod: {said}\n{}", self.log()))
    }

    /// Runs a pod with the runtime `handler`: `skiff`, or `skiff-plain` which has no options.
    ///
    /// # Errors
    /// The message of `crictl`.
    pub fn try_pod(&self, handler: &str, pod: &Value) -> Result<Pod<'_>, String> {
        let config = self.config_of(pod);
        fs::write(&config, pod.to_string()).unwrap();
        let output = self.crictl(&["runp", "--runtime", handler, &config]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let id = String::from_utf8(output.stdout).unwrap().trim().to_string();
        let pod = self.found_pod(&id, pod);
        self.sockets.lock().unwrap().push(pod.socket());
        Ok(pod)
    }

    /// The pod `id` of this description, which has run since before containerd was restarted.
    pub fn found_pod(&self, id: &str, pod: &Value) -> Pod<'_> {
        Pod { id: id.into(), config: self.config_of(pod), description: pod.clone(), node: self }
    }

    /// The file with a pod's description.
    fn config_of(&self, pod: &Value) -> String {
        let name = pod["metadata"]["name"].as_str().unwrap();
        self.dir.join(format!("{name}.json")).to_str().expect("temporary paths are UTF-8").into()
    }

    /// The last lines of containerd's log, which has the shims' as well.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("loading plugin")).collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Sends a request from the node to a pod's HTTP server and returns the body of the response.
    ///
    /// # Errors
    /// When there is no response.
    pub fn get(&self, address: &str, path: &str) -> std::io::Result<String> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid()))?;
        let address: SocketAddr = format!("{address}:8080").parse().unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nhost: pod\r\n\r\n");
        // A thread of its own, because it stays in that namespace.
        let ask = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let mut stream = TcpStream::connect_timeout(&address, REQUEST_LIMIT)?;
            stream.set_read_timeout(Some(REQUEST_LIMIT))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer: std::io::Result<String> = std::thread::spawn(ask).join().unwrap();
        Ok(answer?.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default())
    }

    /// Panics when something of any pod is left on the node.
    pub fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        until(LEFT_LIMIT, || {
            left = self.leftovers();
            left.is_empty()
        });
        assert!(left.is_empty(), "left behind:\n  {}\n{}", left.join("\n  "), self.log());
    }

    /// Everything that is left of pods.
    pub fn leftovers(&self) -> Vec<String> {
        let own = self.pid();
        let processes = processes_touching(&self.token).into_iter().filter(|(pid, _)| *pid != own);
        let mut left: Vec<String> = processes.map(|(pid, what)| format!("process {pid}: {what}")).collect();
        let mounts = mounts_with(&own.to_string(), &self.token);
        left.extend(mounts.into_iter().map(|path| format!("mount {}", path.display())));
        let sockets = self.sockets.lock().unwrap();
        left.extend(sockets.iter().filter(|path| path.exists()).map(|path| format!("socket {}", path.display())));
        // The kubelet makes and removes the pods' own cgroups.
        let is_container = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() == 64);
        left.extend(
            cgroups_with(&self.token).into_iter().filter(is_container).map(|path| format!("cgroup {}", path.display())),
        );
        for place in [
            "runc",
            "state/io.containerd.runtime.v2.task",
            "state/io.containerd.sandbox.controller.v1.shim",
            "root/io.containerd.sandbox.controller.v1.shim",
            "state/io.containerd.grpc.v1.cri",
            "addresses",
            "run/skiff",
            "var/lib/cni/results",
        ] {
            let files = files_below(&self.dir.join(place)).into_iter();
            let files =
                files.filter(|path| !path.ends_with("lock") && !path.to_string_lossy().contains("last_reserved_ip"));
            left.extend(files.map(|path| format!("file {}", path.display())));
        }
        left
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", self.log());
        }
        if let Some(mut containerd) = self.containerd.take() {
            containerd.kill().ok();
            containerd.wait().ok();
        }
        clean_up(&self.token);
        for socket in self.sockets.lock().unwrap().iter() {
            fs::remove_file(socket).ok();
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// The image of a guest.
pub fn image_of(guest: &str) -> String {
    format!("localhost/{guest}:1")
}
