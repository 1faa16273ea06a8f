//! How many connections each address has: no client may have them all.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most connections of one address.
const ADDRESS_MAX: usize = 4;

/// The connections of each address that has any.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One connection's place, until it is dropped.
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// A place for a connection of `address`, unless it has as many as it may.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        (*count < ADDRESS_MAX).then(|| {
            *count += 1;
            Place { places: self.clone(), address }
        })
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_has_four_connections_at_most_and_takes_none_from_others() {
        let places = Places::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
        let mut taken: Vec<_> = (0..4).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none());
        assert!(places.take(other).is_some());
        drop(taken.pop());
        taken.push(places.take(one).unwrap());
        assert!(places.take(one).is_none());
        drop(taken);
        assert!(places.counts().is_empty());
    }
}
