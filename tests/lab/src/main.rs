//! `lab`: raises a lab and pulls its plugs by hand. For developers.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use understudy_lab::{Lab, LabOptions, Net, Swept, packages, sweep, sweep_dead};

/// Hosts with libvirt and etcd on one machine.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Name of the lab; several stand beside each other.
    #[arg(long, global = true, default_value = "ustlab")]
    prefix: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Raise N hosts and hold them until Ctrl-C.
    Up {
        /// How many hosts.
        #[arg(default_value_t = 3)]
        hosts: u8,
        /// Leave them standing and return.
        #[arg(long)]
        keep: bool,
        /// Without etcd.
        #[arg(long)]
        no_etcd: bool,
    },
    /// Take the lab down, kept or left over.
    Down,
    /// Remove what dead runs of all labs have left.
    Sweep,
    /// How the hosts and their services stand.
    Status,
    /// Run a command in host H, or in the switch (`sw`).
    Sh {
        /// Number of the host, or `sw`.
        host: String,
        /// Program and arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Cut the power of host H.
    Poweroff { host: u8 },
    /// Power host H on.
    Boot { host: u8 },
    /// Kill everything in host H at once; peers see resets.
    Crash { host: u8 },
    /// Stop every process of host H.
    Freeze { host: u8 },
    /// Let host H run on.
    Thaw { host: u8 },
    /// Pull a cable of host H.
    Cut {
        host: u8,
        #[arg(default_value = "mgmt")]
        net: Cable,
    },
    /// Plug it in again.
    Heal {
        host: u8,
        #[arg(default_value = "mgmt")]
        net: Cable,
    },
    /// Host H does not hear OTHER any more.
    Drop { host: u8, other: u8 },
    /// Host H hears everybody again.
    Undrop { host: u8 },
    /// Limit the management cable of host H, to `20mbit` for example.
    Slow { host: u8, rate: String },
    /// Take the limit away.
    Fast { host: u8 },
    /// Start, stop, restart or kill a service of host H.
    Service { host: u8, name: String, act: Act },
    /// Carry 127.0.0.1:PORT to an address of the lab until Ctrl-C.
    Forward { port: u16, target: SocketAddr },
    /// Install the system packages that demo, tests and benchmarks need.
    Packages {
        /// Only list what is missing.
        #[arg(long)]
        no_install: bool,
        /// Change an installed QEMU without asking.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Cable {
    Mgmt,
    Vm,
}

#[derive(Clone, Copy, ValueEnum)]
enum Act {
    Start,
    Stop,
    Restart,
    Kill,
}

impl From<Cable> for Net {
    fn from(cable: Cable) -> Net {
        match cable {
            Cable::Mgmt => Net::Mgmt,
            Cable::Vm => Net::Vm,
        }
    }
}

fn main() -> ExitCode {
    understudy_lab::init_if_asked();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let prefix = args.prefix.as_str();
    match args.verb {
        Verb::Up { hosts, keep, no_etcd } => up(prefix, hosts, keep, no_etcd),
        Verb::Down => {
            report(prefix, &sweep(prefix)?);
            Ok(())
        }
        Verb::Sweep => {
            for (prefix, swept) in sweep_dead("ustlab")? {
                report(&prefix, &swept);
            }
            Ok(())
        }
        Verb::Packages { no_install, yes } => install(no_install, yes),
        verb => on_lab(&Lab::attach(prefix, None)?, verb),
    }
}

fn up(prefix: &str, hosts: u8, keep: bool, no_etcd: bool) -> anyhow::Result<()> {
    understudy_lab::tear_down_on_signals()?;
    let options = LabOptions { prefix: prefix.to_owned(), hosts, etcd: !no_etcd, ..LabOptions::default() };
    let lab = Lab::up(options)?;
    let standing = status(&lab)?;
    if keep {
        lab.keep()?;
        show(&standing);
        return Ok(());
    }
    show(&format!("{standing}Ctrl-C takes it down\n"));
    loop {
        std::thread::park();
    }
}

/// Verbs on a lab that stands.
fn on_lab(lab: &Lab, verb: Verb) -> anyhow::Result<()> {
    let host = |index: u8| {
        lab.hosts()
            .iter()
            .find(|h| h.index() == index)
            .with_context(|| format!("the lab has no host {index}"))
    };
    match verb {
        Verb::Up { .. } | Verb::Down | Verb::Sweep | Verb::Packages { .. } => unreachable!("handled before"),
        Verb::Status => show(&status(lab)?),
        Verb::Sh { host: name, argv } => return shell(lab, &name, argv),
        Verb::Poweroff { host: h } => host(h)?.power_off()?,
        Verb::Boot { host: h } => host(h)?.boot()?,
        Verb::Crash { host: h } => host(h)?.crash()?,
        Verb::Freeze { host: h } => host(h)?.freeze()?,
        Verb::Thaw { host: h } => host(h)?.thaw()?,
        Verb::Cut { host: h, net } => host(h)?.cut(net.into())?,
        Verb::Heal { host: h, net } => host(h)?.heal(net.into())?,
        Verb::Drop { host: h, other } => host(h)?.drop_from(host(other)?)?,
        Verb::Undrop { host: h } => host(h)?.hear_all()?,
        Verb::Slow { host: h, rate } => host(h)?.slow(&rate)?,
        Verb::Fast { host: h } => host(h)?.fast()?,
        Verb::Service { host: h, name, act } => {
            let service = host(h)?.service(&name);
            match act {
                Act::Start => service.start()?,
                Act::Stop => service.stop()?,
                Act::Restart => service.restart()?,
                Act::Kill => service.kill()?,
            }
        }
        Verb::Forward { port, target } => {
            let forward = lab.forward(port, target)?;
            println!("{} leads to {target}; Ctrl-C ends it", forward.local());
            loop {
                std::thread::park();
            }
        }
    }
    Ok(())
}

fn shell(lab: &Lab, name: &str, argv: Vec<String>) -> anyhow::Result<()> {
    if name == "sw" {
        let (program, args) = argv.split_first().context("a program is needed")?;
        let status = lab.in_switch(|| std::process::Command::new(program).args(args).status())?;
        std::process::exit(status.with_context(|| format!("start {program}"))?.code().unwrap_or(1));
    }
    let index: u8 = name.parse().with_context(|| format!("{name} is no host's number"))?;
    let host = lab.hosts().iter().find(|h| h.index() == index).context("the lab has no such host")?;
    let mut command = host.command(argv)?;
    if let Ok(term) = std::env::var("TERM") {
        command = command.env("TERM", &term);
    }
    Err(command.replace_self().into())
}

/// Prints to whoever still reads.
fn show(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn status(lab: &Lab) -> anyhow::Result<String> {
    let mut text = format!("disks in {}\n", lab.dir().display());
    for host in lab.hosts() {
        let state = match (host.is_on(), host.is_frozen()?) {
            (false, _) => "off",
            (true, false) => "on",
            (true, true) => "frozen",
        };
        writeln!(text, "{} {} {} {state}", host.name(), host.mgmt(), host.vm())?;
        if state == "on" {
            for service in host.services()? {
                let pid = host.service(&service.name).pid()?.map_or("-".to_owned(), |id| id.pid.to_string());
                let last = service.last_exit.map(|exit| format!(", last exit: {exit}")).unwrap_or_default();
                let (name, state, restarts) = (service.name, service.state, service.restarts);
                writeln!(text, "  {name:<10} {state:?}, process {pid}, {restarts} restarts{last}")?;
            }
        }
    }
    Ok(text)
}

fn report(prefix: &str, swept: &Swept) {
    for path in swept.cgroups.iter().chain(&swept.dirs) {
        show(&format!("{prefix}: removed {}\n", path.display()));
    }
}

fn install(no_install: bool, yes: bool) -> anyhow::Result<()> {
    let plan = packages::Plan::read(packages::PACKAGES)?;
    println!("{plan}");
    if no_install || plan.is_empty() {
        return Ok(());
    }
    plan.apply(&mut |question| yes || packages::ask_on_terminal(question))?;
    Ok(())
}
