//! Owns the wiring: from a checked configuration to a running agent.
//!
//! Promises: everything that can be found wrong before the first instance is touched is found here, with what to do.
//! Must not do: anything of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use understudy_checkpoint::ImageStore;
use understudy_core::records::Capacity;
use understudy_core::units::Vcpus;
use understudy_hypervisor::permit::{Permits, boot_id};
use understudy_hypervisor::{Hypervisor, Libvirt, LibvirtConfig, Template};
use understudy_store::{
    Credentials, Embedded, EmbeddedLimits, Etcd, EtcdConfig, IdentityFiles, Store, TlsFiles,
};

use crate::api::{self, ApiState};
use crate::config::{Config, StoreConfig};
use crate::driver::{Driver, Event, Parts, Snapshot};
use crate::exit::{Exit, Failure, chain};
use crate::gateway::{self, Directory, GatewayState, Limits};
use crate::metrics::Metrics;
use crate::policies::Policies;

/// Between two attempts at something that the agent cannot do without at its start.
const RETRY: Duration = Duration::from_secs(1);
/// How often the load is read.
const LOAD_EVERY: Duration = Duration::from_secs(5);

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{what}: {}", chain(error)))
}

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// When it cannot start, with what to do.
pub async fn run(config: Config) -> Result<(), Failure> {
    let faults = crate::config::online_faults(&config);
    if !faults.is_empty() {
        return Err(Failure::new(Exit::Config, faults.join("\n")));
    }
    let (stop, stopping) = watch::channel(false);
    let parts = Arc::new(parts(config).await?);
    let capacity = capacity(&parts).await?;
    let (directory, directories) = watch::channel(Directory::default());
    let (snapshots, seen) = watch::channel(Arc::new(Snapshot::default()));
    let gateway_state = GatewayState::new(directories, Limits::default());
    let api_state = ApiState { parts: parts.clone(), snapshots: seen, gateway: gateway_state.counters() };
    serve(&parts.config, api_state, gateway_state).await?;
    let driver = Driver::new(parts.clone(), capacity, directory, snapshots);
    watch_load(driver.events());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    feed_systemd();
    tokio::spawn(async move {
        wait_for_signal().await;
        let _ = stop.send(true);
    });
    tracing::info!(host = %parts.config.host, version = env!("CARGO_PKG_VERSION"), "agent runs");
    driver.run(stopping).await;
    tracing::info!("agent stops, instances are left as they are");
    Ok(())
}

async fn parts(config: Config) -> Result<Parts, Failure> {
    let boot = boot_id().map_err(|error| failed("cannot read this boot's id", &error))?;
    let text = std::fs::read_to_string(&config.template)
        .map_err(|error| failed(&format!("cannot read {}", config.template.display()), &error))?;
    let template = Template::parse(&text).map_err(|error| {
        Failure::new(Exit::Config, format!("{}: {}", config.template.display(), chain(&error)))
    })?;
    let permits =
        Permits::open(&config.runtime_dir.join("permits")).map_err(|error| failed("permits", &error))?;
    let images = ImageStore::open(&config.state_dir.join("checkpoints"))
        .map_err(|error| failed("checkpoints", &error))?;
    let scratch = config.runtime_dir.join("scratch");
    std::fs::create_dir_all(&scratch)
        .map_err(|error| failed(&format!("cannot make {}", scratch.display()), &error))?;
    let metrics = Arc::new(Metrics::new().map_err(|error| failed("metrics", &error))?);
    let policies = Arc::new(Policies::open(&config, &metrics));
    let hypervisor = hypervisor(&config)?;
    let store = store(&config).await?;
    Ok(Parts {
        boot,
        store,
        hypervisor,
        template: Arc::new(template),
        permits,
        policies,
        images: Arc::new(images),
        scratch,
        metrics,
        config,
    })
}

fn hypervisor(config: &Config) -> Result<Arc<dyn Hypervisor>, Failure> {
    let accelerator = config.accelerator.parse().map_err(|error| failed("libvirt.accelerator", &error))?;
    let settings = LibvirtConfig { uri: config.libvirt_uri.clone(), accelerator, ..LibvirtConfig::local() };
    let libvirt = Libvirt::start(settings)
        .map_err(|error| failed(&format!("cannot use {}", config.libvirt_uri), &error))?;
    Ok(Arc::new(libvirt))
}

async fn store(config: &Config) -> Result<Arc<dyn Store>, Failure> {
    match &config.store {
        StoreConfig::Embedded { path } => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|error| failed(&format!("cannot make {}", folder.display()), &error))?;
            }
            let store = Embedded::open(path, EmbeddedLimits::default()).await;
            Ok(Arc::new(store.map_err(|error| failed("store", &error))?))
        }
        StoreConfig::Etcd { endpoints, root, authority, identity, user } => {
            let mut settings = EtcdConfig::new(endpoints.clone(), root.clone(), config.host.as_str());
            settings.tls = authority.as_ref().map(|authority| TlsFiles {
                authority: authority.clone(),
                identity: identity.as_ref().map(|(certificate, key)| IdentityFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                }),
            });
            if let Some((name, file)) = user {
                let password = std::fs::read_to_string(file).map_err(|error| {
                    failed(&format!("store.password_file: cannot read {}", file.display()), &error)
                })?;
                settings.user =
                    Some(Credentials { name: name.clone(), password: password.trim().to_owned() });
            }
            settings.timeouts.request = config.bounds.store_request;
            let store = Etcd::open(settings).await;
            Ok(Arc::new(store.map_err(|error| failed("store", &error))?))
        }
    }
}

/// The host's room. libvirtd may still be starting: asked until it answers.
async fn capacity(parts: &Arc<Parts>) -> Result<Capacity, Failure> {
    loop {
        let hypervisor = parts.hypervisor.clone();
        let asked = tokio::task::spawn_blocking(move || hypervisor.capacity()).await;
        match asked.map_err(|error| failed("asking libvirt failed", &error))? {
            Ok(room) => {
                let memory = room.memory_total.saturating_sub(parts.config.reserved_memory);
                let asked = parts.config.pool.memory;
                if memory < asked {
                    let text = format!(
                        "{}: host.reserved_memory_mib: {memory} are left for instances, one takes {asked}: reserve less",
                        parts.config.file.display()
                    );
                    return Err(Failure::new(Exit::Config, text));
                }
                let vcpus = Vcpus(room.vcpus.0.saturating_mul(parts.config.vcpus_per_processor));
                return Ok(Capacity { vcpus, memory });
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "libvirt does not answer yet: is libvirtd running?");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn serve(config: &Config, api_state: ApiState, gateway_state: GatewayState) -> Result<(), Failure> {
    let local = api::local(api_state.clone());
    let socket = bind_unix(&config.api_socket)?;
    tokio::spawn(async move { axum::serve(socket, local).await });
    if let Some(address) = config.api_listen {
        let listener = bind_tcp("api.listen", address).await?;
        let public = api::public(api_state);
        tokio::spawn(async move { axum::serve(listener, public).await });
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
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
    Ok(())
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

fn watch_load(events: mpsc::UnboundedSender<Event>) {
    tokio::spawn(async move {
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

/// Tells systemd at half its interval that the agent's runtime turns.
fn feed_systemd() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        loop {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            tokio::time::sleep(interval / 2).await;
        }
    });
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
