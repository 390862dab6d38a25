//! The agent killed at random instants while pods come and go.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::marks::{Dice, Marks, number, running};
use node_e2e::wait::{limit, within};
use node_e2e::{Node, status};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// Pods that stay, and places for pods that come and go.
const STEADY: u32 = 10;
const PLACES: u64 = 20;

/// What should run, and what must not have been touched.
struct Wanted {
    /// By name, the version whose manifest lies there.
    pods: BTreeMap<String, u32>,
    /// By UID, the container that was seen running while it was wanted.
    seen: HashMap<String, String>,
    next: u32,
}

impl Wanted {
    fn uids(&self) -> BTreeSet<String> {
        self.pods.iter().map(|(name, version)| Marks::uid(name, *version)).collect()
    }

    fn put(&mut self, node: &mut Node, marks: &Marks, name: &str) {
        self.remove_memory(name);
        self.next += 1;
        self.pods.insert(name.to_owned(), self.next);
        node.put(name, marks.pod(name, self.next));
    }

    fn remove(&mut self, node: &mut Node, name: &str) {
        self.remove_memory(name);
        if self.pods.remove(name).is_some() {
            node.remove(name);
        }
    }

    fn remove_memory(&mut self, name: &str) {
        if let Some(version) = self.pods.get(name) {
            self.seen.remove(&Marks::uid(name, *version));
        }
    }

    /// Whatever runs now and is wanted must run on, in the same container.
    async fn remember(&mut self, node: &Node) {
        let now = running(&node.cri).await.unwrap();
        for uid in self.uids() {
            let Some(ids) = now.get(&uid) else { continue };
            assert_eq!(ids.len(), 1, "{uid} runs in {ids:?}");
            let id = ids.iter().next().unwrap();
            let before = self.seen.entry(uid.clone()).or_insert_with(|| id.clone());
            assert_eq!(before, id, "{uid} runs in another container");
        }
    }

    /// Waits until exactly the wanted pods run.
    async fn settle(&self, node: &Node) {
        within(limit() * 2, "exactly the wanted pods run", async || {
            let now: BTreeSet<String> = running(&node.cri).await?.into_keys().collect();
            let wanted = self.uids();
            let missing: Vec<_> = wanted.difference(&now).collect();
            let surplus: Vec<_> = now.difference(&wanted).collect();
            if missing.is_empty() && surplus.is_empty() {
                return Ok(());
            }
            Err(format!("missing {missing:?}, surplus {surplus:?}"))
        })
        .await;
    }
}

#[tokio::test]
async fn an_agent_killed_again_and_again_loses_nothing_and_doubles_nothing() {
    let Some(mut node) = Node::start().await else { return };
    let (kills, mut dice) = (number("STEVEDORE_KILLS", 50), Dice::from_env());
    let marks = Marks::new(&node.dir);
    let mut wanted = Wanted { pods: BTreeMap::new(), seen: HashMap::new(), next: 0 };
    for n in 0..STEADY {
        wanted.put(&mut node, &marks, &format!("steady-{n}"));
    }
    wanted.settle(&node).await;
    for n in 0..PLACES {
        wanted.put(&mut node, &marks, &format!("place-{n}"));
    }
    for kill in 0..kills {
        for _ in 0..=dice.roll(4) {
            let name = format!("place-{}", dice.roll(PLACES));
            match dice.roll(3) {
                0 => wanted.remove(&mut node, &name),
                _ => wanted.put(&mut node, &marks, &name),
            }
        }
        // The instant of the kill is what is random here; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(dice.roll(1200))).await;
        wanted.remember(&node).await;
        node.kill9();
        if dice.roll(3) == 0 {
            wanted.put(&mut node, &marks, &format!("place-{}", dice.roll(PLACES)));
            wanted.remove(&mut node, &format!("place-{}", dice.roll(PLACES)));
        }
        node.launch().await;
        if kill % 10 == 9 {
            wanted.settle(&node).await;
            wanted.remember(&node).await;
            marks.none_ran_twice_at_once();
        }
    }
    wanted.settle(&node).await;
    wanted.remember(&node).await;
    marks.none_ran_twice_at_once();
    node.wait_healthy().await;
    for name in wanted.pods.keys() {
        node.wait_ready(name).await;
    }
    let pods = node.pods().await.unwrap();
    assert_eq!(pods.len(), wanted.pods.len());
    for n in 0..STEADY {
        let name = format!("steady-{n}");
        let pod = node.pod(&name).await.unwrap();
        assert_eq!(status::restarts(&pod, "c"), 0, "{name} was restarted");
        assert_eq!(marks.history(&name).len(), 1, "{name}: {:?}", marks.history(&name));
    }
    node.wait_clean().await;
    node.finish().await;
}

#[tokio::test]
async fn a_restart_of_the_agent_touches_no_container_and_no_condition() {
    let Some(mut node) = Node::start().await else { return };
    let marks = Marks::new(&node.dir);
    for n in 0..5 {
        node.put(&format!("p-{n}"), marks.pod(&format!("p-{n}"), 1));
    }
    let mut before = Vec::new();
    for n in 0..5 {
        before.push(node.wait_ready(&format!("p-{n}")).await);
    }
    let end = node.stop().await;
    assert!(end.success(), "{end}");
    node.launch().await;
    node.wait_healthy().await;
    for old in before {
        let name = status::name(&old).trim_end_matches(&format!("-{}", node.name)).to_owned();
        let new = node.wait_ready(&name).await;
        assert_eq!(status::container(&old, "c"), status::container(&new, "c"));
        assert_eq!(status::ip(&old), status::ip(&new));
        assert_eq!(marks.history(&name), ["start 1"]);
    }
    node.finish().await;
}
