//! Names to addresses, as the node's resolver has them. A leaf for whoever connects to a host by its name.
//!
//! The C library's resolver blocks a thread, for half a minute where no name server answers, and cannot be told to stop. So
//! there are only so many look-ups at once: blocking threads are needed for volumes, cgroups and logs. Whoever gives up
//! waiting leaves nothing behind; a look-up that was begun keeps its place until the resolver returns.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use tokio::sync::Semaphore;

/// Look-ups at once.
static PLACES: Semaphore = Semaphore::const_new(2);

/// The addresses of `host` (a name or an address), each with `port`. Waits as long as it takes: the caller brings the
/// deadline.
///
/// # Errors
/// The resolver's.
pub async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let host = host.to_owned();
    in_place(&PLACES, move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
}

async fn in_place<T: Send + 'static>(
    places: &'static Semaphore,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // Closed never.
    let place = places.acquire().await.map_err(io::Error::other)?;
    let work = move || {
        let done = work();
        drop(place);
        done
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn addresses_and_names_are_found() {
        let of = async |host: &str| resolve(host, 80).await.unwrap();
        assert_eq!(of("::1").await, ["[::1]:80".parse().unwrap()]);
        assert!(of("localhost").await.iter().all(|a| a.ip().is_loopback() && a.port() == 80));
    }

    #[test]
    fn lookups_that_hang_leave_threads_to_others() {
        static TWO: Semaphore = Semaphore::const_new(2);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(3)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut hung = Vec::new();
            for _ in 0..2 {
                let ((begun, began), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
                let work = move || {
                    begun.send(()).unwrap();
                    // Until the test lets it.
                    let _ = ended.recv();
                    Ok(())
                };
                let asked = tokio::spawn(in_place(&TWO, work));
                tokio::task::spawn_blocking(move || began.recv().unwrap()).await.unwrap();
                // Nobody waits for it any more.
                asked.abort();
                assert!(asked.await.unwrap_err().is_cancelled());
                hung.push(end);
            }
            for _ in 0..20 {
                let more = timeout(Duration::from_millis(1), in_place(&TWO, || Ok(())));
                assert!(more.await.is_err(), "there is no place");
            }
            // There is a thread.
            assert_eq!(tokio::task::spawn_blocking(|| 7).await.unwrap(), 7);
            drop(hung.pop());
            in_place(&TWO, || Ok(())).await.unwrap();
            drop(hung);
        });
    }
}
