//! The certificate authorities that are trusted: the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, or else the
//! image's usual bundle, or else Mozilla's list. Files are read at the first connection that needs them, and again when
//! they have changed: a mounted `ca.crt` is replaced while the container runs.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::Dir;
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use super::settings::Settings;
use crate::files::reader::{Links, Place, Reader};
use crate::report::Reporter;

/// Where distributions keep their bundle.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cert.pem",
];
/// The most that is read of one file, and of all. A distribution's bundle has a fifth of that.
const FILE_BYTES_MAX: u64 = 1 << 20;
const BYTES_MAX: u64 = 2 << 20;
/// The most entries that are looked at in one directory.
const ENTRIES_MAX: usize = 1024;

/// The authorities of a container.
pub(super) struct Authorities {
    reader: Arc<Reader>,
    settings: Arc<Settings>,
    reporter: Arc<Reporter>,
    known: Mutex<Option<Known>>,
    /// Held while files are read, so that connections that are made at once do not all read them.
    reading: Arc<tokio::sync::Mutex<()>>,
}

struct Known {
    versions: Vec<Version>,
    /// `None` if what the environment names holds no certificate.
    config: Option<Arc<ClientConfig>>,
}

/// What distinguishes one content of a file or directory from the next; `None` if it is not there.
type Version = Option<[i64; 7]>;

/// Certificates, and what may still be read for more.
struct Collected {
    roots: RootCertStore,
    seen: HashSet<(u64, u64)>,
    bytes_left: u64,
}

impl Authorities {
    /// The authorities that `settings` names. Nothing is read yet.
    pub(super) fn new(reader: Arc<Reader>, settings: Arc<Settings>, reporter: Arc<Reporter>) -> Arc<Self> {
        Arc::new(Self { reader, settings, reporter, known: Mutex::new(None), reading: Arc::default() })
    }

    /// How TLS is spoken now.
    ///
    /// # Errors
    /// `ConfigurationError` if the environment names files and none of them holds a certificate, which is reported once.
    pub(super) async fn config(self: &Arc<Self>) -> Result<Arc<ClientConfig>, ErrorCode> {
        let authorities = Arc::clone(self);
        let reading = Arc::clone(&self.reading).lock_owned().await;
        // A volume may not respond.
        let read = spawn_blocking(move || {
            let current = authorities.current();
            drop(reading);
            current
        })
        .await;
        read.ok().flatten().ok_or(ErrorCode::ConfigurationError)
    }

    fn current(&self) -> Option<Arc<ClientConfig>> {
        let (files, folders) = self.sources();
        let place = |path: &PathBuf| self.reader.find(path, Links::Follow);
        let version = |path: &PathBuf| place(path).and_then(|place| place.metadata()).ok().map(|found| version(&found));
        let versions: Vec<Version> = files.iter().chain(&folders).map(version).collect();
        if let Some(known) = &*self.known.lock().unwrap_or_else(PoisonError::into_inner)
            && known.versions == versions
        {
            return known.config.clone();
        }
        let config = self.read(&files, &folders).map(config);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known { versions, config: config.clone() });
        config
    }

    /// The files and directories that are read.
    fn sources(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let Settings { certificate_file: file, certificate_folders: folders, .. } = &*self.settings;
        if self.is_named() {
            return (file.iter().cloned().collect(), folders.clone());
        }
        let is_there = |bundle: &&str| self.reader.find(Path::new(bundle), Links::Follow).is_ok();
        (BUNDLES.iter().find(|bundle| is_there(bundle)).map(PathBuf::from).into_iter().collect(), Vec::new())
    }

    fn is_named(&self) -> bool {
        self.settings.certificate_file.is_some() || !self.settings.certificate_folders.is_empty()
    }

    fn read(&self, files: &[PathBuf], folders: &[PathBuf]) -> Option<RootCertStore> {
        let mut collected = Collected { roots: RootCertStore::empty(), seen: HashSet::new(), bytes_left: BYTES_MAX };
        let mut failed = None;
        for file in files {
            if let Err(error) = self.reader.find(file, Links::Follow).and_then(|place| collected.add(&place)) {
                failed = failed.or(Some((file, error)));
            }
        }
        for folder in folders {
            if let Err(error) = self.add_folder(folder, &mut collected) {
                failed = failed.or(Some((folder, error)));
            }
        }
        if !collected.roots.is_empty() {
            return Some(collected.roots);
        }
        if !self.is_named() {
            return Some(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() });
        }
        let (place, why) = match failed {
            Some((place, error)) => (Some(place), error.to_string()),
            None => (files.iter().chain(folders).next(), "it contains no certificate".to_owned()),
        };
        self.reporter.line(&format!(
            "cannot read certificate authorities from `{}`, which the environment names, so no server is trusted: {why}",
            place.map(|place| place.display().to_string()).unwrap_or_default()
        ));
        None
    }

    fn add_folder(&self, folder: &Path, collected: &mut Collected) -> io::Result<()> {
        let directory = self.reader.find(folder, Links::Follow)?.open_directory()?;
        for entry in Dir::read_from(directory)?.take(ENTRIES_MAX) {
            let entry = entry?;
            let name = String::from_utf8_lossy(entry.file_name().to_bytes()).into_owned();
            // What is not a file, or holds no certificate, may be there as well.
            let _added = self.reader.find(&folder.join(name), Links::Follow).and_then(|place| collected.add(&place));
        }
        Ok(())
    }
}

impl Collected {
    /// Adds the certificates of a file.
    fn add(&mut self, place: &Place) -> io::Result<()> {
        let metadata = place.metadata()?;
        // Each certificate of a folder has two names, one of them made from its hash.
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        if metadata.len() > FILE_BYTES_MAX.min(self.bytes_left) {
            return Err(io::Error::other("it is too large"));
        }
        let mut text = Vec::new();
        place.open_file()?.take(FILE_BYTES_MAX.min(self.bytes_left)).read_to_end(&mut text)?;
        self.bytes_left -= text.len() as u64;
        self.roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).filter_map(Result::ok));
        Ok(())
    }
}

fn config(roots: RootCertStore) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Connections are kept instead. Tickets are as long as a server likes.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn version(found: &Metadata) -> [i64; 7] {
    let number = |number: u64| number.cast_signed();
    [
        number(found.dev()),
        number(found.ino()),
        number(found.len()),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_are_made_at_once_read_the_authorities_once() {
        let settings = Arc::new(Settings::new(|_| None, "/", &[]));
        let authorities = Authorities::new(Arc::default(), settings, Arc::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let config = || {
            let authorities = Arc::clone(&authorities);
            runtime.spawn(async move { authorities.config().await })
        };
        let all: Vec<_> = std::iter::repeat_with(config).take(64).collect();
        let all: Vec<_> = all.into_iter().map(|one| runtime.block_on(one).unwrap().unwrap()).collect();
        assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
    }
}
