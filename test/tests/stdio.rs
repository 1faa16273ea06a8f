//! Standard streams: the container has containerd's fifos themselves; nothing is copied and nothing is lost.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use skiff_test::{Containerd, Streams, until};

/// How many MiB the slow reader receives, and the length of each of the numbered lines.
const FLOOD_MIB: usize = 64;
const LINE_BYTES: usize = 64;

/// Whether `bytes` are the lines of `c-flood` from `first` on, without a gap.
fn check_lines(bytes: &[u8], first: usize) {
    for (index, line) in bytes.chunks(LINE_BYTES).enumerate() {
        let number: usize = std::str::from_utf8(line).unwrap().trim_end().parse().unwrap();
        assert_eq!(number, first + index);
    }
}

#[test]
fn what_is_written_to_stdin_comes_out_of_a_guest_that_copies_it() {
    let bytes: Vec<u8> =
        (0..1 << 20).map(|index: u32| index.to_le_bytes()[index as usize % 3]).map(|byte| byte & 0x7f).collect();
    let container = Containerd::shared().job("c-cat").stdin().start();
    container.streams.write(&bytes);
    container.streams.close_stdin();
    container.close_io().unwrap();
    let outcome = container.finish();
    assert_eq!(outcome.code, 0);
    assert!(outcome.stdout.as_bytes() == bytes, "{} bytes came out of {}", outcome.stdout.len(), bytes.len());
}

#[test]
fn stdin_ends_with_close_io_and_not_before() {
    for guest in ["c-cat", "native"] {
        let containerd = Containerd::shared();
        let job = if guest == "native" { containerd.shell("exec cat") } else { containerd.job(guest) };
        let container = job.stdin().start();
        container.streams.write(b"line\n");
        container.streams.wait_for_stdout("line\n");
        // The end of a client is not the end of the stream: another client may come.
        container.streams.close_stdin();
        assert!(container.wait_for(Duration::from_millis(500)).is_err(), "{guest} ended without CloseIO");
        container.streams.write(b"another\n");
        container.streams.wait_for_stdout("another\n");
        container.streams.close_stdin();
        container.close_io().unwrap();
        assert_eq!(container.finish().code, 0, "{guest}");
    }
}

#[test]
fn stdin_that_was_not_asked_for_is_empty() {
    let outcome = Containerd::shared().job("c-cat").run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
}

#[test]
fn python_reads_stdin_to_its_end() {
    let container = Containerd::shared().job("python-hello").args(["echo"]).stdin().start();
    container.streams.write(b"to Python");
    container.streams.close_stdin();
    container.close_io().unwrap();
    assert_eq!(container.finish().stdout, "to Python\n");
}

#[test]
fn a_slow_reader_blocks_the_writer_and_loses_nothing() {
    let container =
        Containerd::shared().job("c-flood").args([FLOOD_MIB.to_string()]).streams(Streams::unread()).create();
    let mut stdout = open(&container.streams);
    container.start().unwrap();
    let mut all = Vec::new();
    let mut block = vec![0; 1 << 20];
    while all.len() < 1 << 20 {
        let length = stdout.read(&mut block).unwrap();
        all.extend(&block[..length]);
    }
    assert!(container.wait_for(Duration::from_secs(1)).is_err(), "the writer waits for its reader");
    stdout.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), FLOOD_MIB << 20);
    check_lines(&all, 0);
    assert_eq!(container.wait(), 0);
}

#[test]
fn output_is_whole_though_containerd_and_the_reader_are_restarted_in_the_middle() {
    let containerd = Containerd::start();
    let container = containerd.job("c-flood").args(["8"]).streams(Streams::unread()).create();
    let mut stdout = open(&container.streams);
    container.start().unwrap();
    let mut all = vec![0; 1 << 20];
    stdout.read_exact(&mut all).unwrap();
    containerd.kill();
    drop(stdout);
    assert!(skiff_test::is_alive(container.pid), "the guest waits for a reader");
    containerd.start_again();
    open(&container.streams).read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 8 << 20);
    check_lines(&all, 0);
    assert_eq!(container.wait(), 0);
}

/// Opens standard output, which the shim already holds open.
fn open(streams: &Streams) -> File {
    File::open(streams.path("stdout")).unwrap()
}

#[test]
fn stdout_and_stderr_are_two_streams() {
    let containerd = Containerd::shared();
    let outcome = containerd.shell("echo out; echo err >&2").run();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    let outcome = containerd.job("rust-panic").run();
    assert!(outcome.stdout.is_empty() && outcome.stderr.contains("index out of bounds"), "{outcome:?}");
}

#[test]
fn a_log_file_gets_both_outputs_and_keeps_what_it_has() {
    let containerd = Containerd::shared();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("below/log");
    fs::create_dir(directory.path().join("below")).unwrap();
    fs::write(&file, "before\n").unwrap();
    let address = format!("file://{}", file.display());
    let run = |container: skiff_test::Container<'_>| {
        assert_eq!(container.wait(), 0);
    };
    run(containerd.job("c-hello").log(&address).start());
    run(containerd.shell("echo out; echo err >&2").log(&address).start());
    assert_eq!(fs::read_to_string(&file).unwrap(), "before\nhello\nout\nerr\n");
}

#[test]
fn a_log_program_gets_both_outputs_and_the_containers_name() {
    let containerd = Containerd::shared();
    let directory = tempfile::tempdir().unwrap();
    let (program, log) = (directory.path().join("logger"), directory.path().join("log"));
    let script = format!(
        "#!/bin/sh\nexec 5>&-\n{{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE\"; cat <&3; cat <&4; }} > {}\n",
        log.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for job in [containerd.job("c-hello"), containerd.shell("echo hello")] {
        let container = job.log(&format!("binary://{}", program.display())).start();
        let expected = format!("{} skiff-test\nhello\n", container.id);
        assert_eq!(container.wait(), 0);
        let whole = until(Duration::from_secs(5), || fs::read_to_string(&log).is_ok_and(|text| text == expected));
        assert!(whole, "{:?} instead of {expected:?}", fs::read_to_string(&log));
        drop(container);
        fs::remove_file(&log).unwrap();
    }
}
