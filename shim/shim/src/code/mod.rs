//! The compiled code of a module: from the cache, or compiled for it.

mod warm;

use std::fs::File;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::error::{Context, Error, Result};
use crate::host::cache::{Cache, CacheError, Wanted};
use crate::host::compile::{self, Want, compile};
use crate::host::module::Source;
use crate::settings::Settings;

pub(crate) use self::warm::warm;

/// For whom a module is compiled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenant {
    /// The pod's namespace, which owns the compiled code in the cache.
    pub(crate) namespace: String,
    /// The pod.
    pub(crate) pod: String,
}

/// A module and its compiled code.
pub(crate) struct Compiled {
    name: String,
    source: Source,
    digest: String,
    cache: Cache,
    memory_bytes: u64,
    tenant: Tenant,
    /// How long compiling it has taken, unless the cache had the code.
    took: Option<Duration>,
    code: File,
}

impl Compiled {
    /// Takes the compiled code of the module with this `digest` from the cache, and compiles what `source` holds when it is not
    /// there. Blocks, in the context of a runtime, until the end or until `unwanted` is cancelled.
    ///
    /// # Errors
    /// `Invalid` with one sentence when the module is at fault, or has changed since it was hashed.
    pub(crate) fn load(
        name: &str,
        source: Source,
        digest: String,
        settings: &Settings,
        tenant: Tenant,
        unwanted: &CancellationToken,
    ) -> Result<Self> {
        let cache = Cache::open(&settings.cache_dir, settings.cache_max_bytes)
            .doing(|| "cannot use the cache of compiled code".into())?;
        let memory_bytes = settings.compile_memory_bytes;
        let wanted = Wanted { digest: &digest, owner: &tenant.namespace, pod: &tenant.pod, memory_bytes };
        let is_awaited = || cache.is_awaited(&digest);
        let want = Want::new(unwanted, &is_awaited);
        let mut took = None;
        let code = cache.get_or_compile(wanted, |code| {
            let began = Instant::now();
            let compiled = compile(&source, name, code, memory_bytes, &want);
            took = Some(began.elapsed());
            compiled
        });
        let code = code.map_err(|error| cannot_compile(name, error))?;
        Ok(Self { name: name.into(), source, digest, cache, memory_bytes, tenant, took, code })
    }

    /// For whom it was compiled.
    pub(crate) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The module's name in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How long compiling it has taken for this container, unless the cache had the code.
    pub(crate) fn took(&self) -> Option<Duration> {
        self.took
    }

    /// The file of the code, open for reading.
    pub(crate) fn file(&self) -> &File {
        &self.code
    }

    /// Compiles once more: the engine has refused the code that the cache had.
    pub(crate) fn recompile(&mut self, unwanted: &CancellationToken) -> Result<()> {
        let memory_bytes = self.memory_bytes;
        let wanted =
            Wanted { digest: &self.digest, owner: &self.tenant.namespace, pod: &self.tenant.pod, memory_bytes };
        let is_awaited = || self.cache.is_awaited(&self.digest);
        let want = Want::new(unwanted, &is_awaited);
        let code = self.cache.recompile(wanted, |code| compile(&self.source, &self.name, code, memory_bytes, &want));
        self.code = code.map_err(|error| cannot_compile(&self.name, error))?;
        Ok(())
    }
}

fn cannot_compile(name: &str, error: CacheError<Error>) -> Error {
    match error {
        CacheError::Compile(error) => error,
        CacheError::Remembered(sentence) => {
            let sentence = sentence.replace(compile::NAME, &format!("`{name}`"));
            Error::invalid(format!("{sentence}; it failed less than ten minutes ago and is not compiled again yet"))
        }
        CacheError::Changed => Error::invalid(format!("`{name}` changed while it was being read")),
        CacheError::Host(error) => Error::host(format!("cannot cache the compiled code of `{name}`"), error),
    }
}
