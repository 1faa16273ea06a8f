//! The shim's command line, as containerd uses it: `start`, `delete`, `-info` and `-v`. `skiff` uses one action more.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use skiff_protocol::WARM_ACTION;

use crate::code;
use crate::containerd::start::{self, Started};
use crate::containerd::{bootstrap, cleanup, options, server};
use crate::error::{Context, Error, Result};
use crate::host::pid_namespace;

/// The name under which containerd knows the runtime.
const RUNTIME: &str = "io.containerd.skiff.v1";
/// Which type the features of an OCI runtime have in containerd.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Does what the command line says.
pub(crate) fn run() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&args).map_err(|error| Error::invalid(error.to_string()))?;
    if flags.version {
        return print(version().as_bytes());
    }
    if flags.info {
        return print(&info()?);
    }
    match flags.action.as_str() {
        "start" => match start::start(&flags)? {
            Started::Answer(answer) => print(&answer),
            Started::Shim(serving) => server::run(serving),
        },
        "delete" => print(&cleanup::delete(&flags)?),
        pid_namespace::ACTION => {
            pid_namespace::run_init().doing(|| "cannot run the first process of the pid namespace".into())
        }
        WARM_ACTION => print(&code::warm()?),
        "" => Err(Error::invalid("containerd starts the shim with the action `start`")),
        other => Err(Error::invalid(format!("`{other}` is not a shim action"))),
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).doing(|| "cannot write the response".into())
}

fn version() -> String {
    let (version, engine) = (env!("CARGO_PKG_VERSION"), skiff_protocol::CODE_ID);
    format!("containerd-shim-skiff-v1:\n  Version:  {version}\n  Engine:   {engine}\n")
}

/// Describes the runtime; what the OCI runtime can do, skiff can.
fn info() -> Result<Vec<u8>> {
    let input = bootstrap::read_input()?;
    let options = Any::parse_from_bytes(&input).doing(|| "the options are not a protobuf message".into())?;
    let settings = options::decode(Some(&options))?;
    let features = Command::new(&settings.binary_name).arg("features").stderr(Stdio::null()).output();
    let features = features.ok().filter(|output| output.status.success()).map(|output| Any {
        type_url: FEATURES_TYPE.into(),
        value: output.stdout,
        ..Any::default()
    });
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..RuntimeVersion::default() }).into(),
        options: Some(options).filter(|options| !options.type_url.is_empty()).into(),
        features: features.into(),
        ..RuntimeInfo::default()
    };
    info.write_to_bytes().doing(|| "cannot encode the response".into())
}
