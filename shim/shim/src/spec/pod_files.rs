//! Mounts the files of a pod into a container, as containerd does by itself for a pod with a pause container.
//! <https://github.com/containerd/containerd/blob/v2.4.2/internal/cri/server/container_create.go> (`linuxContainerMounts`)

use std::path::{Component, Path, PathBuf};

use crate::spec::config::{Config, Mount, TMPFS};

const SHARED_MEMORY: &str = "/dev/shm";

/// Where the files of a pod are on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFiles {
    pub(crate) hostname: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) resolv_conf: PathBuf,
    /// `None` for a pod with the node's shared memory, which containerd mounts.
    pub(crate) shared_memory: Option<PathBuf>,
}

impl PodFiles {
    /// Mounts the files where the container does not have a mount of its own.
    pub(crate) fn add_to(&self, config: &mut Config) {
        let access = if config.root.readonly == Some(true) { "ro" } else { "rw" };
        for (place, source) in
            [("/etc/hostname", &self.hostname), ("/etc/hosts", &self.hosts), ("/etc/resolv.conf", &self.resolv_conf)]
        {
            if !config.mounts.iter().any(|mount| is_at(mount, place)) {
                config.mounts.push(bind(place, source, access));
            }
        }
        if let Some(source) = &self.shared_memory {
            // The one that every specification has would be the container's own.
            config.mounts.retain(|mount| !(is_at(mount, SHARED_MEMORY) && mount.is_of_kind(TMPFS)));
            if !config.mounts.iter().any(|mount| is_at(mount, SHARED_MEMORY)) {
                // Not below a mount that comes later, and not above one that is inside it.
                let below = config.mounts.iter().rposition(|mount| is_at(mount, "/") || is_at(mount, "/dev"));
                config.mounts.insert(below.map_or(0, |below| below + 1), bind(SHARED_MEMORY, source, "rw"));
            }
        }
        config.is_rewritten = true;
    }
}

fn bind(place: &str, source: &Path, access: &str) -> Mount {
    Mount::bind(place.into(), source, &["rbind", "rprivate", access])
}

/// Whether the mount is at this place, which may be written in other ways.
fn is_at(mount: &Mount, place: &str) -> bool {
    let mut clean = PathBuf::from("/");
    for component in mount.destination.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean == Path::new(place)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mounts(specification: &Value) -> Vec<String> {
        let mut config = Config::parse(specification.to_string().as_bytes(), Path::new("/b")).unwrap();
        let files = PodFiles {
            hostname: "/pod/hostname".into(),
            hosts: "/pod/hosts".into(),
            resolv_conf: "/pod/resolv.conf".into(),
            shared_memory: Some("/pod/shm".into()),
        };
        files.add_to(&mut config);
        assert!(config.is_rewritten);
        let shown = |mount: &Mount| {
            let source = mount.source.as_ref().unwrap().display();
            format!("{source} at {} {}", mount.destination.display(), mount.options.join(","))
        };
        config.mounts.iter().map(shown).collect()
    }

    fn default_mounts() -> Value {
        json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]},
        ])
    }

    #[test]
    fn a_container_gets_the_files_and_the_shared_memory_of_its_pod() {
        let expected = [
            "/pod/shm at /dev/shm rbind,rprivate,rw",
            "proc at /proc ",
            "/pod/hostname at /etc/hostname rbind,rprivate,rw",
            "/pod/hosts at /etc/hosts rbind,rprivate,rw",
            "/pod/resolv.conf at /etc/resolv.conf rbind,rprivate,rw",
        ];
        assert_eq!(mounts(&json!({"mounts": default_mounts()})), expected);
    }

    #[test]
    fn files_are_read_only_where_the_root_is() {
        let mounts = mounts(&json!({"root": {"readonly": true}, "mounts": default_mounts()}));
        assert_eq!(
            [&mounts[0], &mounts[2]],
            ["/pod/shm at /dev/shm rbind,rprivate,rw", "/pod/hostname at /etc/hostname rbind,rprivate,ro"]
        );
    }

    #[test]
    fn the_shared_memory_is_on_top_of_the_devices_and_below_what_is_mounted_in_it() {
        let own = |place: &str| json!({"destination": place, "type": "bind", "source": "/own", "options": []});
        let own_mounts = [own("/dev/"), own("/dev/shm/inside"), own("/data")];
        let default = [json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"})];
        let all = [&default[..], default_mounts().as_array().unwrap(), &own_mounts].concat();
        assert_eq!(
            mounts(&json!({"mounts": all}))[..5],
            [
                "tmpfs at /dev ",
                "proc at /proc ",
                "/own at /dev/ ",
                "/pod/shm at /dev/shm rbind,rprivate,rw",
                "/own at /dev/shm/inside ",
            ]
        );
    }

    #[test]
    fn a_containers_own_mounts_stay() {
        let own = |place: &str| json!({"destination": place, "type": "bind", "source": "/own", "options": ["rbind"]});
        let places = ["/dev/shm/", "/etc//hostname", "/etc/./hosts", "/etc/x/../resolv.conf"];
        let expected: Vec<_> = places.iter().map(|place| format!("/own at {place} rbind")).collect();
        assert_eq!(mounts(&json!({"mounts": places.map(own)})), expected);
    }

    #[test]
    fn a_container_without_any_mount_gets_all() {
        assert_eq!(mounts(&json!({})).len(), 4);
    }
}
