//! The pod's namespaces, held by the shim's main thread instead of a pause process.
//!
//! `/proc/PID/ns/*` and `/proc/PID/net` of a process are those of its main thread. So the main thread only joins and leaves
//! namespaces on request. Everything else runs on other threads, in the node's namespaces.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sched::{CloneFlags, setns, unshare};
use skiff_linux::standin;
use tokio::sync::oneshot;

use crate::spec::sandbox::SandboxNamespaces;

/// What the sandbox's stand-in is called.
const STAND_IN: &CStr = c"skiff-sandbox";

enum Job {
    Enter(SandboxNamespaces, oneshot::Sender<io::Result<()>>),
    StandIn(oneshot::Sender<io::Result<i32>>),
    Leave(oneshot::Sender<io::Result<()>>),
}

/// Sends jobs to the main thread.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    jobs: Sender<Job>,
}

/// The main thread's end.
pub(crate) struct Jobs(Receiver<Job>);

/// Makes a holder and the main thread's end of it.
pub(crate) fn holder() -> (Holder, Jobs) {
    let (jobs, receiver) = channel();
    (Holder { jobs }, Jobs(receiver))
}

impl Holder {
    /// Makes the main thread enter the sandbox's namespaces.
    pub(crate) async fn enter(&self, namespaces: SandboxNamespaces) -> io::Result<()> {
        self.run(|done| Job::Enter(namespaces, done)).await
    }

    /// Makes the main thread start a stand-in in the sandbox's namespaces, and returns its pid.
    pub(crate) async fn stand_in(&self) -> io::Result<i32> {
        self.run(Job::StandIn).await
    }

    /// Makes the main thread return to the node's namespaces, which ends the sandbox's own.
    pub(crate) async fn leave(&self) -> io::Result<()> {
        self.run(Job::Leave).await
    }

    async fn run<T>(&self, job: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Job) -> io::Result<T> {
        let gone = || io::Error::other("the main thread has ended");
        let (done, result) = oneshot::channel();
        self.jobs.send(job(done)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

impl Jobs {
    /// Does the jobs on the calling thread, which must be the main thread, until every holder is gone.
    pub(crate) fn serve(self) {
        let mut origin = None;
        while let Ok(job) = self.0.recv() {
            // The caller may be gone; the job is done anyway.
            match job {
                Job::Enter(namespaces, done) => drop(done.send(enter(&namespaces, &mut origin))),
                Job::StandIn(done) => drop(done.send(standin::start(STAND_IN))),
                Job::Leave(done) => drop(done.send(leave(&mut origin))),
            }
        }
    }
}

/// The node's namespaces, to which the thread returns.
struct Origin {
    network: File,
    ipc: File,
    uts: File,
}

impl Origin {
    fn open() -> io::Result<Self> {
        let open = |name: &str| File::open(Path::new("/proc/thread-self/ns").join(name));
        Ok(Self { network: open("net")?, ipc: open("ipc")?, uts: open("uts")? })
    }
}

fn enter(namespaces: &SandboxNamespaces, origin: &mut Option<Origin>) -> io::Result<()> {
    if origin.is_some() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the shim already holds a sandbox's namespaces"));
    }
    *origin = Some(Origin::open()?);
    let entered = try_enter(namespaces);
    if entered.is_err() {
        leave(origin)?;
    }
    entered
}

fn try_enter(namespaces: &SandboxNamespaces) -> io::Result<()> {
    if let Some(path) = &namespaces.network {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("network namespace `{}`: {error}", path.display()));
        setns(File::open(path).map_err(named)?, CloneFlags::CLONE_NEWNET).map_err(|error| named(error.into()))?;
    }
    let mut new = CloneFlags::empty();
    new.set(CloneFlags::CLONE_NEWIPC, namespaces.new_ipc);
    new.set(CloneFlags::CLONE_NEWUTS, namespaces.new_uts);
    unshare(new)?;
    if let (true, Some(name)) = (namespaces.new_uts, &namespaces.hostname) {
        nix::unistd::sethostname(name)?;
    }
    for (name, value) in &namespaces.sysctls {
        set_sysctl(name, value)?;
    }
    Ok(())
}

fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, format!("sysctl `{name}`: {why}"));
    if name.contains("..") {
        return Err(wrong("this is not the name of a sysctl".into()));
    }
    fs::write(Path::new("/proc/sys").join(name.replace('.', "/")), value).map_err(|error| wrong(error.to_string()))
}

fn leave(origin: &mut Option<Origin>) -> io::Result<()> {
    let Some(node) = origin.take() else { return Ok(()) };
    setns(node.network, CloneFlags::CLONE_NEWNET)?;
    setns(node.ipc, CloneFlags::CLONE_NEWIPC)?;
    setns(node.uts, CloneFlags::CLONE_NEWUTS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn namespace(name: &str) -> PathBuf {
        fs::read_link(Path::new("/proc/thread-self/ns").join(name)).unwrap()
    }

    #[test]
    fn a_thread_enters_and_leaves() {
        let before = (namespace("uts"), namespace("ipc"), namespace("net"));
        let mut origin = None;
        let wanted = SandboxNamespaces {
            new_ipc: true,
            new_uts: true,
            hostname: Some("pod-1".into()),
            sysctls: vec![("kernel.msgmax".into(), "4096".into())],
            ..SandboxNamespaces::default()
        };
        enter(&wanted, &mut origin).unwrap();
        assert_ne!(namespace("uts"), before.0);
        assert_eq!(nix::unistd::gethostname().unwrap(), "pod-1");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap().trim(), "4096");
        assert!(enter(&wanted, &mut origin).is_err(), "one sandbox per shim");
        leave(&mut origin).unwrap();
        assert_eq!((namespace("uts"), namespace("ipc"), namespace("net")), before);
    }

    #[test]
    fn a_failure_leaves_the_thread_where_it_was() {
        let before = namespace("uts");
        let mut origin = None;
        let wanted = SandboxNamespaces {
            new_uts: true,
            sysctls: vec![("kernel.no_such_thing".into(), "1".into())],
            ..SandboxNamespaces::default()
        };
        let error = enter(&wanted, &mut origin).unwrap_err().to_string();
        assert!(error.contains("kernel.no_such_thing"), "{error}");
        assert_eq!(namespace("uts"), before);
    }
}
