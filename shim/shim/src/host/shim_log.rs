//! The shim's log: the fifo `log`, which containerd reads, in the bundle of the container that the shim was started for. Each line
//! names the pod.
//!
//! A line is dropped rather than waited for: the log must never stop the shim.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use containerd_shim::logger::FifoLogger;
use log::kv::{self, Key, Source, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};

/// The pod, once it is known.
static POD: OnceLock<String> = OnceLock::new();

/// Opens the log in the working directory. If there is none (the shim was started by hand), nothing is logged.
pub(crate) fn open(debug: bool) {
    // Also opened for reading, so that it neither waits for containerd nor fails when containerd is gone.
    let Ok(file) = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("log") else { return };
    if log::set_boxed_logger(Box::new(PodLogger { lines: FifoLogger::with_file(file), pod: &POD })).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
}

/// Names the pod in all further lines, as `NAMESPACE/NAME`. It is named once.
pub(crate) fn name_pod(pod: impl FnOnce() -> String) {
    POD.get_or_init(pod);
}

/// Adds the pod to each line.
struct PodLogger {
    lines: FifoLogger,
    pod: &'static OnceLock<String>,
}

impl Log for PodLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.lines.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let fields = Fields { pod: self.pod.get(), own: record.key_values() };
        let mut line = Record::builder();
        line.metadata(record.metadata().clone()).args(*record.args()).key_values(&fields);
        self.lines.log(&line.build());
    }

    fn flush(&self) {
        self.lines.flush();
    }
}

/// The fields of a line.
struct Fields<'a> {
    pod: Option<&'a String>,
    own: &'a dyn Source,
}

impl Source for Fields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        if let Some(pod) = self.pod {
            visitor.visit_pair(Key::from("pod"), pod.as_str().into())?;
        }
        self.own.visit(visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_names_the_pod_and_what_it_is_about() {
        static NAMED: OnceLock<String> = OnceLock::new();
        let file = tempfile::NamedTempFile::new().unwrap();
        let logger = PodLogger { lines: FifoLogger::with_file(file.reopen().unwrap()), pod: &NAMED };
        log::set_max_level(LevelFilter::Info);
        let fields = [("container", "c1"), ("step", "create")];
        let write = |text: &str| {
            logger.log(&Record::builder().args(format_args!("{text}")).key_values(&fields).build());
        };
        write("first");
        NAMED.set("shop/web-1".into()).unwrap();
        write("second");
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("first") && !lines[0].contains("pod="), "{text}");
        for part in ["second", "pod=\"shop/web-1\"", "container=\"c1\"", "step=\"create\""] {
            assert!(lines[1].contains(part), "no {part} in {text}");
        }
    }
}
