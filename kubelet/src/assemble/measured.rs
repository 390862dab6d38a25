//! Which pods `stats` measures: those the directory names and pleg has seen a sandbox of.

use crate::api::{Pod, PodRef};
use crate::pleg::Pleg;
use crate::pleg::observed::{Instance, State};
use crate::pod::translate::resources::qos_class;
use crate::stats::{Population, Subject, Unit};
use crate::world::Directory;
use std::collections::HashSet;
use std::sync::Arc;

/// The node's pods as they run now.
#[derive(Debug)]
pub struct Measured {
    /// What should run.
    pub directory: Directory,
    /// What does.
    pub pleg: Pleg,
}

impl Population for Measured {
    fn subjects(&self) -> Vec<Subject> {
        let subject = |pod: Arc<Pod>| {
            let id = PodRef::of(&pod);
            let seen = self.pleg.seen(&id.uid)?.borrow().clone();
            let sandbox = seen.sandbox()?;
            let sandbox = Unit { id: sandbox.id.clone(), created_at: sandbox.created_at, ..Unit::default() };
            // Newest first, so that a restarted container counts once.
            let mut named = HashSet::new();
            let running = seen.containers.iter().filter(|c| c.state == State::Running);
            let containers = running.filter(|c| named.insert(c.name.as_str())).map(unit).collect();
            Some(Subject { id, qos: qos_class(&pod), pod, sandbox, containers })
        };
        self.directory.all().into_iter().filter_map(subject).collect()
    }
}

fn unit(c: &Instance) -> Unit {
    Unit { id: c.id.clone(), name: c.name.clone(), image: c.image.clone(), created_at: c.created_at }
}
