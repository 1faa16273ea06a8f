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
    let arguments = ["app.wasm", "-o", "a.tar", "--env", "A=b", "--env", "C=", "--add", "www:/srv/www"];
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
            &[file, "-o", "a.tar", "--kind", "layer", "--entrypoint", "/x", "--entrypoint", "y"],
        );
        assert!(packed.status.success(), "{packed:?}");
        let (_, manifest, config) = documents(&files(&directory.path().join("a.tar")));
        assert_eq!(manifest["layers"][0]["mediaType"], media_type);
        assert_eq!((&config["os"], &config["architecture"]), (&json!("wasi"), &json!("wasm")));
        assert_eq!(config["rootfs"]["diff_ids"], json!([]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/x", "y"]));
    }
}

#[test]
fn what_cannot_be_packed_is_refused_and_leaves_no_archive() {
    let directory = guests();
    fs::write(directory.path().join("elf.wasm"), b"\x7fELF").unwrap();
    let check = |arguments: &[&str], expected: &str| {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "a.tar"]);
        let output = pack(directory.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(sentence(&output).starts_with(expected), "{}", sentence(&output));
        assert!(!directory.path().join("a.tar").exists());
    };
    check(&["elf.wasm"], "`elf.wasm` is native or precompiled code (ELF)");
    check(&["absent.wasm"], "cannot read `absent.wasm`: No such file");
    check(&["app.wasm", "--name", "Not A Name"], "`Not A Name` is not an image name");
    check(&["app.wasm", "--kind", "artifact", "--env", "A=b"], "`--env` does not apply to this kind of image");
    check(&["app.wasm", "--add", "app.wasm:/app.wasm"], "`/app.wasm` is in the image twice");
    check(&["app.wasm", "--add", "app.wasm:/../x"], "`/../x` leads out of the image");
}

#[test]
fn inspect_names_what_the_engine_does_not_have() {
    let directory = guests();
    let module = wat::parse_str(r#"(module (import "env" "log" (func)) (memory (export "memory") 2))"#).unwrap();
    fs::write(directory.path().join("other.wasm"), module).unwrap();
    let inspect = |file: &str| {
        let output = skiff(&["inspect", "--json", file]).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let report = inspect("app.wasm");
    assert_eq!(
        (&report["kind"], &report["entry"], &report["runs"]),
        (&json!("module"), &json!("command"), &json!(true))
    );
    assert_eq!(report["wasi"], json!(["0.1"]));
    let report = inspect("component.wasm");
    assert_eq!(
        (&report["kind"], &report["entry"], &report["runs"]),
        (&json!("component"), &json!("command"), &json!(true))
    );
    assert_eq!(report["wasi"], json!(["0.2.3"]));
    let report = inspect("other.wasm");
    assert_eq!((&report["entry"], &report["runs"]), (&json!("reactor"), &json!(false)));
    assert_eq!(report["missing"], json!(["unknown import `env::log`"]));
    assert_eq!(report["memories"][0]["initial_bytes"], json!(131_072));
}

#[test]
fn only_regular_files_of_a_module_s_size_are_looked_into() {
    let directory = guests();
    mkfifo(&directory.path().join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::File::create(directory.path().join("big")).unwrap().set_len(1 << 40).unwrap();
    for command in [&["inspect"][..], &["pack", "--output", "image.tar"]] {
        for (file, expected) in [
            ("fifo", "cannot read `fifo`: it is a pipe, not a regular file"),
            ("/dev/zero", "cannot read `/dev/zero`: it is a device, not a regular file"),
            (".", "cannot read `.`: it is a directory, not a regular file"),
            ("big", "`big` is too big: skiff compiles at most 512 MiB"),
        ] {
            let output = skiff(command).arg(file).current_dir(directory.path()).output().unwrap();
            assert_eq!((output.status.code(), sentence(&output).as_str()), (Some(1), expected));
        }
    }
}
