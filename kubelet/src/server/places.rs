//! The places for connections to one port, and who makes room when all are taken: the oldest connection that has shown no
//! good certificate. So nobody whom the node does not know can keep out whom it knows. Where all are known, new ones wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The places of one port.
#[derive(Debug)]
pub struct Places {
    max: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

/// By the order in which they were taken.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    seats: BTreeMap<u64, Seat>,
}

#[derive(Clone, Debug)]
struct Seat {
    known: Arc<AtomicBool>,
    leave: CancellationToken,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    seat: Seat,
}

impl Places {
    /// `max` of them.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: Mutex::default(), freed: Notify::new() })
    }

    /// A place for one more connection, for one who asks at a time. Waits while all are taken by known peers.
    pub async fn take(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            // One that was freed since is remembered.
            self.freed.notified().await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.seats.len() >= self.max {
            let unknown = |(_, seat): &(&u64, &Seat)| !seat.known.load(Ordering::Relaxed);
            let number = *taken.seats.iter().find(unknown)?.0;
            if let Some(seat) = taken.seats.remove(&number) {
                seat.leave.cancel();
            }
        }
        let (number, seat) = (taken.next, Seat { known: Arc::default(), leave: CancellationToken::new() });
        taken.next += 1;
        taken.seats.insert(number, seat.clone());
        Some(Place { places: self.clone(), number, seat })
    }
}

impl Place {
    /// To be set once the peer is known.
    pub fn known(&self) -> Arc<AtomicBool> {
        self.seat.known.clone()
    }

    /// Waits until the place is wanted for another connection.
    pub async fn wanted(&self) {
        self.seat.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.seats.remove(&self.number).is_some() {
            self.places.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn wanted(place: &Place) -> bool {
        place.wanted().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_oldest_unknown_connection_makes_room_and_known_ones_stay() {
        let places = Places::new(3);
        let (a, b, c) = (places.take().await, places.take().await, places.take().await);
        a.known().store(true, Ordering::Relaxed);
        let d = places.take().await;
        assert_eq!([&a, &b, &c, &d].map(wanted), [false, true, false, false]);
        // That it goes frees no second place.
        drop(b);
        let e = places.take().await;
        assert_eq!([&a, &c, &d, &e].map(wanted), [false, true, false, false]);
        drop((c, d));
        let f = places.take().await;
        assert_eq!([&a, &e, &f].map(wanted), [false; 3], "there was room");
    }

    #[tokio::test]
    async fn where_all_are_known_one_more_waits_until_one_goes() {
        let places = Places::new(2);
        let (a, b) = (places.take().await, places.take().await);
        for place in [&a, &b] {
            place.known().store(true, Ordering::Relaxed);
        }
        let mut more = Box::pin(places.take());
        assert!(more.as_mut().now_or_never().is_none());
        drop(a);
        let more = more.await;
        assert_eq!([&b, &more].map(wanted), [false; 2]);
    }
}
