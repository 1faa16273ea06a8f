//! Text on its way to whoever called: results are as long as the guest likes, so it is bounded, and counted in the guest's budget.

use std::fmt::{self, Write};
use std::sync::Arc;

use skiff_protocol::bytes_and_mi;

use crate::memory::budget::{Budget, Lease};

/// The longest text, in bytes.
const BYTES_MAX: usize = 16 << 20;
/// How much of it is part of what each connection takes of the host's share, in bytes. It is not counted.
const FREE_BYTES: usize = 64 << 10;

/// Text that grows within its bounds.
pub(super) struct Text {
    text: String,
    lease: Lease,
    /// Why it has not grown.
    refused: Option<String>,
}

impl Text {
    /// No text.
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self { text: String::new(), lease: Lease::new(budget), refused: None }
    }

    /// The text.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Writes all of something or, if there is no room for it, nothing.
    ///
    /// # Errors
    /// Why there is no room.
    pub(super) fn whole(&mut self, write: impl FnOnce(&mut Self) -> fmt::Result) -> Result<(), String> {
        let length = self.text.len();
        write(self).map_err(|fmt::Error| {
            self.text.truncate(length);
            self.refused.take().unwrap_or_default()
        })
    }

    /// Makes room for `more` bytes.
    fn reserve(&mut self, more: usize) -> Result<(), String> {
        let (length, capacity) = (self.text.len() + more, self.text.capacity());
        if length > BYTES_MAX {
            return Err(format!("it has more than {}", bytes_and_mi(BYTES_MAX as u64)));
        }
        if length > capacity {
            let grown = length.max(2 * capacity).min(BYTES_MAX);
            let counted = |bytes: usize| bytes.saturating_sub(FREE_BYTES) as u64;
            self.lease.take(counted(grown) - counted(capacity)).map_err(|denied| denied.to_string())?;
            self.text.reserve_exact(grown - self.text.len());
        }
        Ok(())
    }
}

impl Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.reserve(part.len()).map_err(|why| {
            self.refused = Some(why);
            fmt::Error
        })?;
        self.text.push_str(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use skiff_protocol::Account;

    use super::*;

    fn budget(limit_bytes: Option<u64>) -> Arc<Budget> {
        Budget::new(Vec::new(), limit_bytes, Account::keep_in(&Account::create().unwrap()).unwrap())
    }

    fn grow(text: &mut Text, bytes: usize) -> Result<(), String> {
        let part = "x".repeat(1000);
        text.whole(|text| (0..bytes / part.len()).try_for_each(|_| text.write_str(&part)))
    }

    #[test]
    fn what_finds_no_room_is_not_written_at_all() {
        let mut text = Text::new(&budget(Some(16 << 20)));
        assert_eq!(grow(&mut text, 1 << 20), Ok(()));
        let error = grow(&mut text, 12 << 20).unwrap_err();
        assert!(error.contains("its memories"), "{error}");
        assert_eq!(text.as_str().len(), (1 << 20) / 1000 * 1000);
        let mut text = Text::new(&budget(None));
        assert_eq!(grow(&mut text, BYTES_MAX + 1000).unwrap_err(), "it has more than 16777216 bytes (16Mi)");
        assert_eq!(grow(&mut text, BYTES_MAX), Ok(()));
    }

    #[test]
    fn text_is_counted_as_long_as_it_is_there() {
        let budget = budget(Some(16 << 20));
        let mut text = Text::new(&budget);
        grow(&mut text, 4 << 20).unwrap();
        assert!(budget.lease(6 << 20).is_err());
        drop(text);
        assert!(budget.lease(6 << 20).is_ok());
    }
}
