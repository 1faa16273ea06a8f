//! The machine's own figures.

use anyhow::{Context, Result};

/// How much memory there is.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// What new programs could have.
    pub(crate) available_bytes: u64,
    /// What the kernel holds for processes: its objects, stacks, page tables and what it has for each processor.
    pub(crate) kernel_bytes: u64,
}

impl Memory {
    /// The machine's memory now.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn now() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/meminfo")?)
    }

    fn parse(text: &str) -> Result<Self> {
        let bytes = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let line = line.with_context(|| format!("there is no `{name}` in /proc/meminfo"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        let kernels = ["Slab", "KernelStack", "PageTables", "Percpu"].map(bytes);
        Ok(Self { available_bytes: bytes("MemAvailable")?, kernel_bytes: kernels.into_iter().sum::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_memory_is_the_sum_of_its_parts() {
        let text =
            "MemTotal: 9 kB\nMemAvailable:   7 kB\nSlab: 1 kB\nKernelStack: 2 kB\nPageTables: 3 kB\nPercpu: 4 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!((memory.available_bytes, memory.kernel_bytes), (7 << 10, 10 << 10));
        assert!(Memory::parse("Slab: 1 kB\n").is_err());
    }
}
