//! AppArmor: the profile that the specification names applies to the engine as it does to a native process. The node needs AppArmor.

use std::fs;

use serde_json::json;
use skiff_test::{APPARMOR_PROFILE as NAME, Containerd, Job, load_apparmor_profile};

fn under<'a>(job: Job<'a>, profile: &str) -> Job<'a> {
    load_apparmor_profile();
    job.edit(|spec| spec["process"]["apparmorProfile"] = json!(profile))
}

#[test]
fn the_profile_of_the_specification_is_the_engines() {
    let containerd = Containerd::shared();
    for job in [containerd.job("c-sleep"), containerd.shell("echo sleeping; exec sleep 3600")] {
        let container = under(job, NAME).start();
        container.streams.wait_for_stdout("sleeping\n");
        let current = fs::read_to_string(format!("/proc/{}/attr/current", container.pid)).unwrap();
        assert_eq!(current, format!("{NAME} (enforce)\n"));
    }
}

#[test]
fn what_the_profile_denies_a_guest_cannot_do() {
    let containerd = Containerd::shared();
    let folder = tempfile::tempdir().unwrap();
    for (place, code) in [("/denied", 2), ("/free", 0)] {
        let guest = containerd.job("c-fill").args([format!("{place}/file"), "1".to_string()]);
        let native = containerd.shell(&format!("echo x > {place}/file || exit 2"));
        for job in [guest, native] {
            let outcome = under(job.bind(folder.path(), place, &["rw"]), NAME).run();
            assert_eq!(outcome.code, code, "{place}: {outcome:?}");
        }
    }
}

#[test]
fn a_profile_that_is_not_loaded_is_refused() {
    let refused = under(Containerd::shared().job("c-hello"), "skiff-nowhere").refused();
    // In the OCI runtime's words, or in those of skiff's own launcher.
    let said = refused.message.to_lowercase();
    let words = ["unable to apply apparmor profile", "cannot apply the apparmor profile"];
    assert!(words.iter().any(|words| said.contains(words)), "{refused}");
}
