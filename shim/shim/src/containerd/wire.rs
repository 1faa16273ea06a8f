//! The words of containerd's messages: plain values in, plain values out.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim::protos::api::{ProcessInfo, Status};
use containerd_shim::protos::shim::oci::{CheckpointOptions as WireCheckpointOptions, ProcessDetails};
use containerd_shim::protos::types::mount::Mount;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use ttrpc::Code;

use crate::error::{Context, Error, Kind, Result, chain};
use crate::pod::state::State;
use crate::request::{CheckpointOptions, RootfsMount};

/// A pid or an exit code; there are no negative ones on the wire.
pub(super) fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

/// `time` as a protobuf timestamp; what is before 1970 becomes 1970.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Timestamp::default()
    }
}

/// Whether `id` can name a file.
pub(super) fn is_name(id: &str) -> bool {
    !id.is_empty() && Path::new(id).file_name().is_some_and(|name| name == id)
}

/// The status that a process has for containerd.
pub(super) fn status(state: State) -> Status {
    match state {
        State::Added | State::Starting | State::Created => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Paused => Status::PAUSED,
        State::Stopped(_) => Status::STOPPED,
    }
}

/// A process in the list of a container's processes.
pub(super) fn process_info(pid: i32, exec_id: String) -> Result<ProcessInfo> {
    let mut info = ProcessInfo { pid: unsigned(pid), ..ProcessInfo::default() };
    if !exec_id.is_empty() {
        let details = ProcessDetails { exec_id, ..ProcessDetails::default() };
        info.info = Some(Any {
            type_url: "containerd.runc.v1.ProcessDetails".into(),
            value: details.write_to_bytes().doing(|| "cannot encode the response".into())?,
            ..Any::default()
        })
        .into();
    }
    Ok(info)
}

/// A mount of a root file system, as containerd sent it.
pub(super) fn from_mount(mount: Mount) -> RootfsMount {
    RootfsMount { kind: mount.type_, source: mount.source, target: mount.target, options: mount.options }
}

/// A mount of a root file system, as containerd reads it.
pub(super) fn to_mount(mount: &RootfsMount) -> Mount {
    Mount {
        type_: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
        ..Mount::default()
    }
}

/// Reads the options of a checkpoint.
///
/// # Errors
/// `Invalid` when they cannot be decoded.
pub(super) fn checkpoint_options(message: &[u8]) -> Result<CheckpointOptions> {
    let options = WireCheckpointOptions::parse_from_bytes(message)
        .map_err(|error| Error::invalid(format!("cannot parse the options: {error}")))?;
    Ok(CheckpointOptions {
        exit: options.exit,
        open_tcp: options.open_tcp,
        external_unix_sockets: options.external_unix_sockets,
        terminal: options.terminal,
        file_locks: options.file_locks,
        empty_namespaces: options.empty_namespaces,
        cgroups_mode: options.cgroups_mode,
        work_path: options.work_path,
    })
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            Kind::Invalid => Code::INVALID_ARGUMENT,
            Kind::NotFound => Code::NOT_FOUND,
            Kind::Exists => Code::ALREADY_EXISTS,
            Kind::Conflict => Code::FAILED_PRECONDITION,
            Kind::Unsupported => Code::UNIMPLEMENTED,
            Kind::Host => Code::UNKNOWN,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_holds_the_whole_chain_once() {
        let cause = std::io::Error::other("no space left");
        let error: ttrpc::Error = Error::host("cannot write `a`", cause).into();
        match error {
            ttrpc::Error::RpcStatus(status) => {
                assert_eq!(status.message, "cannot write `a`: no space left");
                assert_eq!(status.code(), Code::UNKNOWN);
            }
            other => panic!("{other}"),
        }
    }
}
