//! Guests in five languages for three versions of WASI, under a real containerd: what they receive, what they print, how they
//! end, and what they serve.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use skiff_test::{Connection, Container, Containerd, free_port, get, request, serving, until};

fn check(guest: &str, args: &[&str], code: u32, stdout: &str) {
    let outcome = Containerd::shared().job(guest).args(args.iter().copied()).run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (code, stdout), "{guest} {args:?}: {}", outcome.stderr);
}

#[test]
fn a_hello_of_each_language_and_wasi_version_prints_and_ends_with_0() {
    for (guest, stdout) in [
        ("c-hello", "hello\n"),
        ("c-simd", "357389824\n"),
        ("go-hello", "hello\n"),
        ("rust-hello", "hello from Rust\n"),
        ("rust-p2-hello", "hello from WASI 0.2\n"),
        ("rust-p3-hello", "hello from WASI 0.3\n"),
        ("js-hello", "hello from JavaScript\n"),
        ("python-hello", "hello from Python 3.14\n"),
    ] {
        check(guest, &[], 0, stdout);
    }
}

#[test]
fn ctr_run_shows_what_the_guest_prints_and_ends_with_its_exit_code() {
    let containerd = Containerd::shared();
    let said = containerd.ctr_run(&containerd.guest("c-hello"), &[], &["/c-hello.wasm", "exit", "42"]);
    assert_eq!(said.code, Some(42), "{said:?}");
    let said = containerd.ctr_run(&containerd.guest("go-hello"), &[], &[]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "hello\n"), "{said:?}");
}

#[test]
fn arguments_arrive_as_they_are() {
    check("c-hello", &["args", "one", "two words", "", "ünï"], 0, "/c-hello.wasm\nargs\none\ntwo words\n\nünï\n");
    check("rust-hello", &["a", "b"], 0, "hello from Rust\na\nb\n");
}

#[test]
fn the_environment_is_the_containers_and_nothing_else() {
    let containerd = Containerd::shared();
    let outcome = containerd.job("c-hello").env("GREETING=good day").env("EMPTY=").args(["env"]).run();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
    // The OCI runtime adds the home directory, as it does for every container.
    assert_eq!(outcome.stdout, format!("{path}GREETING=good day\nEMPTY=\nHOME=/\n"));
    let outcome = containerd.job("rust-p2-hello").env("A=1").args(["env"]).run();
    assert_eq!(outcome.stdout, format!("{path}A=1\nHOME=/\n"));
    let outcome = containerd.job("python-hello").env("B=2").args(["env"]).run();
    assert!(outcome.stdout.contains("B=2\n"), "{outcome:?}");
}

#[test]
fn go_is_given_arguments_environment_and_directory() {
    let outcome = Containerd::shared().job("go-env").env("A=b").cwd("/").args(["x"]).run();
    let given: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(given["args"], serde_json::json!(["/go-env.wasm", "x"]));
    assert_eq!((&given["env"]["A"], &given["cwd"]), (&"b".into(), &"/".into()));
}

#[test]
fn exit_codes_are_the_guests() {
    check("c-hello", &["return", "3"], 3, "");
    check("python-hello", &["exit", "1"], 1, "");
    check("rust-p2-hello", &["exit", "7"], 1, "");
    check("rust-p3-hello", &["fail"], 1, "hello from WASI 0.3\n");
    let outcome = Containerd::shared().job("rust-p2-hello").args(["fail"]).run();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, "failed on purpose\n"));
}

#[test]
fn errors_of_a_language_stand_on_stderr() {
    let containerd = Containerd::shared();
    let outcome = containerd.job("python-hello").args(["raise"]).run();
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("Traceback (most recent call last):\n"), "{outcome:?}");
    assert!(
        outcome.stderr.ends_with("\nskiff: /python-hello.wasm ended with an exception: ValueError: on purpose\n"),
        "{outcome:?}"
    );
    assert!(!outcome.stderr.contains("backtrace of"), "{outcome:?}");
    assert_eq!(containerd.job("js-hello").args(["throw"]).run().code, 1);
    let outcome = containerd.job("go-panic").run();
    assert!(outcome.stderr.contains("panic:") && outcome.stderr.contains("main.main"), "{outcome:?}");
    assert_eq!(outcome.code, 2);
}

#[test]
fn a_function_after_a_hash_sign_is_run() {
    let containerd = Containerd::shared();
    let run = |guest: &str, function: &str| containerd.job(guest).command([format!("/{guest}.wasm#{function}")]).run();
    for (guest, greeting) in [("c-reactor", "hello from greet\n"), ("go-reactor", "hello from Go's greet\n")] {
        assert_eq!(run(guest, "greet").stdout, greeting);
        assert_eq!(run(guest, "leave").code, 9, "{guest}");
    }
    let seven = run("c-reactor", "seven");
    assert_eq!(
        (seven.code, seven.stdout.as_str()),
        (0, "7\n"),
        "what a function returns is printed, and not an exit code"
    );
    let failed = run("c-reactor", "fail");
    assert!(failed.code == 134 && failed.stderr.contains("fail"), "{failed:?}");
}

#[test]
fn a_name_without_a_slash_is_found_in_the_path_and_the_directory() {
    let containerd = Containerd::shared();
    let outcome = containerd.job("c-hello").command(["c-hello.wasm", "args"]).run();
    assert_eq!(outcome.stdout, "c-hello.wasm\nargs\n");
    let outcome = containerd.job("c-hello").command(["./c-hello.wasm", "args"]).run();
    assert_eq!(outcome.stdout, "./c-hello.wasm\nargs\n");
}

#[test]
fn wasm_is_told_by_its_content_and_not_by_its_name() {
    let containerd = Containerd::shared();
    let wasm = std::fs::read(skiff_test::guest("c-hello")).unwrap();
    let files = [skiff_test::File::program("bin/hello", wasm)];
    let image = skiff_test::Archive::ordinary(&files, &["/bin/hello"]).import(containerd);
    assert_eq!(containerd.job_of(&image).run().stdout, "hello\n");
}

#[test]
fn the_features_that_are_on_run() {
    let containerd = Containerd::shared();
    for (feature, module) in [
        (
            "multi-memory",
            "(module (memory 1) (memory 1) (func (export \"_start\") (i32.store 1 (i32.const 0) (i32.const 7))))",
        ),
        ("memory64", "(module (memory i64 1) (func (export \"_start\") (i32.store (i64.const 0) (i32.const 7))))"),
        ("tail calls", "(module (func $f) (func (export \"_start\") (return_call $f)))"),
        ("reference types", "(module (table 1 externref) (func (export \"_start\") (drop (table.get (i32.const 0)))))"),
        (
            "garbage collection",
            "(module (type $p (struct (field i32))) (func (export \"_start\") (drop (struct.new $p (i32.const 1)))))",
        ),
        ("exceptions", "(module (tag $e) (func (export \"_start\") (block $h (try_table (catch_all $h) (throw $e)))))"),
        ("saturating conversions", "(module (func (export \"_start\") (drop (i32.trunc_sat_f32_s (f32.const 1)))))"),
    ] {
        let outcome = containerd.job_of(&skiff_test::Image::of_text(containerd, module)).run();
        assert_eq!(outcome.code, 0, "{feature}: {}", outcome.stderr);
    }
}

#[test]
fn http_servers_of_both_versions_answer() {
    for (guest, greeting) in
        [("rust-p2-http", "hello\n"), ("rust-p3-http", "hello\n"), ("js-http", "hello from JavaScript\n")]
    {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest), port);
        let answer = get(port, "/").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, greeting), "{guest}");
        assert_eq!(get(port, "/nowhere").unwrap().status, 404, "{guest}");
        let echoed = request(port, "POST", "/echo", b"some bytes").unwrap();
        assert_eq!(echoed.text(), "some bytes", "{guest}");
        assert_eq!(get(port, "/log").unwrap().text(), "logged\n", "{guest}");
        server.streams.wait_for_stdout("on stdout\n");
        assert!(until(Duration::from_secs(5), || server.streams.stderr().contains("on stderr\n")), "{guest}");
        server.kill(libc::SIGTERM).unwrap();
        assert_eq!(server.finish().code, 0, "{guest}");
    }
}

#[test]
fn an_http_server_has_the_containers_environment_arguments_and_files() {
    let containerd = Containerd::shared();
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("note"), "from the volume").unwrap();
    let port = free_port();
    let job = containerd.job("rust-p2-http").env("GREETING=hi").args(["one"]).bind(volume.path(), "/data", &["rw"]);
    let _server = serving(job, port);
    assert!(get(port, "/env").unwrap().text().contains("GREETING=hi\n"));
    assert_eq!(get(port, "/args").unwrap().text(), "/rust-p2-http.wasm\none\n");
    assert_eq!(get(port, "/files?path=/data/note").unwrap().text(), "from the volume");
    assert_eq!(request(port, "POST", "/write?path=/data/new", b"written by wasm").unwrap().text(), "written");
    assert_eq!(std::fs::read_to_string(volume.path().join("new")).unwrap(), "written by wasm");
    assert_eq!(get(port, "/files?path=/nothing").unwrap().status, 500);
    assert!(get(port, "/headers").unwrap().text().contains("content-length: 0\n"));
    assert_eq!(get(port, "/status?code=418").unwrap().status, 418);
}

/// Does `work` in the network of a container.
fn in_network_of<T: Send>(container: &Container<'_>, work: impl FnOnce() -> T + Send) -> T {
    let network = std::fs::File::open(format!("/proc/{}/ns/net", container.pid)).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            nix::sched::setns(&network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

#[test]
fn a_server_listens_on_port_8080_of_its_own_network_unless_it_is_told_otherwise() {
    let containerd = Containerd::shared();
    for (variable, port) in [("A=b", 8080), ("PORT=81", 81), ("SKIFF_HTTP_ADDRESS=127.0.0.1:82", 82)] {
        let server = containerd.job("rust-p2-http").env(variable).start();
        let text = in_network_of(&server, || {
            assert!(until(Duration::from_secs(20), || Connection::open(port).is_ok()), "{variable}");
            get(port, "/").unwrap().text()
        });
        assert_eq!(text, "hello\n", "{variable}");
    }
}

#[test]
fn requests_are_served_at_the_same_time() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let _server = serving(Containerd::shared().job(guest), port);
        let barrier = Barrier::new(8);
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(get(port, "/slow?ms=500").unwrap().text(), "slow\n");
                });
            }
        });
        let took = began.elapsed();
        assert!(took < Duration::from_millis(2500), "{guest}: eight requests of 500 ms took {took:?}");
    }
}

#[test]
fn a_body_is_echoed_while_it_is_still_being_sent() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let _server = serving(Containerd::shared().job(guest), port);
        let mut connection = Connection::open(port).unwrap();
        connection.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        for piece in ["first", "second"] {
            connection.send(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).unwrap();
            if piece == "first" {
                assert_eq!(connection.head().unwrap().status, 200, "{guest}");
            }
            assert_eq!(connection.chunk().unwrap(), piece.as_bytes(), "{guest}");
        }
        connection.send(b"0\r\n\r\n").unwrap();
        assert_eq!(connection.chunk().unwrap(), b"", "{guest}");
    }
}

#[test]
fn a_large_answer_is_whole() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let _server = serving(Containerd::shared().job(guest), port);
        let answer = get(port, "/big?bytes=5000001").unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 5_000_001), "{guest}");
    }
}

#[test]
fn a_trap_in_a_request_answers_500_and_the_server_lives() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest), port);
        assert_eq!(get(port, "/trap").unwrap().status, 500, "{guest}");
        assert_eq!(get(port, "/").unwrap().status, 200, "{guest}");
        let is_told = |words: &str| until(Duration::from_secs(5), || server.streams.stderr().contains(words));
        assert!(is_told("on purpose") && is_told("trapped"), "{guest}: {}", server.streams.stderr());
    }
}

#[test]
fn sigterm_lets_the_requests_under_way_finish_and_ends_with_0() {
    for guest in ["rust-p2-http", "rust-p3-http"] {
        let port = free_port();
        let server = serving(Containerd::shared().job(guest), port);
        let mut under_way = Connection::open(port).unwrap();
        under_way.send(b"GET /slow?ms=1500 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        // Once another request is answered, the earlier one has arrived as well.
        assert_eq!(get(port, "/").unwrap().status, 200);
        server.kill(libc::SIGTERM).unwrap();
        assert!(
            until(Duration::from_secs(1), || Connection::open(port).is_err()),
            "{guest}: no new connections are taken"
        );
        let answer = under_way.answer().unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "slow\n"), "{guest}");
        assert_eq!(server.finish().code, 0, "{guest}");
    }
}

#[test]
fn sigkill_ends_a_server_at_once() {
    let port = free_port();
    let server = serving(Containerd::shared().job("rust-p2-http"), port);
    server.kill(libc::SIGKILL).unwrap();
    assert_eq!(server.finish().code, 137);
}

#[test]
fn a_spinning_request_does_not_keep_the_server_from_being_ended() {
    let port = free_port();
    let server = serving(Containerd::shared().job("rust-p2-http"), port);
    let mut spinning = Connection::open(port).unwrap();
    spinning.send(b"GET /spin HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(get(port, "/").unwrap().status, 200, "others are served meanwhile");
    server.kill(libc::SIGTERM).unwrap();
    assert!(server.wait_for(Duration::from_secs(2)).is_err(), "a request under way is waited for");
    server.kill(libc::SIGTERM).unwrap();
    assert_eq!(server.finish().code, 143, "a second SIGTERM ends what does not finish");
}

#[test]
fn an_address_that_is_taken_or_malformed_is_refused_with_a_sentence() {
    let containerd = Containerd::shared();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let job = containerd.job("rust-p2-http").host_network().env(&format!("SKIFF_HTTP_ADDRESS=127.0.0.1:{port}"));
    let refused = job.refused();
    assert!(refused.message.contains(&format!("127.0.0.1:{port}")), "{refused}");
    let refused = containerd.job("rust-p2-http").env("PORT=eighty").refused();
    assert!(refused.message.contains("`PORT` is not a port number: `eighty`"), "{refused}");
}
