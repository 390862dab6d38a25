//! One connection with systemd's manager: calls, and the ends of jobs as its signal `JobRemoved` tells them.
//!
//! Made and replaced by [`super::Systemd`]. A job's end can be told before the call that made the job is answered, so
//! whoever makes one listens first, by the name of the unit.

use futures::StreamExt;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::zvariant::{DynamicType, ObjectPath, OwnedObjectPath};
use zbus::{Connection, MatchRule, Message, MessageStream};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Answers take milliseconds; a manager that is re-executed or reloads its units takes seconds.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// Signals that may wait to be read: a burst of pods makes a few jobs each.
const QUEUE: usize = 1024;

/// The end of a job: which, and how (`done`, `failed`, `canceled`, `timeout`, `dependency`, …).
pub type Removed = (OwnedObjectPath, String);

/// Who waits for the jobs of which unit; `None` once the connection is gone.
type Waiting = Arc<Mutex<Option<HashMap<String, Vec<mpsc::UnboundedSender<Removed>>>>>>;

/// A connection.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    waiting: Waiting,
    reader: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Link {
    /// Connects over the bus at `address`; gives up on one that takes the connection and does not answer.
    pub async fn connect(address: &str) -> zbus::Result<Self> {
        let late =
            |_| std::io::Error::new(ErrorKind::TimedOut, format!("no answer within {} s", ANSWER.as_secs()));
        tokio::time::timeout(ANSWER, Self::connect_patiently(address)).await.map_err(late)?
    }

    async fn connect_patiently(address: &str) -> zbus::Result<Self> {
        let connection = Builder::address(address)?.method_timeout(ANSWER).max_queued(QUEUE).build().await?;
        let ends = MatchRule::builder()
            .msg_type(Type::Signal)
            // Anybody may send signals with its path.
            .sender(NAME)?
            .path(PATH)?
            .interface(MANAGER)?
            .member("JobRemoved")?
            .build();
        let signals = MessageStream::for_match_rule(ends, &connection, Some(QUEUE)).await?;
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(read(signals, waiting.clone())).abort_handle();
        let link = Self { connection, waiting, reader };
        // Without a subscriber the manager sends no signals.
        link.call("Subscribe", &()).await?;
        Ok(link)
    }

    /// Whether it can still be used.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed() || self.reader.is_finished()
    }

    /// Calls a method of the manager.
    pub async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + DynamicType,
    {
        self.connection.call_method(Some(NAME), PATH, Some(MANAGER), method, body).await
    }

    /// From now on every end of a job of `unit`; nothing more once the connection is gone.
    pub fn ends_of(&self, unit: &str) -> mpsc::UnboundedReceiver<Removed> {
        let (tell, ends) = mpsc::unbounded_channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = waiting.as_mut() {
            // Who gave up is forgotten.
            waiting.retain(|_, who| {
                who.retain(|w| !w.is_closed());
                !who.is_empty()
            });
            waiting.entry(unit.to_owned()).or_default().push(tell);
        }
        ends
    }
}

async fn read(mut signals: MessageStream, waiting: Waiting) {
    let told = |message: &Message| -> Option<()> {
        let body = message.body();
        let (_, job, unit, result): (u32, ObjectPath<'_>, &str, &str) = body.deserialize().ok()?;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for who in waiting.as_mut()?.get(unit)? {
            // It may have given up meanwhile.
            let _ = who.send((job.to_owned().into(), result.to_owned()));
        }
        Some(())
    };
    while let Some(Ok(message)) = signals.next().await {
        told(&message);
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
}
