//! The shim's log: the fifo `log`, which containerd reads, in the bundle of the container that the shim was started for.
//!
//! A line is dropped rather than waited for: the log must never stop the shim.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use containerd_shim::logger::FifoLogger;
use log::LevelFilter;

/// Opens the log in the working directory. If there is none (the shim was started by hand), nothing is logged.
pub(crate) fn open(debug: bool) {
    // Also opened for reading, so that it neither waits for containerd nor fails when containerd is gone.
    let Ok(file) = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("log") else { return };
    if log::set_boxed_logger(Box::new(FifoLogger::with_file(file))).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
}
