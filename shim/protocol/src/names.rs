//! Names that several programs must spell in the same way: programs, paths, annotations.

/// The program that containerd starts for a pod.
pub const SHIM: &str = "containerd-shim-skiff-v1";
/// The program that runs a guest inside its container.
pub const ENGINE: &str = "skiff-engine";
/// The command line: the compiler, and the commands for people.
pub const SKIFF: &str = "skiff";
/// The programs that must be in one directory and from one release.
pub const PROGRAMS: [&str; 3] = [SHIM, ENGINE, SKIFF];

/// The default of the runtime option `CacheDir`: where compiled code is kept.
pub const CACHE_DIR: &str = "/var/lib/skiff/cache";
/// The default of the runtime option `Root`: where the OCI runtime keeps the state of its containers.
pub const RUNTIME_ROOT: &str = "/run/skiff/runc";
/// The file name extension of compiled code in the cache.
pub const CODE_EXTENSION: &str = "cwasm";
/// The file name extension of the sentence with which a module recently failed to compile, in the cache.
pub const FAILURE_EXTENSION: &str = "failed";
/// The directory of containerd's bundles, `NAMESPACE/ID` below it. It is in containerd's state directory.
pub const BUNDLES: &str = "io.containerd.runtime.v2.task";
/// The directory of the sockets through which an OCI runtime passes a terminal.
pub const TERMINALS: &str = "/run/skiff";

/// The domain of the annotations that limit a guest: `limits.skiff.dev/NAME`, or `CONTAINER.limits.skiff.dev/NAME`.
pub const LIMITS_DOMAIN: &str = "limits.skiff.dev";
/// The domain of the annotations about a guest's outgoing requests, which are called in the same way.
pub const HTTP_DOMAIN: &str = "http.skiff.dev";
/// The domain of the annotations about calls of a guest's functions.
pub const CALLS_DOMAIN: &str = "calls.skiff.dev";
/// The domain of the annotations about looks into a container, and about what is kept when its guest traps.
pub const DEBUG_DOMAIN: &str = "debug.skiff.dev";
/// All domains of annotations that containers understand.
pub const ANNOTATION_DOMAINS: [&str; 4] = [LIMITS_DOMAIN, HTTP_DOMAIN, CALLS_DOMAIN, DEBUG_DOMAIN];
