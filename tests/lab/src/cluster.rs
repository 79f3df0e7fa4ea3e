//! A whole Understudy cluster in a lab: on each host its images, policies, configuration, guard and agent.
//!
//! Knows where things lie on a host and in which order they start; what the configuration says is the
//! caller's, who writes it from the [`HostFacts`].

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::Bind;
use crate::error::{At, LabError};
use crate::host::Host;
use crate::lab::Lab;
use crate::options::LabOptions;
use crate::pki::{HOST_CA, HOST_CERT, HOST_KEY};
use crate::service::{Ready, Restart, ServiceSpec};

/// The agent's configuration on a host.
pub const AGENT_TOML: &str = "/etc/understudy/agent.toml";
/// The template domain XML on a host.
pub const TEMPLATE: &str = "/etc/understudy/template.xml";
/// The policies on a host: a folder of its own, which may be changed.
pub const POLICIES: &str = "/etc/understudy/policies";
/// The images on a host, read-only.
pub const IMAGES: &str = "/var/lib/understudy/images";
/// The role disk on a host, read-only.
pub const ROLE: &str = "/var/lib/understudy/roles/role.erofs";

/// Name of the guard's service.
pub const GUARD: &str = "guard";
/// Name of the agent's service.
pub const AGENT: &str = "agent";

/// Time for guards and agents to be ready, after etcd and libvirtd are.
const READY: Duration = Duration::from_secs(60);

/// What a configuration may say about its host.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// 1 for the first.
    pub index: u8,
    /// How many hosts there are.
    pub hosts: u8,
    /// `host1` for the first; every host resolves it to the management address.
    pub name: String,
    /// Address on the management network.
    pub mgmt: Ipv4Addr,
    /// The host's own address on the instances' segment, which guests must not use.
    pub vm: Ipv4Addr,
    /// Client addresses of all etcd members.
    pub etcd: Vec<String>,
    /// Certificate authority of etcd, libvirt and agents, as the host sees it.
    pub ca: &'static str,
    /// The host's certificate.
    pub cert: &'static str,
    /// Its key.
    pub key: &'static str,
}

/// What a cluster is made of.
pub struct ClusterOptions<'a> {
    /// The lab below it. Its hook is set by the cluster.
    pub lab: LabOptions,
    /// The `understudy` binary.
    pub understudy: PathBuf,
    /// The `understudy-guard` binary.
    pub guard: PathBuf,
    /// The folder with `vmlinuz`, `initrd.img`, `role.erofs` and, unless `template` is given, `template.xml`.
    pub images: PathBuf,
    /// The template domain XML, if it does not lie with the images.
    pub template: Option<PathBuf>,
    /// The folder with the policies' components.
    pub policies: PathBuf,
    /// libvirt's permit hook.
    pub hook: PathBuf,
    /// Writes the configuration of a host.
    pub agent_toml: &'a (dyn Fn(&HostFacts) -> String + Sync),
    /// Arguments of `understudy` that run the agent.
    pub agent_args: Vec<String>,
    /// Arguments of `understudy-guard` that run the guard.
    pub guard_args: Vec<String>,
    /// When an agent counts as ready.
    pub agent_ready: Ready,
    /// Variables of guard and agent, such as `RUST_LOG`.
    pub env: BTreeMap<String, String>,
}

/// A cluster that runs. It is its lab, with [`GUARD`] and [`AGENT`] among the services of each host.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
}

impl Deref for Cluster {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Cluster {
    /// Raises the lab, installs everything, starts guard and agent on each host and waits until they are ready.
    ///
    /// # Errors
    /// What is missing or did not start; the lab is then taken down.
    pub fn raise(options: ClusterOptions<'_>) -> Result<Cluster, LabError> {
        options.check()?;
        let lab_options = LabOptions { libvirt_hook: Some(options.hook.clone()), ..options.lab.clone() };
        let cluster = Cluster { lab: Lab::up(lab_options)? };
        cluster.each_host(|host| {
            cluster.install(host, &options)?;
            host.service(GUARD).start()?;
            host.service(GUARD).wait_ready(READY)?;
            host.service(AGENT).start()
        })?;
        cluster.each_host(|host| host.wait_booted(READY))?;
        Ok(cluster)
    }

    /// The lab alone, for [`Lab::keep`] and [`Lab::down`].
    pub fn into_lab(self) -> Lab {
        self.lab
    }

    fn install(&self, host: &Host, options: &ClusterOptions<'_>) -> Result<(), LabError> {
        let template = options.template.clone().unwrap_or_else(|| options.images.join("template.xml"));
        let role = options.images.join("role.erofs");
        copy(&template, &host.on_disk(TEMPLATE).expect("on the host's disk"))?;
        for (source, target) in [(&options.images, IMAGES), (&role, ROLE)] {
            host.bind(Bind { source: source.clone(), target: target.into(), read_only: true })?;
        }
        copy_files(&options.policies, &host.on_disk(POLICIES).expect("on the host's disk"))?;
        let text = (options.agent_toml)(&self.facts(host));
        let file = host.on_disk(AGENT_TOML).expect("on the host's disk");
        fs::write(&file, text).at("write", &file)?;
        let guard = ServiceSpec::new(GUARD, argv(&options.guard, &options.guard_args));
        let agent = ServiceSpec::new(AGENT, argv(&options.understudy, &options.agent_args));
        for (mut spec, ready) in [(guard, Ready::Notify), (agent, options.agent_ready.clone())] {
            spec.env.clone_from(&options.env);
            host.define_service(spec.ready(ready).restart(Restart::Always { delay_ms: 100 }))?;
        }
        Ok(())
    }

    fn facts(&self, host: &Host) -> HostFacts {
        HostFacts {
            index: host.index(),
            hosts: u8::try_from(self.hosts().len()).expect("a lab has at most 80 hosts"),
            name: host.name(),
            mgmt: host.mgmt(),
            vm: host.vm(),
            etcd: self.etcd_endpoints(),
            ca: HOST_CA,
            cert: HOST_CERT,
            key: HOST_KEY,
        }
    }
}

impl<'a> ClusterOptions<'a> {
    /// A cluster of the given parts on a lab of three hosts, with the arguments that the unit files use.
    pub fn new(
        binaries: &Path,
        images: &Path,
        policies: &Path,
        hook: &Path,
        agent_toml: &'a (dyn Fn(&HostFacts) -> String + Sync),
    ) -> ClusterOptions<'a> {
        ClusterOptions {
            lab: LabOptions::default(),
            understudy: binaries.join("understudy"),
            guard: binaries.join("understudy-guard"),
            images: images.to_path_buf(),
            template: None,
            policies: policies.to_path_buf(),
            hook: hook.to_path_buf(),
            agent_toml,
            agent_args: ["agent", "--config", AGENT_TOML].map(str::to_owned).to_vec(),
            guard_args: vec!["run".to_owned()],
            agent_ready: Ready::Notify,
            env: BTreeMap::new(),
        }
    }

    /// Everything that is missing, before anything is raised.
    fn check(&self) -> Result<(), LabError> {
        let mut files = vec![&self.understudy, &self.guard, &self.hook, &self.policies];
        files.extend(&self.template);
        let mut wanted: Vec<PathBuf> = files.into_iter().cloned().collect();
        let images = ["vmlinuz", "initrd.img", "role.erofs"];
        wanted.extend(images.iter().map(|name| self.images.join(name)));
        if self.template.is_none() {
            wanted.push(self.images.join("template.xml"));
        }
        let relative = wanted.iter().find(|path| !path.is_absolute());
        if let Some(path) = relative {
            return Err(LabError::BadOption(format!("{} must be an absolute path", path.display())));
        }
        let missing: Vec<String> =
            wanted.iter().filter(|path| !path.exists()).map(|path| path.display().to_string()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(LabError::BadOption(format!("the cluster needs what is not there: {}", missing.join(", "))))
    }
}

fn argv(program: &Path, args: &[String]) -> Vec<String> {
    std::iter::once(program.display().to_string()).chain(args.iter().cloned()).collect()
}

/// The files of a folder into another, which may not be there yet. Folders in it are left out.
fn copy_files(from: &Path, to: &Path) -> Result<(), LabError> {
    fs::create_dir_all(to).at("create", to)?;
    for entry in fs::read_dir(from).at("read", from)? {
        let entry = entry.at("read", from)?;
        if entry.path().is_file() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    fs::copy(from, to).map(drop).at("copy to", to)
}
