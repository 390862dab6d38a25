//! What of a pod is to be probed now: its containers that run and have probes, and at which address. Pure.

use crate::api::{self, Pod};
use crate::event::ContainerList;
use crate::pleg::observed::{Observed, State};
use crate::probe::{self, Target, Targets};
use std::net::IpAddr;
use std::sync::Arc;

/// Called by the actor at every plan. A pod on the node's network is asked at the first of `node_ips`.
pub(super) fn targets(pod: &Arc<Pod>, seen: &Observed, node_ips: &[IpAddr], terminating: bool) -> Targets {
    let spec = api::spec(pod);
    let lists = [
        (ContainerList::Init, spec.init_containers.as_deref().unwrap_or_default()),
        (ContainerList::Regular, spec.containers.as_slice()),
    ];
    let mut running = Vec::new();
    for (list, containers) in lists {
        for (index, c) in containers.iter().enumerate().filter(|(_, c)| probe::is_probed(c)) {
            let latest = seen.latest(&c.name).filter(|i| i.state == State::Running);
            running.extend(latest.map(|i| Target {
                list,
                index,
                instance: i.id.clone(),
                started_at: i.started_at,
            }));
        }
    }
    let ip = if spec.host_network.unwrap_or(false) {
        node_ips.first().copied()
    } else {
        seen.sandbox().and_then(|s| s.ips.first().copied())
    };
    Targets { pod: pod.clone(), terminating, ip, running }
}
