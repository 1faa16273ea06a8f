//! `skiff pack` and `skiff inspect` from the outside.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Output;

use crate::common::{hello, sentence, skiff};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A directory with a module and a component.
fn guests() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("app.wasm"), hello()).unwrap();
    let component = r#"(component
        (import "wasi:cli/stdout@0.2.3" (instance))
        (instance $run) (export "wasi:cli/run@0.2.3" (instance $run))
    )"#;
    fs::write(directory.path().join("component.wasm"), wat::parse_str(component).unwrap()).unwrap();
    directory
}

fn pack(directory: &Path, arguments: &[&str]) -> Output {
    let mut all = vec!["pack"];
    all.extend(arguments);
    skiff(&all).current_dir(directory).output().unwrap()
}

/// The files of an archive, each blob compared with its digest.
fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if let Some(digest) = path.strip_prefix("blobs/sha256/") {
            let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, digest);
        }
        files.insert(path, bytes);
    }
    files
}

/// The document that a descriptor points at.
fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
    serde_json::from_slice(blob(files, descriptor)).unwrap()
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let bytes =
        &files[&format!("blobs/sha256/{}", descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())];
    assert_eq!(descriptor["size"], json!(bytes.len()));
    bytes
}

/// The index's entry, the manifest and the configuration of an archive.
fn documents(files: &BTreeMap<String, Vec<u8>>) -> (Value, Value, Value) {
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let entry = index["manifests"][0].clone();
    let manifest = follow(files, &entry);
    let config = follow(files, &manifest["config"]);
    (entry, manifest, config)
}

#[test]
fn an_image_has_the_module_as_its_entrypoint_and_is_the_same_every_time() {
    let directory = guests();
    fs::create_dir(directory.path().join("www")).unwrap();
    fs::write(directory.path().join("www/index.html"), "hi").unwrap();
    let mut arguments = vec!["app.wasm", "-o", "a.tar", "--env", "A=b", "--env", "C=", "--user", "1000:100"];
    arguments.extend(["--add", "www:/srv/www"]);
    let packed = pack(directory.path(), &arguments);
    assert!(packed.status.success(), "{packed:?}");
    let reference = String::from_utf8(packed.stdout).unwrap();
    assert!(reference.starts_with("docker.io/library/app:latest@sha256:"), "{reference}");
    let files = files(&directory.path().join("a.tar"));
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    let (entry, manifest, config) = documents(&files);
    assert_eq!(reference.trim_end().split_once('@').unwrap().1, entry["digest"]);
    assert_eq!(entry["annotations"]["io.containerd.image.name"], "docker.io/library/app:latest");
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "latest");
    assert_eq!(config["os"], "linux");
    assert_eq!(config["config"]["Entrypoint"], json!(["/app.wasm"]));
    assert_eq!(config["config"]["Env"], json!(["A=b", "C="]));
    assert_eq!(config["config"]["User"], "1000:100");
    assert_eq!(config["rootfs"]["diff_ids"], json!([manifest["layers"][0]["digest"]]));
    let mut layer = tar::Archive::new(blob(&files, &manifest["layers"][0]));
    let names: Vec<_> =
        layer.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["app.wasm", "srv", "srv/www", "srv/www/index.html"]);

    let first = fs::read(directory.path().join("a.tar")).unwrap();
    for _ in 0..5 {
        assert!(pack(directory.path(), &arguments).status.success());
        assert!(fs::read(directory.path().join("a.tar")).unwrap() == first);
    }
}

#[test]
fn an_artifact_is_what_the_wasm_working_group_says() {
    let directory = guests();
    for (file, os, component) in [
        ("app.wasm", "wasip1", Value::Null),
        ("component.wasm", "wasip2", json!({"exports": ["wasi:cli/run@0.2.3"], "imports": ["wasi:cli/stdout@0.2.3"]})),
    ] {
        let packed = pack(directory.path(), &[file, "-o", "a.tar", "--kind", "artifact", "--name", "ghcr.io/me/app:1"]);
        assert!(packed.status.success(), "{packed:?}");
        let files = files(&directory.path().join("a.tar"));
        let (entry, manifest, config) = documents(&files);
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "ghcr.io/me/app:1");
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
        let layer = &manifest["layers"][0];
        assert_eq!(layer["mediaType"], "application/wasm");
        assert_eq!(layer["annotations"]["org.opencontainers.image.title"], file);
        assert_eq!((&config["architecture"], &config["os"]), (&json!("wasm"), &json!(os)));
        assert_eq!(config["layerDigests"], json!([layer["digest"]]));
        assert_eq!(config["component"], component);
        assert_eq!(blob(&files, layer), fs::read(directory.path().join(file)).unwrap());
    }
}

#[test]
fn a_layer_has_the_media_type_of_its_kind() {
    let directory = guests();
    for (file, media_type) in [
        ("app.wasm", "application/vnd.wasm.content.layer.v1+wasm"),
        ("component.wasm", "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"),
    ] {
        let packed = pack(
            directory.path(),
            &[file, "-o", "a.tar", "--kind", "layer", "--entrypoint", file, "--entrypoint", "y", "--user", "7"],
        );
        assert!(packed.status.success(), "{packed:?}");
        let (_, manifest, config) = documents(&files(&directory.path().join("a.tar")));
        assert_eq!(manifest["layers"][0]["mediaType"], media_type);
        assert_eq!((&config["os"], &config["architecture"]), (&json!("wasi"), &json!("wasm")));
        assert_eq!(config["rootfs"]["diff_ids"], json!([]));
        assert_eq!(config["config"]["Entrypoint"], json!([file, "y"]));
        assert_eq!(config["config"]["User"], "7");
    }
}

#[test]
fn what_cannot_be_packed_is_refused_and_leaves_no_archive() {
    let directory = guests();
    fs::write(directory.path().join("elf.wasm"), b"\x7fELF").unwrap();
    fs::write(directory.path().join("other.wasm"), other()).unwrap();
    let check = |arguments: &[&str], expected: &str| {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "a.tar"]);
        let output = pack(directory.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(sentence(&output).starts_with(expected), "{}", sentence(&output));
        assert!(!directory.path().join("a.tar").exists());
    };
    check(&["elf.wasm"], "`elf.wasm` is a native program (ELF), not wasm: build it for WASI");
    check(&["absent.wasm"], "cannot read `absent.wasm`: No such file");
    check(&["app.wasm", "--name", "Not A Name"], "`Not A Name` is not an image name");
    check(&["app.wasm", "--kind", "artifact", "--env", "A=b"], "`--env` does not apply to this kind of image");
    check(&["app.wasm", "--kind", "artifact", "--user", "1"], "`--user` does not apply to this kind of image");
    check(
        &["app.wasm", "--entrypoint", "/typo.wasm"],
        "there is no `/typo.wasm` in the image, only `/app.wasm` and what was added: correct `--entrypoint`",
    );
    check(
        &["app.wasm", "--kind", "layer", "--entrypoint", "/typo.wasm"],
        "there is no `/typo.wasm` in the image, only `/app.wasm`: correct `--entrypoint`",
    );
    check(
        &["app.wasm", "--entrypoint", "/app.wasm#gone"],
        "skiff does not run `app.wasm`: it exports no function `gone`; `--force` packs it anyway",
    );
    for kind in ["image", "artifact", "layer"] {
        check(&["other.wasm", "--kind", kind], "skiff does not run `other.wasm`: unknown import `env::log`; `--force`");
    }
    check(&["app.wasm", "--add", "app.wasm:/app.wasm"], "`/app.wasm` is in the image twice");
    check(&["app.wasm", "--add", "app.wasm:/../x"], "`/../x` leads out of the image");
}

/// A command with an import that skiff does not provide.
fn other() -> Vec<u8> {
    wat::parse_str(r#"(module (import "env" "log" (func)) (memory (export "memory") 2) (func (export "_start")))"#)
        .unwrap()
}

#[test]
fn what_does_not_run_is_packed_if_that_is_asked_for() {
    let directory = guests();
    fs::write(directory.path().join("other.wasm"), other()).unwrap();
    for arguments in [&["other.wasm"][..], &["app.wasm", "--entrypoint", "/volume/app.wasm"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "a.tar", "--force"]);
        let packed = pack(directory.path(), &arguments);
        assert!(packed.status.success(), "{packed:?}");
        assert!(!files(&directory.path().join("a.tar")).is_empty());
    }
}

#[test]
fn a_user_is_a_number_because_only_that_can_be_checked() {
    let directory = guests();
    for (user, code) in [("1000", 0), ("0:5", 0), ("nobody", 2), ("1000:", 2), ("", 2), ("-1", 2), ("4294967296", 2)] {
        let packed = pack(directory.path(), &["app.wasm", "-o", "a.tar", &format!("--user={user}")]);
        assert_eq!(packed.status.code(), Some(code), "{user}: {packed:?}");
    }
}

#[test]
fn an_ordinary_image_has_the_list_that_docker_load_reads() {
    let directory = guests();
    let packed = pack(directory.path(), &["app.wasm", "-o", "a.tar", "--name", "me/app:2"]);
    assert!(packed.status.success(), "{packed:?}");
    let packed = files(&directory.path().join("a.tar"));
    // What `docker load` does: `moby/daemon/internal/image/tarexport/load.go`.
    let list: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&packed["manifest.json"]).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0]["RepoTags"], json!(["docker.io/me/app:2"]));
    let config: Value = serde_json::from_slice(&packed[list[0]["Config"].as_str().unwrap()]).unwrap();
    let layers = list[0]["Layers"].as_array().unwrap();
    let digest = |layer: &Value| {
        let digest = Sha256::digest(&packed[layer.as_str().unwrap()]);
        format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    assert_eq!(config["rootfs"]["type"], "layers");
    assert_eq!(config["rootfs"]["diff_ids"], json!(layers.iter().map(digest).collect::<Vec<_>>()));
    // What is no file system cannot be loaded.
    for kind in ["artifact", "layer"] {
        assert!(pack(directory.path(), &["app.wasm", "-o", "a.tar", "--kind", kind]).status.success());
        assert!(!files(&directory.path().join("a.tar")).contains_key("manifest.json"), "{kind}");
    }
}

fn inspect(directory: &Path, file: &str, options: &[&str]) -> Output {
    let mut arguments = vec!["inspect", file];
    arguments.extend(options);
    skiff(&arguments).current_dir(directory).output().unwrap()
}

#[test]
fn inspect_names_what_the_engine_does_not_have() {
    let directory = guests();
    fs::write(directory.path().join("other.wasm"), other()).unwrap();
    let check = |file: &str, kind: &str, entry: &str, runs: bool| {
        let output = inspect(directory.path(), file, &["--json"]);
        assert_eq!(output.status.code(), Some(if runs { 0 } else { 1 }), "{output:?}");
        let report = serde_json::from_slice::<Value>(&output.stdout).unwrap();
        assert_eq!((&report["kind"], &report["entry"], &report["runs"]), (&json!(kind), &json!(entry), &json!(runs)));
        report
    };
    assert_eq!(check("app.wasm", "module", "command", true)["wasi"], json!(["0.1"]));
    assert_eq!(check("component.wasm", "component", "command", true)["wasi"], json!(["0.2.3"]));
    let report = check("other.wasm", "module", "command", false);
    assert_eq!(report["missing"], json!(["unknown import `env::log`"]));
    assert_eq!(report["memories"][0]["initial_bytes"], json!(131_072));
}

#[test]
fn inspect_ends_with_a_code_that_says_whether_skiff_runs_the_file() {
    let directory = guests();
    let write = |name: &str, text: &str| {
        fs::write(directory.path().join(name), wat::parse_str(text).unwrap()).unwrap();
        name.to_owned()
    };
    let library = write("library.wasm", r#"(module (func (export "work")))"#);
    let nothing = write("nothing.wasm", "(component)");
    let browser = write("browser.wasm", r#"(module (import "wbg" "__wbg_alert" (func)) (func (export "f")))"#);
    let hostile = write("hostile.wasm", r#"(module (import "env" "\1b[2J\0a" (func)) (func (export "_start")))"#);
    fs::write(directory.path().join("broken.wasm"), b"\0asm\x01\0\0\0\xff").unwrap();
    for (file, code, expected) in [
        ("app.wasm", 0, "runs      yes\n"),
        (&library, 0, "kind      module, service (one function alone runs as `FILE.wasm#work`)\n"),
        (&nothing, 1, "runs      no: it is neither a command nor an HTTP server, and exports no function\n"),
        (&browser, 1, "runs      no: it was built for JavaScript with wasm-bindgen: build it for `wasm32-wasip1`"),
        (&hostile, 1, "runs      no: unknown import `env::\\u{1b}[2J\\n`\n"),
    ] {
        let output = inspect(directory.path(), file, &[]);
        assert_eq!(output.status.code(), Some(code), "{file}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(expected), "{file}: {text}");
    }
    for (file, code) in [("broken.wasm", 1), ("absent.wasm", 2)] {
        assert_eq!(inspect(directory.path(), file, &[]).status.code(), Some(code), "{file}");
    }
    assert_eq!(inspect(directory.path(), "app.wasm", &["--unknown"]).status.code(), Some(2));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let directory = guests();
    for (file, code) in [("app.wasm", 0), ("absent.wasm", 2)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = skiff(&["inspect", file]);
        let output = child.current_dir(directory.path()).stdout(writer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.is_empty()), (Some(code), code == 0), "{said}");
    }
}

#[test]
fn only_regular_files_of_a_module_s_size_are_looked_into() {
    let directory = guests();
    mkfifo(&directory.path().join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::File::create(directory.path().join("big")).unwrap().set_len(1 << 40).unwrap();
    for (file, expected) in [
        ("fifo", "cannot read `fifo`: it is a pipe, not a regular file"),
        ("/dev/zero", "cannot read `/dev/zero`: it is a device, not a regular file"),
        (".", "cannot read `.`: it is a directory, not a regular file"),
        ("big", "`big` is too big: skiff compiles at most 512 MiB"),
    ] {
        let is_read = file == "big";
        for (command, code) in
            [(&["inspect"][..], if is_read { 1 } else { 2 }), (&["pack", "--output", "image.tar"], 1)]
        {
            let output = skiff(command).arg(file).current_dir(directory.path()).output().unwrap();
            assert_eq!((output.status.code(), sentence(&output).as_str()), (Some(code), expected));
        }
    }
}
