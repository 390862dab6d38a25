//! An in-memory runtime that serves CRI: for tests of whoever calls a runtime. Feature `fake`.
//!
//! [`FakeRuntime`] keeps sandboxes, containers and images by containerd's rules, serves them over a real unix socket
//! ([`FakeRuntime::serve`]) or in memory ([`FakeRuntime::connector`]), records every call, and commits the faults it is
//! ordered to. It uses tokio's clock only, so tests may pause it; with a paused clock use the in-memory connection, for
//! a clock that advances by itself does not wait for sockets. No process runs and no network exists; only log files and
//! checkpoints are written, and only when asked for.
//!
//! ```
//! use cri::fake::{FakeRuntime, Fault, Script};
//! use std::time::Duration;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! let fake = FakeRuntime::builder().any_image().build();
//! fake.script("web", Script::forever().on_term(0, Duration::from_secs(2)));
//! fake.script("job", Script::exits(3, Duration::from_secs(10)));
//! let slow = fake.fault(Fault::delay("StartContainer", Duration::from_secs(5)).object("web").once());
//! let client = fake.client();
//! assert_eq!(client.version().await.unwrap().runtime_name, "containerd");
//! assert_eq!(slow.hits(), 0);
//! # });
//! ```

mod fault;
mod host;
mod image;
mod log;
mod profile;
mod record;
mod runtime;
mod script;
mod stats;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tonic::Status;

pub use self::fault::{Fault, FaultHandle};
pub use self::host::Served;
pub use self::profile::Profile;
pub use self::record::Call;
pub use self::script::{ExecAnswer, FakeImage, Pull, Script};

use self::fault::{Effect, Faults, Point};
use self::host::Host;
use self::record::{Named, Records};
use self::world::World;
use crate::{Client, Connector, v1};

type Exec = Arc<dyn Fn(&[String]) -> ExecAnswer + Send + Sync>;
type EventSink = mpsc::UnboundedSender<Result<v1::ContainerEventResponse, Status>>;

/// A runtime in memory. Clones are the same runtime.
#[derive(Clone)]
pub struct FakeRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    profile: Profile,
    write_logs: bool,
    started: Instant,
    epoch: Duration,
    /// By how many nanoseconds the clock was set.
    jumped: AtomicI64,
    state: Mutex<State>,
    host: Mutex<Host>,
    /// Counts changes, for [`FakeRuntime::until`].
    changes: watch::Sender<u64>,
}

/// Everything behind the lock.
struct State {
    world: World,
    records: Records,
    faults: Faults,
    execs: BTreeMap<String, Exec>,
    subscribers: Vec<EventSink>,
    events_to_lose: u32,
    refusing: bool,
    conditions: Vec<v1::RuntimeCondition>,
    handlers: Vec<v1::RuntimeHandler>,
    features: v1::RuntimeFeatures,
    cgroup_driver: v1::CgroupDriver,
    container_stats: BTreeMap<String, v1::ContainerStats>,
    sandbox_stats: BTreeMap<String, v1::PodSandboxStats>,
    image_fs: v1::ImageFsInfoResponse,
}

/// How a fake begins; see [`FakeRuntime::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    profile: Profile,
    any_image: bool,
    dual_stack: bool,
    write_logs: bool,
    epoch: Option<Duration>,
    cgroup_driver: v1::CgroupDriver,
    handlers: Vec<v1::RuntimeHandler>,
    features: v1::RuntimeFeatures,
}

impl Builder {
    /// The runtime to pose as; [`Profile::Containerd21`] unless told.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Every image reference is there when it is asked for. Otherwise only those of [`FakeRuntime::add_image`].
    pub fn any_image(mut self) -> Self {
        self.any_image = true;
        self
    }

    /// Sandboxes get an IPv6 address beside the IPv4 one.
    pub fn dual_stack(mut self) -> Self {
        self.dual_stack = true;
        self
    }

    /// Containers write what they print into their log files, in CRI's log format.
    pub fn write_logs(mut self) -> Self {
        self.write_logs = true;
        self
    }

    /// The time that the fake's clock shows at its start, since 1970. The machine's time unless told.
    pub fn epoch(mut self, since_1970: Duration) -> Self {
        self.epoch = Some(since_1970);
        self
    }

    /// What RuntimeConfig says; cgroupfs unless told.
    pub fn cgroup_driver(mut self, driver: v1::CgroupDriver) -> Self {
        self.cgroup_driver = driver;
        self
    }

    /// Another runtime handler beside the default one and `runc`.
    pub fn handler(mut self, name: impl Into<String>, features: v1::RuntimeHandlerFeatures) -> Self {
        self.handlers.push(v1::RuntimeHandler { name: name.into(), features: Some(features) });
        self
    }

    /// Features of the runtime as a whole; the supplemental groups policy unless told.
    pub fn features(mut self, features: v1::RuntimeFeatures) -> Self {
        self.features = features;
        self
    }

    /// The runtime, with nothing in it.
    #[must_use]
    pub fn build(self) -> FakeRuntime {
        let since_1970 = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let handlers: BTreeSet<String> = self.handlers.iter().map(|h| h.name.clone()).collect();
        let mut world = World::new(handlers);
        world.any_image = self.any_image;
        world.dual_stack = self.dual_stack;
        let ready =
            |kind: &str| v1::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let state = State {
            world,
            records: Records::default(),
            faults: Faults::default(),
            execs: BTreeMap::new(),
            subscribers: Vec::new(),
            events_to_lose: 0,
            refusing: false,
            conditions: vec![ready("RuntimeReady"), ready("NetworkReady")],
            handlers: self.handlers,
            features: self.features,
            cgroup_driver: self.cgroup_driver,
            container_stats: BTreeMap::new(),
            sandbox_stats: BTreeMap::new(),
            image_fs: v1::ImageFsInfoResponse::default(),
        };
        let shared = Shared {
            profile: self.profile,
            write_logs: self.write_logs,
            started: Instant::now(),
            epoch: self.epoch.unwrap_or_else(since_1970),
            jumped: AtomicI64::new(0),
            state: Mutex::new(state),
            host: Mutex::default(),
            changes: watch::channel(0).0,
        };
        FakeRuntime { shared: Arc::new(shared) }
    }
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::builder().build()
    }
}

impl fmt::Debug for FakeRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("FakeRuntime")
            .field("profile", &self.shared.profile)
            .field("sandboxes", &state.world.sandboxes.len())
            .field("containers", &state.world.containers.len())
            .finish_non_exhaustive()
    }
}

/// Making and reaching it.
impl FakeRuntime {
    /// A containerd 2.1 without images, to be configured.
    pub fn builder() -> Builder {
        let features =
            v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
        let handler = |name: &str| v1::RuntimeHandler { name: name.into(), features: Some(features) };
        Builder {
            profile: Profile::default(),
            any_image: false,
            dual_stack: false,
            write_logs: false,
            epoch: None,
            cgroup_driver: v1::CgroupDriver::Cgroupfs,
            handlers: vec![handler(""), handler("runc")],
            features: v1::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() },
        }
    }

    /// A client with all defaults, connected in memory.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::builder(self.connector()).build()
    }

    /// Connects in memory; for [`Client::builder`].
    #[must_use]
    pub fn connector(&self) -> Connector {
        let fake = self.clone();
        Connector::from_fn("fake runtime", move || {
            let connection = fake.accept_in_memory();
            async move { connection }
        })
    }

    /// Serves on a unix socket until the returned guard is dropped, which removes the socket. A socket that is there is
    /// replaced.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub async fn serve(&self, socket: impl AsRef<Path>) -> std::io::Result<Served> {
        host::serve(self, socket.as_ref()).await
    }
}

/// The script.
impl FakeRuntime {
    /// What containers of this name do; `pod/container` for those of one pod only.
    pub fn script(&self, container: impl Into<String>, script: Script) {
        self.scripts(container, [script]);
    }

    /// What containers of this name do, one after the other; the last one goes for all that follow.
    pub fn scripts(&self, container: impl Into<String>, scripts: impl IntoIterator<Item = Script>) {
        self.state().world.scripts.insert(container.into(), scripts.into_iter().collect());
    }

    /// What ExecSync in containers of this name answers. Without one, every command exits with 0 and prints nothing.
    pub fn exec(
        &self,
        container: impl Into<String>,
        answer: impl Fn(&[String]) -> ExecAnswer + Send + Sync + 'static,
    ) {
        self.state().execs.insert(container.into(), Arc::new(answer));
    }

    /// Puts an image on the disk.
    pub fn add_image(&self, image: FakeImage) {
        self.state().world.add_image(image.0);
    }

    /// What a pull of this reference does.
    pub fn on_pull(&self, reference: &str, pull: Pull) {
        self.state().world.registry.insert(script::full_name(reference), pull);
    }

    /// What ImageFsInfo answers.
    pub fn set_image_fs(&self, info: v1::ImageFsInfoResponse) {
        self.state().image_fs = info;
    }

    /// What the statistics of containers of this name (or id) are. Attributes are filled in.
    pub fn set_container_stats(&self, container: impl Into<String>, stats: v1::ContainerStats) {
        self.state().container_stats.insert(container.into(), stats);
    }

    /// What the statistics of the sandbox of this pod name (or id) are. Attributes and containers are filled in.
    pub fn set_sandbox_stats(&self, pod: impl Into<String>, stats: v1::PodSandboxStats) {
        self.state().sandbox_stats.insert(pod.into(), stats);
    }

    /// A condition of Status, such as `NetworkReady`: false comes with this reason and message.
    pub fn set_condition(&self, kind: &str, status: bool, reason: &str, message: &str) {
        let condition = v1::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: reason.into(),
            message: message.into(),
        };
        let conditions = &mut self.state().conditions;
        match conditions.iter_mut().find(|c| c.r#type == kind) {
            Some(old) => *old = condition,
            None => conditions.push(condition),
        }
    }
}

/// Things that happen without a call.
impl FakeRuntime {
    /// A running container's process ends with this code.
    pub fn exit(&self, container: &str, code: i32) {
        self.change(|world, now| world.container_exits(container, code, now));
    }

    /// The sandbox's process dies: not ready, without addresses. Its containers go on.
    pub fn kill_sandbox(&self, sandbox: &str) {
        self.change(|world, now| world.sandbox_dies(sandbox, now));
    }

    /// The runtime loses sight of a running container: `CONTAINER_UNKNOWN`, until it is stopped or removed.
    pub fn lose_sight(&self, container: &str) {
        self.change(|world, _| {
            if let Ok(container) = world.container(container) {
                container.state = v1::ContainerState::ContainerUnknown;
            }
        });
    }
}

/// Faults.
impl FakeRuntime {
    /// Orders a fault.
    pub fn fault(&self, fault: Fault) -> FaultHandle {
        self.state().faults.order(fault)
    }

    /// Every call gives `Unavailable` ("server is not initialized yet", as containerd while it starts) from now on, or no
    /// longer.
    pub fn refuse_all(&self, refuse: bool) {
        self.state().refusing = refuse;
    }

    /// What RuntimeConfig says from now on.
    pub fn set_cgroup_driver(&self, driver: v1::CgroupDriver) {
        self.state().cgroup_driver = driver;
    }

    /// The next so many events reach nobody.
    pub fn lose_events(&self, events: u32) {
        self.state().events_to_lose = events;
    }

    /// Ends all event streams with `Unavailable`. Connections stay.
    pub fn drop_event_streams(&self) {
        for subscriber in std::mem::take(&mut self.state().subscribers) {
            // Whoever is gone needs no telling.
            let _ = subscriber.send(Err(Status::unavailable("transport is closing")));
        }
    }

    /// The runtime goes away: all connections break, calls under way have no effect any more, new connections are
    /// refused. Containers go on, as containerd's do, and nobody hears of their events.
    pub fn go_down(&self) {
        self.host().down = true;
        self.break_connections();
    }

    /// The runtime is back, with everything it had.
    pub fn come_back(&self) {
        self.host().down = false;
    }

    /// [`FakeRuntime::go_down`] and [`FakeRuntime::come_back`].
    pub fn restart(&self) {
        self.break_connections();
    }

    fn break_connections(&self) {
        self.state().subscribers.clear();
        self.host().break_all();
    }
}

/// What a test looks at.
impl FakeRuntime {
    /// All calls so far, in the order they came in.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().records.all().to_vec()
    }

    /// The calls that are not merely reads.
    #[must_use]
    pub fn changes(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|c| !c.is_read()).collect()
    }

    /// The requests of all calls of that message's kind: `fake.requests::<v1::StartContainerRequest>()`.
    #[must_use]
    pub fn requests<M: Clone + 'static>(&self) -> Vec<M> {
        self.calls().iter().filter_map(|c| c.request::<M>().cloned()).collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.state().records.clear();
    }

    /// All containers, as ContainerStatus has them, oldest first.
    #[must_use]
    pub fn containers(&self) -> Vec<v1::ContainerStatus> {
        let state = self.state();
        let mut all: Vec<_> =
            state.world.containers.values().map(|c| state.world.container_status(c)).collect();
        all.sort_by_key(|c| c.created_at);
        all
    }

    /// All sandboxes, as PodSandboxStatus has them, oldest first.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<v1::PodSandboxStatus> {
        let mut all: Vec<_> = self.state().world.sandboxes.values().map(world::Sandbox::status).collect();
        all.sort_by_key(|s| s.created_at);
        all
    }

    /// How many listen to events.
    #[must_use]
    pub fn event_streams(&self) -> usize {
        let mut state = self.state();
        state.subscribers.retain(|s| !s.is_closed());
        state.subscribers.len()
    }

    /// Nanoseconds since 1970 by the fake's clock, which runs as tokio's does.
    #[must_use]
    pub fn now(&self) -> i64 {
        let now = self.shared.epoch + self.shared.started.elapsed();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        now.saturating_add(self.shared.jumped.load(Ordering::Relaxed))
    }

    /// Sets the fake's clock: so many nanoseconds forward, or back.
    pub fn jump(&self, nanos: i64) {
        self.shared.jumped.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Waits until the condition holds; it is looked at now, and after every call's beginning and end and everything that
    /// happens.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        while !condition(self) {
            changes.borrow_and_update();
            if condition(self) {
                return;
            }
            // The sender is held by `self`.
            let _ = changes.changed().await;
        }
    }
}

/// What the services share.
impl FakeRuntime {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.shared.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.shared.changes.send_modify(|n| *n += 1);
    }

    /// Changes the world, and tells subscribers what happened.
    fn change<T>(&self, change: impl FnOnce(&mut World, i64) -> T) -> T {
        let now = self.now();
        let mut state = self.state();
        let result = change(&mut state.world, now);
        let happened = std::mem::take(&mut state.world.happened);
        if self.shared.profile.sends_events() {
            for event in happened {
                if state.events_to_lose > 0 {
                    state.events_to_lose -= 1;
                    continue;
                }
                state.subscribers.retain(|s| s.send(Ok(event.clone())).is_ok());
            }
        }
        drop(state);
        self.changed();
        result
    }

    /// After so long, ends the container's process, if the fake still exists then.
    fn exit_after(&self, container: &str, code: i32, after: Duration) {
        let (shared, container) = (Arc::downgrade(&self.shared), container.to_owned());
        tokio::spawn(async move {
            sleep(after).await;
            if let Some(shared) = shared.upgrade() {
                FakeRuntime { shared }.exit(&container, code);
            }
        });
    }

    /// One call: recorded, refused or struck by faults as ordered, and in between its effect.
    async fn handle<M, T, F, Fut>(&self, message: M, effect: F) -> Result<tonic::Response<T>, Status>
    where
        M: Named + Clone + Send + Sync + 'static,
        F: FnOnce(Self, M) -> Fut + Send,
        Fut: Future<Output = Result<T, Status>> + Send,
        T: Send,
    {
        let call = M::CALL;
        let (names, at) = {
            let mut state = self.state();
            let names = message.names(&state.world);
            (names.clone(), state.records.begin(call, names, message.clone()))
        };
        self.changed();
        let result = self.effect(call, &names, message, effect).await;
        self.state().records.end(at, result.as_ref().err().map_or(tonic::Code::Ok, Status::code));
        self.changed();
        result.map(tonic::Response::new)
    }

    async fn effect<M, T, F, Fut>(
        &self,
        call: &str,
        names: &[String],
        message: M,
        effect: F,
    ) -> Result<T, Status>
    where
        F: FnOnce(Self, M) -> Fut + Send,
        Fut: Future<Output = Result<T, Status>> + Send,
        M: Send,
        T: Send,
    {
        if self.state().refusing {
            return Err(Status::unavailable("server is not initialized yet"));
        }
        if self.shared.profile.lacks(call) {
            let service = if record::IMAGE_CALLS.contains(&call) { "ImageService" } else { "RuntimeService" };
            return Err(Status::unimplemented(format!(
                "unknown method {call} for service runtime.v1.{service}"
            )));
        }
        let before = self.state().faults.strike(call, names, Point::Before);
        for (effect, handle) in before {
            match effect {
                Effect::Delay(by) => sleep(by).await,
                Effect::Hang => handle.released().await,
                Effect::Fail(status) => return Err(status),
                _ => {}
            }
        }
        let answer = effect(self.clone(), message).await?;
        let after = self.state().faults.strike(call, names, Point::After);
        for (effect, handle) in after {
            match effect {
                Effect::HangAnswer => handle.released().await,
                Effect::LoseAnswer => return Err(Status::unavailable("error reading from server: EOF")),
                _ => {}
            }
        }
        Ok(answer)
    }
}
