//! Slices made and removed through systemd's D-Bus interface, for `cgroupDriver: systemd`.
//!
//! [`Cgroups`](super::Cgroups) alone calls it. Every operation may be repeated: a unit that is there gets its values
//! again, one that is gone is as wanted. The connection is made over the system bus when it is first needed; one that
//! broke is replaced, and what it was asked for is asked again. It must never start another program, and never touch a
//! unit it was not named.
//!
//! systemd's own socket (`/run/systemd/private`) would do without a bus, but is no public interface: its messages carry
//! names that D-Bus does not allow for senders, at which the library panics.

#[cfg(test)]
mod fake;
mod link;
pub mod properties;
#[cfg(test)]
mod tests;

use super::Error;
use link::{Link, Removed};
use properties::Property;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use zbus::zvariant::{OwnedObjectPath, Value};

/// A slice is started in milliseconds; it is stopped once all in it is.
const JOB: Duration = Duration::from_secs(30);
/// No operation takes longer, whatever is tried again: a job, and the answers before it.
const ALL: Duration = Duration::from_secs(40);
/// Waits before a connection that failed is replaced: a bus that restarts is back, with systemd on it, within them.
const AGAIN_MS: [u64; 4] = [0, 50, 200, 750];
/// What goes on in a unit when a job for it is asked for gives way.
const REPLACE: &str = "replace";

/// The address of the machine's system bus: `DBUS_SYSTEM_BUS_ADDRESS`, or where it always is.
pub fn system_bus() -> String {
    std::env::var("DBUS_SYSTEM_BUS_ADDRESS")
        .unwrap_or_else(|_| "unix:path=/run/dbus/system_bus_socket".to_owned())
}

/// The handle.
#[derive(Debug)]
pub struct Systemd {
    bus: String,
    /// Held while connecting: one connection is made, however many want it.
    link: Mutex<Option<Arc<Link>>>,
}

/// How an attempt failed.
enum Failed {
    /// The connection, perhaps: worth another.
    Link(zbus::Error),
    /// systemd refused: the name of its error and the message.
    Refused(String, String),
    /// The job ended otherwise than wanted.
    Job(String),
}

impl From<zbus::Error> for Failed {
    fn from(error: zbus::Error) -> Self {
        /// What a bus answers when the manager is not there.
        const NO_PEER: [&str; 4] = ["NameHasNoOwner", "ServiceUnknown", "NoReply", "Disconnected"];
        match &error {
            zbus::Error::MethodError(name, text, _) => {
                let name = name.as_str().rsplit('.').next().unwrap_or_default().to_owned();
                if NO_PEER.contains(&name.as_str()) {
                    return Self::Link(error);
                }
                Self::Refused(name, text.clone().unwrap_or_default())
            }
            _ => Self::Link(error),
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Link(error) => write!(f, "D-Bus: {error}"),
            Self::Refused(name, text) => write!(f, "{name}: {text}"),
            Self::Job(how) => write!(f, "its job ended with {how:?}"),
        }
    }
}

impl Systemd {
    /// Connects later, over the bus at that address.
    pub fn new(bus: String) -> Self {
        Self { bus, link: Mutex::default() }
    }

    /// The slice `unit` is active and has `values`. `there` tells whether its cgroup is, which one that somebody
    /// defined before need not have been.
    pub async fn ensure(
        &self,
        unit: &str,
        values: &[Property],
        there: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), Error> {
        self.patiently("start", unit, |link| start(link, unit, values, there)).await
    }

    /// Gives the unit, which is somebody else's and there, `values` until the machine ends.
    pub async fn set(&self, unit: &str, values: &[Property]) -> Result<(), Error> {
        self.patiently("set properties of", unit, |link| set_once(link, unit, values)).await
    }

    /// The unit, and what is in it, is gone.
    pub async fn stop(&self, unit: &str) -> Result<(), Error> {
        self.patiently("stop", unit, |link| stop_once(link, unit)).await
    }

    /// Asks again over a new connection where one failed, as far as a bus that is restarted needs.
    async fn patiently<F>(
        &self,
        what: &'static str,
        unit: &str,
        ask: impl Fn(Arc<Link>) -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Failed>>,
    {
        let (until, mut waits) = (Instant::now() + ALL, AGAIN_MS.into_iter());
        let tried = async {
            loop {
                let result = match self.link().await {
                    Ok(link) => (ask(link.clone()).await, Some(link)),
                    Err(failed) => (Err(failed), None),
                };
                let ((Err(Failed::Link(_)), failed), Some(wait)) = (&result, waits.next()) else {
                    return result.0;
                };
                if let Some(failed) = failed {
                    self.forget(failed).await;
                }
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        };
        let late = |_| Err(Failed::Link(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
        tokio::time::timeout_at(until, tried).await.unwrap_or_else(late).map_err(|cause| Error::Systemd {
            what,
            unit: unit.to_owned(),
            cause: cause.to_string(),
        })
    }

    /// The connection, made anew where there is none that can be used.
    async fn link(&self) -> Result<Arc<Link>, Failed> {
        let mut kept = self.link.lock().await;
        if let Some(link) = kept.as_ref().filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        let fresh = Link::connect(&self.bus).await.map_err(Failed::Link)?;
        Ok(kept.insert(Arc::new(fresh)).clone())
    }

    /// Drops the connection that failed; another may have replaced it.
    async fn forget(&self, failed: &Arc<Link>) {
        self.link.lock().await.take_if(|kept| Arc::ptr_eq(kept, failed));
    }
}

async fn start(
    link: Arc<Link>,
    unit: &str,
    values: &[Property],
    there: &(dyn Fn() -> bool + Send + Sync),
) -> Result<(), Failed> {
    let ends = link.ends_of(unit);
    let of_slice = properties::of_slice(unit);
    let all: Vec<(&str, &Value<'_>)> = of_slice.iter().chain(values).map(|(n, v)| (*n, v)).collect();
    let no_others: Vec<(&str, Vec<(&str, &Value<'_>)>)> = Vec::new();
    match link.call("StartTransientUnit", &(unit, REPLACE, &all, &no_others)).await.map_err(Failed::from) {
        Ok(job) => ended(ends, &job.body().deserialize()?).await,
        Err(Failed::Refused(name, _)) if name == "UnitExists" => {
            let own: Vec<(&str, &Value<'_>)> = values.iter().map(|(n, v)| (*n, v)).collect();
            link.call("SetUnitProperties", &(unit, true, &own)).await?;
            if there() {
                return Ok(());
            }
            let job = link.call("StartUnit", &(unit, REPLACE)).await?;
            ended(ends, &job.body().deserialize()?).await
        }
        Err(failed) => Err(failed),
    }
}

async fn set_once(link: Arc<Link>, unit: &str, values: &[Property]) -> Result<(), Failed> {
    let own: Vec<(&str, &Value<'_>)> = values.iter().map(|(n, v)| (*n, v)).collect();
    link.call("SetUnitProperties", &(unit, true, &own)).await?;
    Ok(())
}

async fn stop_once(link: Arc<Link>, unit: &str) -> Result<(), Failed> {
    let ends = link.ends_of(unit);
    match link.call("StopUnit", &(unit, REPLACE)).await.map_err(Failed::from) {
        Ok(job) => ended(ends, &job.body().deserialize()?).await,
        Err(Failed::Refused(name, _)) if name == "NoSuchUnit" => Ok(()),
        Err(failed) => Err(failed),
    }
}

/// Waits for the end of `job`.
async fn ended(mut ends: mpsc::UnboundedReceiver<Removed>, job: &OwnedObjectPath) -> Result<(), Failed> {
    let wait = async {
        while let Some((which, how)) = ends.recv().await {
            if which == *job {
                return if how == "done" { Ok(()) } else { Err(Failed::Job(how)) };
            }
        }
        // Whether it was done the next attempt finds out.
        Err(Failed::Link(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()))
    };
    match tokio::time::timeout(JOB, wait).await {
        Ok(result) => result,
        Err(_) => Err(Failed::Job(format!("nothing within {} s", JOB.as_secs()))),
    }
}
