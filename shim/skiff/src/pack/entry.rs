//! What the entry point of an image means, as the shim will look for it.

use std::path::{Component, Path, PathBuf};

use super::rootfs::Rootfs;

/// Where containerd looks for programs if the image has no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the first argument of an image means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The packed guest, and the function of it that is named.
    Guest { function: Option<String> },
    /// Another file of the image.
    Other,
    /// Nothing; and what there is instead.
    Nothing { there: String },
}

/// Looks for `argument` in an ordinary image, whose packed guest is `guest`.
pub(super) fn find(rootfs: &Rootfs, argument: &str, env: &[String], guest: &Path) -> Found {
    let guest = Path::new("/").join(guest);
    let mut meanings = vec![(argument, None)];
    meanings.extend(split_function(argument).map(|(file, function)| (file, Some(function.to_owned()))));
    for (file, function) in meanings {
        match paths(file, env).into_iter().find(|path| rootfs.may_have(path)) {
            Some(path) if path == guest => return Found::Guest { function },
            Some(_) => return Found::Other,
            None => {}
        }
    }
    Found::Nothing { there: format!("`{}` and what was added", guest.display()) }
}

/// Looks for `argument` in an image whose one layer is the guest, with the title `title`.
pub(super) fn find_layer(title: &str, argument: &str) -> Found {
    let (file, function) = split_function(argument).unwrap_or((argument, ""));
    let wanted = file.trim_start_matches("./").trim_start_matches('/');
    if wanted == title || (wanted.is_empty() && !file.is_empty()) {
        return Found::Guest { function: Some(function.to_owned()).filter(|function| !function.is_empty()) };
    }
    Found::Nothing { there: format!("`/{title}`") }
}

/// `FILE#FUNCTION` in its two parts.
fn split_function(argument: &str) -> Option<(&str, &str)> {
    argument.rsplit_once('#').filter(|(file, function)| !file.is_empty() && !function.is_empty())
}

/// The paths that `file` can mean in a container whose working directory is the root.
fn paths(file: &str, env: &[String]) -> Vec<PathBuf> {
    let root = Path::new("/");
    if file.is_empty() {
        return Vec::new();
    }
    if file.contains('/') {
        return vec![clean(&root.join(file))];
    }
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(PATH);
    let directories = path.split(':').filter(|directory| !directory.is_empty()).map(|directory| root.join(directory));
    directories.chain([root.to_path_buf()]).map(|directory| clean(&directory.join(file))).collect()
}

/// The absolute `path` without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::from("/"), |mut clean, component| {
        match component {
            Component::ParentDir => drop(clean.pop()),
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
        clean
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_point_is_found_as_the_shim_finds_it() {
        let mut rootfs = Rootfs::default();
        rootfs.add_file(Path::new("app.wasm"), vec![], true).unwrap();
        rootfs.add_file(Path::new("/opt/tool"), vec![], true).unwrap();
        rootfs.add_file(Path::new("/usr/bin/sh"), vec![], true).unwrap();
        let found = |argument, env: &[&str]| {
            find(&rootfs, argument, &env.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), Path::new("app.wasm"))
        };
        let guest = |function: Option<&str>| Found::Guest { function: function.map(str::to_owned) };
        for argument in ["/app.wasm", "app.wasm", "./app.wasm", "/opt/../app.wasm"] {
            assert_eq!(found(argument, &[]), guest(None), "{argument}");
        }
        assert_eq!(found("/app.wasm#run", &[]), guest(Some("run")));
        assert_eq!(found("sh", &[]), Found::Other);
        assert_eq!(found("tool", &["PATH=/opt"]), Found::Other);
        for argument in ["/typo.wasm", "tool", "/opt", "", "#run", "/app.wasm/x", "/app.wasm#"] {
            assert!(matches!(found(argument, &[]), Found::Nothing { .. }), "{argument}");
        }
    }

    #[test]
    fn a_layer_is_found_by_its_title() {
        for argument in ["/", "/app.wasm", "app.wasm", "./app.wasm"] {
            assert_eq!(find_layer("app.wasm", argument), Found::Guest { function: None }, "{argument}");
        }
        let function = Some("run".to_owned());
        assert_eq!(find_layer("app.wasm", "/app.wasm#run"), Found::Guest { function });
        assert_eq!(find_layer("app.wasm", "/x"), Found::Nothing { there: "`/app.wasm`".into() });
    }
}
