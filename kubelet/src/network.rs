//! Whether the runtime has a network for pods: its condition `NetworkReady`.
//!
//! The steps of a pod ask before its sandbox is made; pods on the node's network need not. CRI tells of no change, so the
//! runtime is asked when somebody wants to know, once for those that come together; while it has no network one task asks
//! it every second for all who wait. Nothing is asked on an idle node.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the runtime is asked while it has no network.
const POLL: Duration = Duration::from_secs(1);
/// How long it is believed that it has one: what the stock agent knows is as old at most.
const BELIEVED: Duration = Duration::from_secs(5);

/// Why there is no network, in upstream's words.
pub type WhyNot = Arc<str>;

/// The handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: cri::Client,
    /// Something, as long as the task asks.
    why_not: watch::Sender<Option<WhyNot>>,
    /// When it last said that it has a network.
    ready: Mutex<Option<Instant>>,
}

impl Network {
    /// That of `runtime`.
    pub fn new(runtime: cri::Client) -> Self {
        Self(Arc::new(Inner { runtime, why_not: watch::Sender::new(None), ready: Mutex::default() }))
    }

    /// Asks, unless the task does already. A runtime that does not answer is no reason to wait: whatever is asked of it
    /// next says more.
    ///
    /// # Errors
    /// Why a pod cannot have a network now.
    pub async fn ready(&self) -> Result<(), WhyNot> {
        if let Some(why) = &*self.0.why_not.borrow() {
            return Err(why.clone());
        }
        let believed = *self.0.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if believed.is_some_and(|at| at.elapsed() < BELIEVED) {
            return Ok(());
        }
        let why = match why_not(&self.0.runtime).await {
            Ok(Some(why)) => why,
            Ok(None) => {
                *self.0.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        if self.0.why_not.send_replace(Some(why.clone())).is_none() {
            tracing::warn!(%why, "pods wait for the network");
            tokio::spawn(poll(Arc::downgrade(&self.0)));
        }
        Err(why)
    }

    /// Resolves when there is a network, as far as is known. Cancel-safe.
    pub async fn until_ready(&self) {
        // The sender is `self`'s.
        let _ = self.0.why_not.subscribe().wait_for(Option::is_none).await;
    }
}

/// Ends when there is a network, or nobody any more to wait for it.
async fn poll(network: Weak<Inner>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(network) = network.upgrade() else { return };
        // While the runtime is away nothing is news.
        let Ok(now) = why_not(&network.runtime).await else { continue };
        let ready = now.is_none();
        network.why_not.send_replace(now);
        if ready {
            return;
        }
    }
}

async fn why_not(runtime: &cri::Client) -> cri::Result<Option<WhyNot>> {
    let status = runtime.status(false).await?.status.unwrap_or_default();
    let Some(c) = status.conditions.iter().find(|c| c.r#type == "NetworkReady") else {
        return Ok(Some("container runtime network not ready: the runtime tells no NetworkReady".into()));
    };
    let cri::v1::RuntimeCondition { r#type, status, reason, message } = c;
    let text =
        || format!("container runtime network not ready: {type}={status} reason:{reason} message:{message}");
    Ok((!status).then(|| text().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::fake::FakeRuntime;

    fn asked(fake: &FakeRuntime) -> usize {
        fake.calls().iter().filter(|c| c.method == "Status").count()
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_share_one_question_a_second_and_are_woken_together() {
        let fake = FakeRuntime::builder().build();
        let runtime = fake.client();
        runtime.connected().await;
        let network = Network::new(runtime);
        let first = asked(&fake);
        for _ in 0..100 {
            network.ready().await.unwrap();
        }
        assert_eq!(asked(&fake), first + 1, "one question for those that come together");
        tokio::time::sleep(BELIEVED).await;
        fake.set_condition("NetworkReady", false, "NetworkPluginNotReady", "cni plugin not initialized");
        let why = network.ready().await.unwrap_err();
        assert_eq!(
            &*why,
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
             message:cni plugin not initialized"
        );
        let before = asked(&fake);
        for _ in 0..100 {
            assert!(network.ready().await.is_err());
        }
        assert_eq!(asked(&fake), before, "the task asks for them");
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let network = network.clone();
                tokio::spawn(async move { network.until_ready().await })
            })
            .collect();
        tokio::time::sleep(10 * POLL + POLL / 2).await;
        assert_eq!(asked(&fake), before + 10);
        assert!(waiting.iter().all(|w| !w.is_finished()));
        fake.set_condition("NetworkReady", true, "", "");
        for w in waiting {
            tokio::time::timeout(POLL, w).await.expect("woken").unwrap();
        }
        network.ready().await.unwrap();
        let settled = asked(&fake);
        tokio::time::sleep(60 * POLL).await;
        assert_eq!(asked(&fake), settled, "nothing is asked while there is a network");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_does_not_answer_changes_nothing() {
        let fake = FakeRuntime::builder().build();
        let runtime = fake.client();
        runtime.connected().await;
        let network = Network::new(runtime);
        fake.refuse_all(true);
        assert!(network.ready().await.is_ok(), "what is asked next says more");
        fake.refuse_all(false);
        fake.set_condition("NetworkReady", false, "", "");
        assert!(network.ready().await.is_err());
        fake.refuse_all(true);
        tokio::time::sleep(5 * POLL).await;
        assert!(network.ready().await.is_err());
        fake.set_condition("NetworkReady", true, "", "");
        fake.refuse_all(false);
        tokio::time::timeout(2 * POLL, network.until_ready()).await.expect("asked on");
    }
}
