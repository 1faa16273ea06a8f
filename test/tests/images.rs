//! Images: every form that carries wasm, with any platform, and one sentence for each that cannot be run.

use std::fs;
use std::process::Command;

use serde_json::json;
use skiff_test::{Archive, CONFIG, Containerd, File, Image, Job, Layer, Refused, guest, programs, random_name};

const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const WASM: &str = "application/wasm";
const COMPONENT: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
const MODULE: &str = "application/vnd.wasm.content.layer.v1+wasm";

fn bytes_of(name: &str) -> Vec<u8> {
    fs::read(guest(name)).unwrap()
}

fn artifact(layers: Vec<Layer>) -> Image {
    let config = json!({"architecture": "wasm", "os": "wasip1", "layerDigests": []});
    Archive::of_layers(WASM_CONFIG, config, layers).import(Containerd::shared())
}

/// A container of an image whose layers containerd does not unpack.
fn job(image: &Image, entrypoint: &str) -> Job<'static> {
    Containerd::shared().job_of(image).command([entrypoint])
}

/// The refusal is one sentence that names all of `parts`.
fn check_sentence(refused: &Refused, parts: &[&str]) {
    for part in parts {
        assert!(refused.message.contains(part), "no `{part}` in `{refused}`");
    }
    assert!(!refused.message.contains('\n'), "more than one line: `{refused}`");
}

#[test]
fn an_image_runs_whatever_platform_it_names() {
    let containerd = Containerd::shared();
    for (os, architecture) in [
        ("linux", "amd64"),
        ("linux", "wasm"),
        ("wasi", "wasm"),
        ("wasip1", "wasm"),
        ("wasip2", "wasm"),
        ("wasi", "wasm32"),
    ] {
        let mut archive = Archive::ordinary(&[File::program("app.wasm", bytes_of("c-hello"))], &["/app.wasm"]);
        archive.config["os"] = json!(os);
        archive.config["architecture"] = json!(architecture);
        let image = archive.import(containerd);
        assert_eq!(containerd.job_of(&image).run().stdout, "hello\n", "{os}/{architecture}");
    }
}

#[test]
fn an_entry_point_that_is_neither_wasm_nor_executable_is_refused_with_what_it_is() {
    let containerd = Containerd::shared();
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0".to_vec();
    for (file, path, why) in [
        (
            File::text("app.wasm", "(module)"),
            "/app.wasm",
            "is wasm in its text format: skiff runs only the binary format",
        ),
        (File::program("app.wasm", gzip), "/app.wasm", "is compressed with gzip: unpack it first"),
        (File::text("app.wasm", ""), "/app.wasm", "is empty"),
        (File::program("app.wasm", b"hello".to_vec()), "/app.wasm", "is not wasm: it does not begin with `\\0asm`"),
        (File::text("app", "#!/bin/sh\n"), "/app", "is neither wasm nor executable: its mode is 0644"),
    ] {
        let image = Archive::ordinary(&[file], &[path]).import(containerd);
        let refused = containerd.job_of(&image).refused();
        check_sentence(&refused, &[&format!("`{path}` {why}")]);
    }
}

#[test]
fn an_image_of_a_wasm_platform_runs_by_ctr() {
    let containerd = Containerd::shared();
    let archive = containerd.directory().join("wasi.tar");
    let reference = "skiff.test/wasi:1";
    pack("c-hello", &["--platform", "wasi/wasm"], reference, &archive);
    let image = containerd.import(&archive, reference);
    let said = containerd.ctr_run(&image, &["--platform", "wasi/wasm"], &[]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "hello\n"), "{said:?}");
}

fn pack(name: &str, options: &[&str], reference: &str, archive: &std::path::Path) {
    let output = Command::new(programs().join("skiff"))
        .args(["pack", "--name", reference, "--output"])
        .arg(archive)
        .args(options)
        .arg(guest(name))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_skiff_pack_makes_runs_in_every_kind() {
    let containerd = Containerd::shared();
    for (name, kind, greeting) in [
        ("c-hello", "artifact", "hello\n"),
        ("c-hello", "layer", "hello\n"),
        ("rust-p2-hello", "artifact", "hello from WASI 0.2\n"),
        ("rust-p2-hello", "layer", "hello from WASI 0.2\n"),
    ] {
        let reference = format!("skiff.test/{}:1", random_name("packed"));
        let archive = containerd.directory().join(random_name("archive"));
        pack(name, &["--kind", kind], &reference, &archive);
        let path = archive.to_string_lossy();
        let said = containerd.ctr(["images", "import", "--local", "--all-platforms", "--no-unpack", &path]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let image = containerd.image(&reference);
        assert_eq!(job(&image, &format!("/{name}.wasm")).run().stdout, greeting, "{name} as {kind}");
    }
}

#[test]
fn each_media_type_of_a_wasm_layer_is_known() {
    for media_type in [WASM, COMPONENT, MODULE] {
        let layer = Layer::new(media_type, bytes_of("c-hello"), Some("hello.wasm"));
        assert_eq!(job(&artifact(vec![layer.clone()]), "/hello.wasm").run().stdout, "hello\n", "{media_type}");
        let config = json!({"architecture": "wasm", "os": "wasi", "rootfs": {"type": "layers", "diff_ids": []}});
        let image = Archive::of_layers(CONFIG, config, vec![layer]).import(Containerd::shared());
        assert_eq!(job(&image, "hello.wasm").run().stdout, "hello\n", "{media_type} with an ordinary configuration");
    }
}

#[test]
fn the_entrypoint_names_the_layer() {
    let layers = vec![
        Layer::new(WASM, bytes_of("c-hello"), Some("hello.wasm")),
        Layer::new(WASM, bytes_of("c-exit"), Some("exit.wasm")),
    ];
    let image = artifact(layers);
    assert_eq!(job(&image, "/hello.wasm").args(["args", "x"]).run().stdout, "/hello.wasm\nargs\nx\n");
    assert_eq!(job(&image, "exit.wasm").args(["6"]).run().code, 6);
    check_sentence(
        &job(&image, "/other.wasm").refused(),
        &["`other.wasm`", "`hello.wasm`", "`exit.wasm`", &image.name],
    );
    let untitled = artifact(vec![Layer::new(WASM, bytes_of("c-hello"), None)]);
    assert_eq!(job(&untitled, "/whatever").run().stdout, "hello\n");
    let library = artifact(vec![Layer::new(MODULE, bytes_of("c-reactor"), Some("lib.wasm"))]);
    assert_eq!(job(&library, "/lib.wasm#greet").run().stdout, "hello from greet\n");
}

#[test]
fn an_image_that_announces_wasm_and_cannot_be_read_is_an_error() {
    let containerd = Containerd::shared();
    let layer = |name: &str| Layer::new(WASM, bytes_of(name), Some("app.wasm"));
    let none = artifact(vec![]);
    check_sentence(&job(&none, "/app.wasm").refused(), &[&none.name, "no wasm layer"]);
    // Contents of its own, so that no other test needs the blobs.
    let mut changed = layer("c-hello");
    changed.bytes.extend(custom_section("changed"));
    let image = artifact(vec![changed]);
    let blob = containerd.blob(&image.layers[0]);
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    check_sentence(&job(&image, "/app.wasm").refused(), &["/app.wasm", &image.layers[0]["sha256:".len()..], "digest"]);
    fs::remove_file(&blob).unwrap();
    check_sentence(&job(&image, "/app.wasm").refused(), &[&image.layers[0], "not in containerd's content store"]);
    fs::write(containerd.blob(&none.manifest), "{}").unwrap();
    check_sentence(&job(&none, "/app.wasm").refused(), &[&none.manifest, "does not match its digest"]);
}

/// A section that changes only a module's digest.
fn custom_section(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[0, length + 1, length], name.as_bytes()].concat()
}

#[test]
fn native_code_in_a_wasm_layer_is_refused() {
    let native = fs::read(skiff_test::tools().join("hello")).unwrap();
    let image = artifact(vec![Layer::new(WASM, native, Some("app.wasm"))]);
    check_sentence(&job(&image, "/app.wasm").refused(), &["/app.wasm", "ELF"]);
}

#[test]
fn compiled_code_in_an_image_is_never_taken() {
    let wasm = fs::File::open(guest("c-hello")).unwrap();
    let compiled = Command::new(programs().join("skiff")).arg("compile").stdin(wasm).output().unwrap();
    assert!(compiled.status.success());
    let image = artifact(vec![Layer::new(WASM, compiled.stdout.clone(), Some("app.wasm"))]);
    check_sentence(&job(&image, "/app.wasm").refused(), &["/app.wasm"]);
    // As a file it is a program that the kernel cannot run.
    let containerd = Containerd::shared();
    let image = Image::of_wasm(containerd, compiled.stdout);
    assert!(containerd.job_of(&image).try_start().map_or(true, |container| container.wait() != 0));
}

/// A module that cannot be run, and what the message contains besides its name.
fn check_refused(what: &str, wasm: Vec<u8>, parts: &[&str]) {
    let containerd = Containerd::shared();
    let image = Image::of_wasm(containerd, wasm);
    match containerd.job_of(&image).try_start() {
        Ok(_) => panic!("{what}: it started"),
        Err(refused) => check_sentence(&refused, &[&["/app.wasm"], parts].concat()),
    }
}

fn text(module: &str) -> Vec<u8> {
    wat::parse_str(module).unwrap()
}

#[test]
fn broken_modules_are_refused_with_a_sentence() {
    let whole = bytes_of("c-hello");
    check_refused("truncated", whole[..whole.len() / 2].to_vec(), &["unexpected end"]);
    check_refused("the magic number alone", b"\0asm".to_vec(), &[]);
    check_refused("an unknown version", b"\0asm\x63\0\0\0".to_vec(), &["version"]);
    let mut corrupt = whole.clone();
    corrupt[8..40].fill(0xff);
    check_refused("corrupt", corrupt, &[]);
    check_refused(
        "ill-typed",
        [b"\0asm\x01\0\0\0", &[1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0, 10, 5, 1, 3, 0, 0x6a, 0x0b][..]].concat(),
        &["type mismatch"],
    );
}

#[test]
fn imports_that_are_missing_or_of_the_wrong_kind_are_named() {
    let start = "(func (export \"_start\"))";
    check_refused("unknown", text(&format!("(module (import \"env\" \"nope\" (func)) {start})")), &["`env::nope`"]);
    check_refused(
        "unknown function of WASI",
        text(&format!("(module (import \"wasi_snapshot_preview1\" \"fd_fly\" (func)) {start})")),
        &["wasi_snapshot_preview1", "fd_fly"],
    );
    check_refused(
        "wrong kind",
        text(&format!("(module (import \"wasi_snapshot_preview1\" \"fd_write\" (global i32)) {start})")),
        &["fd_write"],
    );
    check_refused(
        "wrong type",
        text(&format!("(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i64))) {start})")),
        &["fd_write"],
    );
    check_refused(
        "unknown interface of a component",
        text("(component (import \"my:own/interface@1.0.0\" (instance (export \"f\" (func)))))"),
        &["my:own/interface@1.0.0"],
    );
}

#[test]
fn exports_that_are_missing_or_of_the_wrong_kind_are_named() {
    check_refused("no entry", text("(module)"), &["`_start`"]);
    check_refused("entry is a memory", text("(module (memory (export \"_start\") 1))"), &["`_start`", "memory"]);
    check_refused(
        "entry with parameters",
        text("(module (func (export \"_start\") (param i32)))"),
        &["`_start`", "parameter"],
    );
    check_refused("component without exports", text("(component)"), &["wasi:cli/run", "wasi:http/incoming-handler"]);
    let containerd = Containerd::shared();
    let refused = containerd.job("c-reactor").command(["/c-reactor.wasm#nothing"]).refused();
    check_sentence(&refused, &["/c-reactor.wasm", "`nothing`"]);
    let refused = containerd.job("c-reactor").command(["/c-reactor.wasm#add"]).refused();
    check_sentence(&refused, &["`add`", "2 parameters"]);
}

#[test]
fn memory_that_is_too_big_from_the_start_fails_with_both_numbers() {
    let containerd = Containerd::shared();
    let image = Image::of_wasm(containerd, text("(module (memory 4096) (func (export \"_start\")))"));
    let refused = containerd.job_of(&image).memory(64 << 20).refused();
    check_sentence(&refused, &["/app.wasm", "268435456", "67108864"]);
}

#[test]
fn a_file_that_is_neither_wasm_nor_a_program_fails_as_without_skiff() {
    let containerd = Containerd::shared();
    for bytes in [b"(module)".to_vec(), b"hello".to_vec(), Vec::new()] {
        let image = Image::of_wasm(containerd, bytes);
        let refused = containerd.job_of(&image).try_start().map(|container| container.wait());
        assert!(!matches!(refused, Ok(0)), "{refused:?}");
    }
}
