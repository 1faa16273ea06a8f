//! A tree that looks like a node: files of a distribution, programs that stand in for its own, and a CRI.
#![allow(dead_code, reason = "each suite uses its own part")]

mod cri;
pub(crate) mod trees;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The places that do not hold containerd's configuration and differ with every installation.
const NOT_CONFIGURATION: [&str; 7] = ["fake", "usr", "bin", "run", "opt", "var/lib/skiff", "home"];

/// What describes a tree apart from its files.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) version: &'static str,
    pub(crate) unit: &'static str,
    /// The file that containerd reads.
    pub(crate) config: &'static str,
    /// What the file is generated from at each restart.
    pub(crate) template: Option<&'static str>,
    pub(crate) socket: &'static str,
    pub(crate) program: &'static str,
}

/// containerd as its own documents describe it.
pub(crate) const PLAIN: Kind = Kind {
    version: "2.4.2",
    unit: "containerd",
    config: "/etc/containerd/config.toml",
    template: None,
    socket: "/run/containerd/containerd.sock",
    program: "/usr/bin/containerd",
};

/// The result of one run.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The content of a file: its text, or the target of a link, with its mode.
pub(crate) type Files = BTreeMap<PathBuf, (String, u32)>;

/// A node.
pub(crate) struct Node {
    directory: TempDir,
    /// The programs that are installed.
    pub(crate) programs: PathBuf,
}

impl Node {
    /// A node with these files and a running containerd.
    pub(crate) fn new(kind: &Kind, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix("skiff-node-").tempdir().unwrap();
        Self::in_directory(directory, kind, files)
    }

    /// The same in an existing directory.
    pub(crate) fn in_directory(directory: TempDir, kind: &Kind, files: &[(&str, &str)]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the tree is entered with chroot(2): run the tests as root");
        let programs = directory.path().join("fake/programs");
        let node = Self { directory, programs };
        node.add_program("usr/bin/systemctl");
        node.add_program("bin/sh");
        node.add_program(&kind.program[1..]);
        for name in ["containerd-shim-skiff-v1", "skiff"] {
            node.write(&format!("fake/programs/{name}"), name);
        }
        node.add_program("fake/programs/skiff-engine");
        node.write("fake/version", kind.version);
        node.write("fake/unit", kind.unit);
        node.write("fake/config", kind.config);
        if let Some(template) = kind.template {
            node.write("fake/template", template);
        }
        fs::create_dir_all(node.path("var/lib")).unwrap();
        for (path, text) in files {
            node.write(path.trim_start_matches('/'), text);
        }
        node.start_containerd();
        cri::serve(&node.path(&kind.socket[1..]), node.path("fake/reported"));
        node
    }

    /// Makes the CRI report what is configured.
    pub(crate) fn start_containerd(&self) {
        fs::create_dir_all(self.path(&self.read("fake/config")[1..]).parent().unwrap()).unwrap();
        let status =
            Command::new("/usr/sbin/chroot").arg(self.directory.path()).args(["/bin/sh", "-c", "start"]).status();
        assert!(status.unwrap().success());
        fs::remove_file(self.path("fake/restarts")).unwrap();
    }

    /// Replaces the stand-in for containerd by the one that the tests build.
    pub(crate) fn use_real_containerd(&self, program: &str) {
        let tools = std::env::var_os("SKIFF_TOOLS").expect("SKIFF_TOOLS names what `test/tools/build.sh` makes");
        let real = fs::canonicalize(Path::new(&tools).join("containerd")).unwrap();
        copy_program(&real, &self.path(&program[1..]));
    }

    fn add_program(&self, path: &str) {
        let fake = Path::new(env!("CARGO_BIN_EXE_skiff-node")).with_file_name("examples").join("fake-node");
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        copy_program(&fake, &path);
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    /// The command that runs the tool on this node.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff-node"));
        command.arg("--host").arg(self.directory.path()).args(["--timeout", "2"]).args(words).env_clear();
        command.arg("--seen").arg(self.path("fake/seen.json"));
        if matches!(words.first(), Some(&("install" | "keep"))) {
            command.arg("--programs").arg(&self.programs);
        }
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Said {
        said(self.command(words).output().unwrap())
    }

    /// Runs the tool, which must succeed.
    pub(crate) fn succeed(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code, Some(0), "{words:?}: {}", said.stderr);
        said.stderr + &said.stdout
    }

    /// How often containerd was restarted.
    pub(crate) fn restarts(&self) -> usize {
        self.read("fake/restarts").lines().count()
    }

    /// Whether the CRI reports the handler.
    pub(crate) fn is_reported(&self) -> bool {
        self.read("fake/reported").lines().any(|line| line.starts_with("skiff "))
    }

    /// What containerd makes of the file `config`; empty when it refuses the file.
    pub(crate) fn dump(&self, config: &str) -> String {
        let words = ["/usr/bin/containerd", "--config", config, "config", "dump"];
        let output = Command::new("/usr/sbin/chroot").arg(self.directory.path()).args(words).output().unwrap();
        if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { String::new() }
    }

    /// Whether containerd would start now with the default runtime.
    pub(crate) fn has_default_runtime(&self) -> bool {
        self.dump(&self.read("fake/config")).contains("runtimes.runc]")
    }

    /// All files of the tree, except the stand-ins for the node's programs.
    pub(crate) fn all_files(&self) -> Files {
        self.files(&["fake", "usr/bin", "bin", "run"])
    }

    /// containerd's configuration.
    pub(crate) fn configuration(&self) -> Files {
        self.files(&NOT_CONFIGURATION)
    }

    fn files(&self, without: &[&str]) -> Files {
        let mut found = Files::new();
        let mut pending = vec![self.directory.path().to_path_buf()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                let path = entry.path();
                let relative = path.strip_prefix(self.directory.path()).unwrap().to_path_buf();
                if without.iter().any(|prefix| relative.starts_with(prefix)) {
                    continue;
                }
                let metadata = fs::symlink_metadata(&path).unwrap();
                if metadata.file_type().is_socket() {
                    continue;
                }
                let text = if metadata.is_dir() {
                    pending.push(path);
                    "directory".to_owned()
                } else if metadata.is_symlink() {
                    fs::read_link(&path).unwrap().display().to_string()
                } else {
                    String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
                };
                found.insert(relative, (text, metadata.permissions().mode() & 0o7777));
            }
        }
        found
    }

    /// Inode and time of every file, which do not change if nothing is written.
    pub(crate) fn stamps(&self) -> BTreeMap<PathBuf, (u64, i64, i64)> {
        let stamp = |path: &Path| {
            let metadata = fs::symlink_metadata(self.directory.path().join(path)).unwrap();
            (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
        };
        self.all_files().into_keys().map(|path| (path.clone(), stamp(&path))).collect()
    }
}

/// Another process writes the file: a program cannot be executed while a forking child of this process has it open.
fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("--remove-destination").args([from, to]).status().unwrap().success());
}

pub(crate) fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
