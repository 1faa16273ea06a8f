//! Nodes with the files of a distribution.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Kind, Node};

/// Where the trees are.
pub(crate) fn trees() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees")
}

/// The node that has the files of the tree `name`.
pub(crate) fn node(name: &str, kind: &Kind) -> Node {
    let node = Node::new(kind, &[]);
    copy(&trees().join(name).join("before"), node.root());
    if let Some(template) = kind.template.filter(|template| template.ends_with(".tmpl")) {
        // Without a template, k3s writes the existing file again; with one, the existing file was generated from it.
        if !node.path(&template[1..]).exists() {
            node.write("fake/base", &node.read(&kind.config[1..]));
        } else {
            let other = node.read(&kind.config[1..]);
            let end = node.read(&template[1..]).replace("{{ template \"base\" . }}\n", "");
            node.write("fake/base", other.strip_suffix(&end).unwrap());
        }
    }
    node.start_containerd();
    node
}

/// Copies a tree, with its links.
pub(crate) fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_symlink() {
            // The node's containerd was started without a configuration first.
            drop(fs::remove_dir_all(&target));
            symlink(fs::read_link(path).unwrap(), target).unwrap();
        } else if path.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&path, &target);
        } else {
            fs::copy(path, target).unwrap();
        }
    }
}
