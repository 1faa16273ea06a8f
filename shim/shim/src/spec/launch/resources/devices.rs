//! The rules for devices, as what they allow.

use serde_json::Value;
use skiff_linux::cgroup::{Access, DeviceRule, Devices};

use super::limits::{Setting, setting};
use crate::spec::launch::reason::Reason;
use crate::spec::launch::strict::{self, section};

/// Whether it is a block device, its major and minor number, what may be done with it, and its node's path.
type KnownDevice = (bool, Option<u32>, Option<u32>, &'static str, Option<&'static str>);

/// The devices that every container may use (whether they are block devices, major and minor number, access), and those that it may
/// make. The OCI runtime adds them, too.
const DEVICES: [KnownDevice; 11] = [
    (false, None, None, "m", None),
    (true, None, None, "m", None),
    (false, Some(1), Some(3), "rwm", Some("/dev/null")),
    (false, Some(1), Some(8), "rwm", Some("/dev/random")),
    (false, Some(1), Some(7), "rwm", Some("/dev/full")),
    (false, Some(5), Some(0), "rwm", Some("/dev/tty")),
    (false, Some(1), Some(5), "rwm", Some("/dev/zero")),
    (false, Some(1), Some(9), "rwm", Some("/dev/urandom")),
    (false, Some(136), None, "rwm", None),
    (false, Some(5), Some(2), "rwm", None),
    (false, Some(10), Some(200), "rwm", None),
];

/// The device nodes that every container gets unless it describes one at the same path: path, major and minor number.
pub(crate) fn default_nodes() -> impl Iterator<Item = (&'static str, (u32, u32))> {
    DEVICES.into_iter().filter_map(|(_, major, minor, _, path)| Some((path?, (major?, minor?))))
}

/// Nothing but what the rules allow; a rule that takes back a part of what another one allows is not understood. The container
/// describes devices at `paths`.
pub(super) fn understand(rules: Vec<Value>, paths: &[&str]) -> Result<Devices, Reason> {
    let (mut allows_all, mut allowed) = (false, Vec::new());
    for rule in rules {
        let rule: strict::DeviceRule = section("linux.resources.devices", rule)?;
        let kind = if rule.kind.is_empty() { "a" } else { rule.kind.as_str() };
        let is_all = kind == "a";
        if !["a", "b", "c"].contains(&kind) || rule.access.chars().any(|access| !"rwm".contains(access)) {
            return Err(Reason(format!("`linux.resources.devices`: a rule for `{kind}` and `{}`", rule.access)));
        }
        match (rule.allow, is_all) {
            (_, true) => {
                allows_all = rule.allow;
                allowed.clear();
            }
            (true, false) => {
                let (major, minor) = (number(rule.major)?, number(rule.minor)?);
                add(&mut allowed, DeviceRule { is_block: kind == "b", major, minor, access: access(&rule.access) });
            }
            (false, false) => {
                return Err(Reason("`linux.resources.devices`: a rule that takes back a device".into()));
            }
        }
    }
    if allows_all {
        return Ok(Devices::All);
    }
    for (is_block, major, minor, letters, path) in DEVICES {
        if !path.is_some_and(|path| paths.contains(&path)) {
            add(&mut allowed, DeviceRule { is_block, major, minor, access: access(letters) });
        }
    }
    Ok(Devices::Only(allowed))
}

/// Adds what `rule` allows to what is allowed for the same devices.
fn add(allowed: &mut Vec<DeviceRule>, rule: DeviceRule) {
    let devices = |rule: &DeviceRule| (rule.is_block, rule.major, rule.minor);
    match allowed.iter_mut().find(|other| devices(other) == devices(&rule)) {
        Some(other) => {
            other.access.reads |= rule.access.reads;
            other.access.writes |= rule.access.writes;
            other.access.makes |= rule.access.makes;
        }
        None => allowed.push(rule),
    }
}

/// `None` for all numbers.
fn number(number: Option<i64>) -> Result<Option<u32>, Reason> {
    let number = number.filter(|number| *number >= 0);
    let refused = |_| Reason("`linux.resources.devices`: a number that no device has".into());
    number.map(u32::try_from).transpose().map_err(refused)
}

fn access(letters: &str) -> Access {
    Access { reads: letters.contains('r'), writes: letters.contains('w'), makes: letters.contains('m') }
}

/// What is written to the files of cgroup v1.
pub(crate) fn settings_on_v1(devices: &Devices) -> Vec<Setting> {
    let write = |file: &str, value: String| setting("devices", file, value);
    match devices {
        Devices::All => vec![write("devices.allow", "a".into())],
        Devices::Only(rules) => {
            let allowed = rules.iter().map(|rule| write("devices.allow", text(rule)));
            std::iter::once(write("devices.deny", "a".into())).chain(allowed).collect()
        }
    }
}

fn text(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
    let Access { reads, writes, makes } = rule.access;
    let letters: String = [(reads, 'r'), (writes, 'w'), (makes, 'm')]
        .iter()
        .filter(|(is_set, _)| *is_set)
        .map(|(_, letter)| letter)
        .collect();
    format!("{} {}:{} {letters}", if rule.is_block { "b" } else { "c" }, number(rule.major), number(rule.minor))
}
