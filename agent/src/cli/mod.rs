//! Owns the command line: what can be asked, and how answers are printed.
//!
//! Promises: `--json` prints what the API said; every failure ends with a documented exit code and says what to do.

mod manual;
mod policy;
mod print;

use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use hyper::Method;
use serde_json::Value;
use understudy_core::bounds::Profile;
use understudy_core::model::ids::{HostId, NodeId, TerminalId};

use crate::api::types::{Checkpoints, Status, Terminal, TerminalRequest};
use crate::client::ask;
use crate::config::{
    Config, ConfigError, peer_file_faults, role_disk_faults, store_file_faults, template_faults,
};
use crate::exit::{Exit, Failure, chain};
use crate::{connect, startup, telemetry};
use print::table::Column::{Left, Right};

/// Keeps a terminal's software running when a VM or a whole host dies.
///
/// Exit codes: 0 done, 1 could not be done, 2 wrong command line, 3 wrong configuration, 4 the agent does not answer,
/// 5 refused, 6 does not exist, 7 another machine holds this host's name.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// The agent's socket.
    #[arg(long, global = true, default_value = "/run/understudy/api.sock", env = "UNDERSTUDY_SOCKET")]
    socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent of this host.
    Agent {
        /// The configuration.
        #[arg(long, default_value = "/etc/understudy/agent.toml")]
        config: PathBuf,
    },
    /// Terminals: create, list, show, delete.
    #[command(subcommand)]
    Terminal(TerminalVerb),
    /// Hosts: list, drain, undrain.
    #[command(subcommand)]
    Host(HostVerb),
    /// Nodes: failover, start-afresh.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Checkpoints of protected nodes: list.
    #[command(subcommand)]
    Checkpoint(CheckpointVerb),
    /// Policies: list, explain, replay, check, bench, new, restore.
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// The cluster: hosts, nodes, what is lacking and why.
    Status,
    /// Check a configuration, the files that it names, and whether libvirt and etcd answer; all faults at once.
    CheckConfig {
        /// The configuration.
        file: PathBuf,
        /// Look at the configuration alone.
        #[arg(long)]
        offline: bool,
    },
    /// Print the time bounds and what they are for.
    Bounds {
        /// `safe` or `fast`.
        #[arg(long, default_value = "safe")]
        profile: String,
    },
    /// Print the script that completes these commands in a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of these commands into a folder, such as /usr/local/share/man/man1.
    Man {
        /// The folder.
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum TerminalVerb {
    /// Create a terminal as a file describes it.
    Create {
        /// Its name.
        name: String,
        /// The description (TOML): see config/terminals/.
        #[arg(long)]
        from: PathBuf,
        /// Labels, in addition to the file's.
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// List all terminals.
    List,
    /// Show one terminal.
    Show {
        /// Its name.
        name: TerminalId,
    },
    /// Delete a terminal and end its instances.
    Delete {
        /// Its name.
        name: TerminalId,
    },
}

#[derive(Debug, Subcommand)]
enum HostVerb {
    /// List all hosts.
    List,
    /// Let everything leave a host, by live migration.
    Drain {
        /// Its name.
        name: HostId,
    },
    /// Let a host take work again.
    Undrain {
        /// Its name.
        name: HostId,
    },
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// End a node's primary, so that a successor takes over.
    Failover {
        /// The node, such as alice/display.
        node: NodeId,
    },
    /// Let a node that waits for a host with its state wait no longer: it starts from an older copy where one can be had at
    /// once, and else with nothing. That state is lost then.
    StartAfresh {
        /// The node, such as alice/exec-1.
        node: NodeId,
    },
}

#[derive(Debug, Subcommand)]
enum CheckpointVerb {
    /// Ask all hosts that may have checkpoints of a node which they have.
    List {
        /// The node, such as alice/exec-1.
        node: NodeId,
    },
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// With the exit code to end with.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Agent { config } => {
                let config = Config::read(&config).map_err(config_failure)?;
                telemetry::start(&config.log_filter, config.log_journald)?;
                runtime(true)?.block_on(startup::run(config))
            }
            Verb::CheckConfig { file, offline } => runtime(false)?.block_on(check_config(&file, offline)),
            Verb::Bounds { profile } => bounds(&profile, self.json),
            Verb::Completion { shell } => {
                let script = manual::completion(shell);
                let written = std::io::stdout().write_all(&script);
                written.map_err(|error| Failure::new(Exit::Failed, format!("cannot print: {error}")))
            }
            Verb::Man { dir } => manual::pages(&dir),
            Verb::Policy(verb) => runtime(false)?.block_on(verb.run(&self.socket, self.json)),
            verb => runtime(false)?.block_on(ask_agent(&self.socket, self.json, verb)),
        }
    }
}

fn runtime(daemon: bool) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = if daemon {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build().map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))
}

fn config_failure(error: ConfigError) -> Failure {
    Failure::new(Exit::Config, chain(&error))
}

async fn check_config(file: &std::path::Path, offline: bool) -> Result<(), Failure> {
    let config = Config::read(file).map_err(config_failure)?;
    let mut faults = Vec::new();
    if !offline {
        let store_files = store_file_faults(&config);
        // Without its certificates etcd cannot be asked: that is one fault, not two.
        let store = async { if store_files.is_empty() { connect::ask_store(&config).await } else { None } };
        let (libvirt, store) = tokio::join!(connect::ask_libvirt(&config), store);
        let peer_files = peer_file_faults(&config);
        faults = [template_faults(&config), role_disk_faults(&config), store_files, peer_files].concat();
        faults.extend(libvirt);
        faults.extend(store);
    }
    if faults.is_empty() {
        println!("{}: valid", file.display());
        return Ok(());
    }
    Err(Failure::new(Exit::Config, faults.join("\n")))
}

fn bounds(profile: &str, json: bool) -> Result<(), Failure> {
    let profile = match profile {
        "safe" => Profile::Safe,
        "fast" => Profile::Fast,
        other => return Err(Failure::new(Exit::Usage, format!("'{other}' is no profile: use safe or fast"))),
    };
    let table = profile.bounds().table();
    if json {
        let rows: Vec<Value> = table
            .iter()
            .map(|(name, bound, why)| serde_json::json!({ "name": name, "seconds": bound.as_secs_f64(), "why": why }))
            .collect();
        println!("{}", Value::from(rows));
    } else {
        let rows = table.iter().map(|(name, bound, why)| {
            vec![(*name).to_owned(), format!("{} s", bound.as_secs_f64()), (*why).to_owned()]
        });
        print!("{}", print::table::text(&[Left("BOUND"), Right("TIME"), Left("WHY")], rows));
    }
    Ok(())
}

async fn ask_agent(socket: &std::path::Path, json: bool, verb: Verb) -> Result<(), Failure> {
    let show = |answer: Value, text: &dyn Fn() -> String| {
        if json { println!("{answer}") } else { print!("{}", text()) }
    };
    match verb {
        Verb::Status | Verb::Host(HostVerb::List) | Verb::Terminal(TerminalVerb::List) => {
            let status: Status = ask(socket, Method::GET, "/v1/status", None).await?;
            let (value, text) = match verb {
                Verb::Host(_) => (serde_json::json!(status.hosts), print::hosts(&status.hosts)),
                Verb::Terminal(_) => {
                    (serde_json::json!(status.terminals), print::terminals(&status.terminals))
                }
                _ => (serde_json::json!(status), print::status(&status)),
            };
            show(value, &|| text.clone());
        }
        Verb::Terminal(TerminalVerb::Show { name }) => {
            let terminal: Terminal = ask(socket, Method::GET, &format!("/v1/terminals/{name}"), None).await?;
            let text = print::terminal(&terminal);
            show(serde_json::json!(terminal), &|| text.clone());
        }
        Verb::Terminal(TerminalVerb::Create { name, from, labels }) => {
            let body = terminal_request(name, &from, &labels)?;
            ask::<Value>(socket, Method::POST, "/v1/terminals", Some(body)).await?;
        }
        Verb::Terminal(TerminalVerb::Delete { name }) => {
            ask::<Value>(socket, Method::DELETE, &format!("/v1/terminals/{name}"), None).await?;
        }
        Verb::Host(HostVerb::Drain { name }) => {
            ask::<Value>(socket, Method::PUT, &format!("/v1/hosts/{name}/drain"), None).await?;
        }
        Verb::Host(HostVerb::Undrain { name }) => {
            ask::<Value>(socket, Method::DELETE, &format!("/v1/hosts/{name}/drain"), None).await?;
        }
        Verb::Checkpoint(CheckpointVerb::List { node }) => {
            let path = format!("/v1/nodes/{node}/checkpoints");
            let checkpoints: Checkpoints = ask(socket, Method::GET, &path, None).await?;
            show(serde_json::json!(checkpoints), &|| print::checkpoints(&checkpoints));
        }
        Verb::Node(NodeVerb::Failover { node }) => {
            ask::<Value>(socket, Method::POST, &format!("/v1/nodes/{node}/failover"), None).await?;
        }
        Verb::Node(NodeVerb::StartAfresh { node }) => {
            ask::<Value>(socket, Method::POST, &format!("/v1/nodes/{node}/start-afresh"), None).await?;
        }
        Verb::Agent { .. }
        | Verb::CheckConfig { .. }
        | Verb::Bounds { .. }
        | Verb::Completion { .. }
        | Verb::Man { .. }
        | Verb::Policy(_) => {}
    }
    Ok(())
}

fn terminal_request(name: String, from: &std::path::Path, labels: &[String]) -> Result<Value, Failure> {
    let shown = from.display();
    let refused = |text: String| Failure::new(Exit::Refused, text);
    let text =
        std::fs::read_to_string(from).map_err(|error| refused(format!("cannot read {shown}: {error}")))?;
    let mut table: toml::Table =
        toml::from_str(&text).map_err(|error| refused(format!("{shown}: {error}")))?;
    table.insert("name".to_owned(), name.into());
    let mut request: TerminalRequest =
        table.try_into().map_err(|error| refused(format!("{shown}: {error}")))?;
    for label in labels {
        let (key, value) = label
            .split_once('=')
            .ok_or_else(|| Failure::new(Exit::Usage, format!("--label '{label}': use KEY=VALUE")))?;
        request.labels.insert(key.to_owned(), value.to_owned());
    }
    serde_json::to_value(request).map_err(|error| refused(error.to_string()))
}
