//! Owns the wiring: from a checked configuration to a running agent.
//!
//! Promises: everything that can be found wrong before the first instance is touched is found here, with what to do; what
//! may yet come (libvirt, etcd) is waited for, and the agent's socket says meanwhile what is missing. Must not do:
//! anything of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use understudy_checkpoint::{ImageStore, ReadyImages};
use understudy_core::model::records::Capacity;
use understudy_core::model::units::Vcpus;
use understudy_hypervisor::permit::{Permits, boot_id};
use understudy_hypervisor::{CapacityError, Template};

use crate::api::{self, ApiState};
use crate::config::{Config, role_disk_faults, store_file_faults, template_faults};
use crate::connect;
use crate::exit::{Exit, Failure, chain};
use crate::gateway::{self, GatewayState, Limits, SCREEN_PORT};
use crate::machine::machine_id;
use crate::metrics::Metrics;
use crate::peers::Security;
use crate::peers::identity::{Identity, IdentityError, Look};
use crate::peers::listener::{Caller, PeerListener};
use crate::policy_manager::Policies;
use crate::runtime::{Event, Members, Parts, Runtime, Snapshot, Trackers, find_tier, keep_ready};
use crate::tasks::Tasks;

/// Between two attempts at something that the agent cannot do without at its start.
const RETRY: Duration = Duration::from_secs(1);
/// How often the load is read.
const LOAD_EVERY: Duration = Duration::from_secs(5);
/// How often the certificate files are looked at: a renewed one is in use within this.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);
/// How often the role disks are looked at: one that was copied anew is noticed within this.
const ROLE_DISKS_EVERY: Duration = Duration::from_secs(5);

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{what}: {}", chain(error)))
}

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// When it cannot start, with what to do.
pub async fn run(config: Config) -> Result<(), Failure> {
    let faults = [template_faults(&config), store_file_faults(&config)].concat();
    if !faults.is_empty() {
        return Err(Failure::new(Exit::Config, faults.join("\n")));
    }
    let (stop, stopping) = watch::channel(false);
    let (parts, faults) = parts(config).await?;
    let parts = Arc::new(parts);
    let (publisher, directory) = gateway::directory();
    let (snapshots, seen) = watch::channel(Arc::new(Snapshot::default()));
    let gateway_state = GatewayState::new(directory, SCREEN_PORT, Limits::default());
    let events = tokio::sync::mpsc::unbounded_channel();
    let api_state = ApiState {
        parts: parts.clone(),
        snapshots: seen,
        gateway: gateway_state.counters(),
        events: events.0.clone(),
    };
    serve(&parts, api_state, gateway_state).await?;
    // Ready to be asked: what it waits for is told by `understudy status`, and is no reason to end it and start it again.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    parts.tasks.spawn("signals", async move {
        wait_for_signal().await;
        let _ = stop.send(true);
    });
    // Started before libvirt answers: the lease that an earlier agent held goes on without it.
    let runtime = Runtime::new(parts.clone(), None, events, publisher, snapshots);
    watch_capacity(parts.clone(), runtime.events());
    tell_checkpoint_faults(&faults, &runtime.events());
    keep_ready(&parts, &runtime.events(), parts.images.nodes());
    find_tier(parts.clone(), runtime.events());
    watch_load(&parts.tasks, runtime.events());
    watch_role_disks(parts.clone(), runtime.events());
    if let Security::Certificates(identity) = &parts.security {
        watch_certificates(&parts, identity.clone(), runtime.events());
    }
    tracing::info!(host = %parts.config.host, version = env!("CARGO_PKG_VERSION"), "agent runs");
    let store = Box::pin(connect::lease_store(parts.config.clone(), parts.store.clone()));
    runtime.run(store, stopping).await?;
    tracing::info!("agent stops, instances are left as they are");
    Ok(())
}

/// The parts, and what is wrong with the checkpoints that are kept here.
async fn parts(config: Config) -> Result<(Parts, Vec<String>), Failure> {
    let boot = boot_id().map_err(|error| failed("cannot read this boot's id", &error))?;
    let text = std::fs::read_to_string(&config.template)
        .map_err(|error| failed(&format!("cannot read {}", config.template.display()), &error))?;
    let template = Template::parse(&text).map_err(|error| {
        Failure::new(Exit::Config, format!("{}: {}", config.template.display(), chain(&error)))
    })?;
    let permits =
        Permits::open(&config.runtime_dir.join("permits")).map_err(|error| failed("permits", &error))?;
    // One bad file, or a disk that is read-only, costs copies; an agent that stays away for it costs what runs here.
    let (images, faults) = ImageStore::open_as_it_is(&config.state_dir.join("checkpoints"));
    let faults = faults.iter().map(|fault| chain(fault)).collect();
    let ready = config.runtime_dir.join("ready");
    let ready_images = ReadyImages::open(images.clone(), &ready, config.ready_images.bytes())
        .map_err(|error| failed(&format!("cannot make or empty {}", ready.display()), &error))?;
    let scratch = config.runtime_dir.join("scratch");
    empty(&scratch)
        .map_err(|error| failed(&format!("cannot make or empty {}", scratch.display()), &error))?;
    let metrics = Arc::new(Metrics::new().map_err(|error| failed("metrics", &error))?);
    let policies = Arc::new(Policies::open(&config, &metrics));
    let hypervisor = connect::hypervisor(&config)?;
    let store = connect::store(&config).await?;
    let security = config.peers.as_ref().map_or(Security::Loopback, |peers| {
        Security::Certificates(Arc::new(Identity::new(config.host.clone(), peers.files.clone())))
    });
    let parts = Parts {
        boot,
        machine: machine_id(Path::new("/")),
        store,
        hypervisor,
        template: Arc::new(template),
        permits,
        policies,
        images: Arc::new(images),
        keeping: Default::default(),
        ready_images: Arc::new(ready_images),
        checkpoint_tier: Default::default(),
        trackers: Trackers::default(),
        security,
        members: Members::default(),
        tasks: Tasks::default(),
        scratch,
        metrics,
        config,
    };
    Ok((parts, faults))
}

/// Makes a folder of files that are on their way, and removes what an earlier agent left.
fn empty(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::read_dir(folder)?.try_for_each(|left| std::fs::remove_file(left?.path()))
}

/// Said until the agent is started again, which is when they are looked at.
fn tell_checkpoint_faults(faults: &[String], events: &mpsc::UnboundedSender<Event>) {
    for fault in faults {
        tracing::error!(error = %fault, "checkpoints of others cannot all be kept here");
    }
    let text = (!faults.is_empty()).then(|| {
        format!(
            "{}: checkpoints of others cannot all be kept here; then restart the agent",
            faults.join("\n")
        )
    });
    // The runtime has not run yet, so that its end cannot be what this meets.
    let _ = events.send(Event::Condition { about: "checkpoints", text });
}

/// Asks libvirt for the host's room until it answers. libvirtd may still be starting, or its address may be wrong.
fn watch_capacity(parts: Arc<Parts>, events: mpsc::UnboundedSender<Event>) {
    let tasks = parts.tasks.clone();
    tasks.spawn("capacity", async move {
        let mut reported = None;
        loop {
            let hypervisor = parts.hypervisor.clone();
            let text = match tokio::task::spawn_blocking(move || hypervisor.capacity()).await {
                Ok(Ok(room)) => {
                    if reported.is_some() {
                        tracing::info!(uri = parts.config.libvirt_uri, "libvirt answers");
                    }
                    let _ = events.send(Event::Capacity(for_instances(&parts.config, room)));
                    return;
                }
                Ok(Err(CapacityError::Read(error))) => connect::libvirt_silent(&parts.config, &error),
                Err(error) => return parts.tasks.joined::<()>("capacity", Err(error)),
            };
            if reported.replace(text.clone()).as_ref() != Some(&text) {
                tracing::warn!(error = %text, "libvirt does not answer, trying again until it does");
            }
            if events.send(Event::Condition { about: "libvirt", text: Some(text) }).is_err() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    });
}

/// What of the host's room is for instances.
fn for_instances(config: &Config, room: understudy_hypervisor::Capacity) -> Result<Capacity, Failure> {
    let memory = room.memory_total.saturating_sub(config.reserved_memory);
    let asked = config.pool.memory;
    if memory < asked {
        let text = format!(
            "{}: host.reserved_memory_mib: {memory} are left for instances, one takes {asked}: reserve less",
            config.file.display()
        );
        return Err(Failure::new(Exit::Config, text));
    }
    Ok(Capacity { vcpus: Vcpus(room.vcpus.0.saturating_mul(config.vcpus_per_processor)), memory })
}

async fn serve(parts: &Parts, api_state: ApiState, gateway_state: GatewayState) -> Result<(), Failure> {
    let (config, tasks) = (&parts.config, &parts.tasks);
    let local = api::local(api_state.clone());
    let socket = bind_unix(&config.api_socket)?;
    tasks.spawn("local API", served(axum::serve(socket, local)));
    if let Some(address) = config.api_listen {
        let listener = bind_tcp("api.listen", address).await?;
        let readers = api::public(api_state.clone());
        let is_for_peers = config.plain_peers().is_some();
        let public = if is_for_peers { readers.merge(api::peers(api_state.clone())) } else { readers };
        tasks.spawn("API", served(axum::serve(listener, public)));
    }
    if let (Some(peers), Security::Certificates(identity)) = (&config.peers, &parts.security) {
        let listener = bind_tcp("peers.listen", peers.listen).await?;
        let listener = PeerListener::new(listener, identity.clone());
        let router = api::peers(api_state).into_make_service_with_connect_info::<Caller>();
        tasks.spawn("API for peers", served(axum::serve(listener, router)));
    }
    if let Some(address) = config.gateway_listen {
        let listener = bind_tcp("gateway.listen", address).await?;
        let router = gateway::router(gateway_state);
        // Screens are many small writes: none waits for the one before it to be acknowledged.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a terminal's connection keeps its delays");
            }
        });
        tasks.spawn("gateway", served(axum::serve(listener, router)));
    }
    Ok(())
}

/// axum serves for ever, and answers for what goes wrong on a connection itself.
async fn served(serving: impl IntoFuture) {
    serving.await;
}

async fn bind_tcp(key: &str, address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address)
        .await
        .map_err(|error| failed(&format!("{key}: cannot listen on {address}"), &error))
}

/// A socket that only root may use. One that an earlier agent left behind is replaced; one that answers is not.
fn bind_unix(path: &Path) -> Result<UnixListener, Failure> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = format!("another agent answers on {}: stop it first", path.display());
        return Err(Failure::new(Exit::Failed, text));
    }
    let wrap = |error: std::io::Error| failed(&format!("cannot listen on {}", path.display()), &error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(wrap)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(wrap(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(wrap)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(wrap)?;
    Ok(listener)
}

fn watch_load(tasks: &Tasks, events: mpsc::UnboundedSender<Event>) {
    tasks.spawn("load", async move {
        loop {
            let text = tokio::fs::read_to_string("/proc/loadavg").await.unwrap_or_default();
            let load = text.split_whitespace().next().and_then(|first| first.parse::<f64>().ok());
            if let Some(load) = load {
                // Loads are small and positive; what does not fit is no load.
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped first")]
                let milli = (load * 1000.0).clamp(0.0, 1e9) as u32;
                if events.send(Event::Load(milli)).is_err() {
                    return;
                }
            }
            tokio::time::sleep(LOAD_EVERY).await;
        }
    });
}

/// Role disks are files that operators copy. One that is missing or damaged is told until it is whole, and never ends the
/// agent: instances that have their role go on.
fn watch_role_disks(parts: Arc<Parts>, events: mpsc::UnboundedSender<Event>) {
    let tasks = parts.tasks.clone();
    tasks.spawn("role disks", async move {
        let mut reported = Vec::new();
        loop {
            let mine = parts.clone();
            let looked = tokio::task::spawn_blocking(move || role_disk_faults(&mine.config)).await;
            let faults = looked.unwrap_or_default();
            if faults != reported {
                for fault in &faults {
                    tracing::warn!(error = %fault, "instances cannot be given this role");
                }
                if faults.is_empty() {
                    tracing::info!("every role disk is whole");
                }
                let text = (!faults.is_empty()).then(|| faults.join("\n"));
                if events.send(Event::Condition { about: "role disks", text }).is_err() {
                    return;
                }
                reported = faults;
            }
            tokio::time::sleep(ROLE_DISKS_EVERY).await;
        }
    });
}

/// Certificates are renewed while the agent runs. What is wrong with the files is told until it is right, and never ends the
/// agent: instances go on, and copies of checkpoints wait.
fn watch_certificates(parts: &Parts, identity: Arc<Identity>, events: mpsc::UnboundedSender<Event>) {
    let (tasks, file) = (parts.tasks.clone(), parts.config.file.display().to_string());
    let runner = tasks.clone();
    tasks.spawn("certificates", async move {
        // What is wrong at one look only is not told: the files of a renewal are replaced one after the other.
        let (mut reported, mut seen) = (None, None);
        loop {
            let mine = identity.clone();
            let looked = match tokio::task::spawn_blocking(move || mine.look()).await {
                Ok(looked) => looked,
                Err(error) => return runner.joined::<()>("certificates", Err(error)),
            };
            if let Ok(Look { renewed: true, .. }) = looked {
                tracing::info!("the certificate for peers is in use");
            }
            let text = certificate_condition(&file, looked);
            let lasts = text.is_none() || seen.is_none_or(|seen| seen == text);
            seen = Some(text.clone());
            if lasts && text != reported {
                match &text {
                    Some(text) => tracing::warn!(error = %text, "peers may not accept this host"),
                    None => tracing::info!("the certificate for peers is good"),
                }
                if events.send(Event::Condition { about: "certificate", text: text.clone() }).is_err() {
                    return;
                }
                reported = text;
            }
            tokio::time::sleep(CERTIFICATES_EVERY).await;
        }
    });
}

fn certificate_condition(file: &str, looked: Result<Look, IdentityError>) -> Option<String> {
    match looked {
        Ok(Look { expires_soon: false, .. }) => None,
        Ok(Look { expires_soon: true, .. }) => {
            Some(format!("{file}: peers.cert: the certificate expires within seven days: renew it"))
        }
        Err(error) => Some(format!("{file}: {}: {}", error.key(), chain(&error))),
    }
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
