//! Landlock: the guest's directories and nothing else of the file system, if the kernel has it. It degrades silently: the
//! mount namespace and the guest's view hold without it.

use ::landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use super::view::{Access, View};

/// The newest kernel interface whose rights are handled. Older kernels handle those that they know.
const ABI_MAX: ABI = ABI::V6;

/// What WASI can do with files. It makes no devices, sockets or fifos, executes nothing and controls no device.
fn rights(access: Access) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match access {
        Access::Read => read,
        Access::Write => {
            read | AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSym
                | AccessFs::RemoveFile
                | AccessFs::RemoveDir
                | AccessFs::Refer
        }
    }
}

/// Restricts the calling thread, and those that it makes, to `view`.
pub(super) fn restrict(view: &View<'_>) {
    // After an error no rule is in force. Only a kernel without Landlock makes this fail.
    let _restricted = ruleset(view).and_then(RulesetCreated::restrict_self);
}

fn ruleset(view: &View<'_>) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        // Before Linux 5.19 Landlock forbids moving files between directories, which a guest would miss.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_MAX))?
        .scope(Scope::from_all(ABI_MAX))?
        .create()?;
    for (directory, access) in view.directories {
        ruleset = ruleset.add_rule(PathBeneath::new(directory, rights(*access)))?;
    }
    for file in view.files {
        ruleset = allow(ruleset, file, AccessFs::ReadFile.into())?;
    }
    // wasmtime sets the times of files through `/proc/self/fd`, which it opens to look at.
    allow(ruleset, "/proc", AccessFs::ReadDir.into())
}

/// What cannot be opened now cannot be opened later either.
fn allow(
    ruleset: RulesetCreated,
    path: impl AsRef<std::path::Path>,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(place) => ruleset.add_rule(PathBeneath::new(place, rights)),
        Err(_) => Ok(ruleset),
    }
}
