//! Compiling a module into the cache before a pod needs it, for `skiff cache warm`.

use std::io::{self, Read};

use skiff_protocol::{WarmRequest, Warmed};
use tokio_util::sync::CancellationToken;

use crate::code::{Compiled, Tenant};
use crate::error::{Context, Error, Kind, Result};
use crate::host::cache::Cache;
use crate::host::module::Source;
use crate::host::reader::blocking;
use crate::settings::Settings;

/// In place of a pod, which takes turns with others.
const POD: &str = "skiff cache warm";
/// The largest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// Does what the request on standard input says, and returns the reply as JSON.
///
/// # Errors
/// Those of reading the module, and of [`Compiled::load`].
pub(crate) fn warm() -> Result<Vec<u8>> {
    let mut text = Vec::new();
    io::stdin().lock().take(REQUEST_BYTES_MAX).read_to_end(&mut text).doing(|| "cannot read the request".into())?;
    let request: WarmRequest = serde_json::from_slice(&text).doing(|| "the request is not one for `warm`".into())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.doing(|| "cannot start".into())?;
    let warmed = runtime.block_on(blocking(move || compile(request)))?;
    serde_json::to_vec(&warmed).doing(|| "cannot encode the reply".into())
}

fn compile(request: WarmRequest) -> Result<Warmed> {
    let name = request.file.to_string_lossy().into_owned();
    let unwanted = CancellationToken::new();
    let source = Source::Store(request.file);
    let module = source.digest(&|| false).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => Error::new(Kind::Invalid, format!("`{name}` is too big: {error}")),
        _ => Error::host(format!("cannot read `{name}`"), error),
    })?;
    let settings = Settings {
        cache_dir: request.cache_dir,
        cache_max_bytes: request.cache_max_bytes,
        compile_memory_bytes: request.compile_memory_bytes,
        ..Settings::default()
    };
    let using = || "cannot use the cache of compiled code".into();
    let cache = Cache::open(&settings.cache_dir, settings.cache_max_bytes).doing(using)?;
    let is_new = cache.lookup(&module).doing(using)?.is_none();
    let tenant = Tenant { namespace: request.namespace, pod: POD.into() };
    Compiled::load(&name, source, module.clone(), &settings, tenant, &unwanted)?;
    Ok(Warmed { module, is_new })
}
