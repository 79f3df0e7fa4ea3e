//! PID 1 of a host: mounts, network, services, orphans. Nothing but a SIGKILL from outside ends it.

pub(crate) mod mounts;
mod supervisor;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crate::disk::HostConfig;
use crate::error::{At, Doing, LabError};
use crate::service::{Reply, Request};
use crate::{disk, net};
use supervisor::Supervisor;

/// Connections to a silent peer end after about 7 s (3 tries) instead of 127 s, as on the hosts measured.
const SYN_RETRIES: &str = "2";

pub(crate) fn main(file: &Path) -> Result<i32, LabError> {
    let config = HostConfig::read(file)?;
    // The socket lies outside of the host's /run: it is bound while that path is still visible.
    let _ = fs::remove_file(&config.socket);
    nix::unistd::sethostname(&config.name).doing("set the host name")?;
    let listener = UnixListener::bind(&config.socket).at("bind", &config.socket)?;
    mounts::mount_all(&config)?;
    let services = HostConfig::services_file(&config.disk);
    let supervisor = Arc::new(Supervisor::new(disk::read_services(&services)?));
    let reaper = Arc::clone(&supervisor);
    thread::spawn(move || reaper.reap());
    let timer = Arc::clone(&supervisor);
    thread::spawn(move || timer.keep_up());
    for stream in listener.incoming() {
        let stream = stream.doing("accept a request")?;
        let (supervisor, config) = (Arc::clone(&supervisor), config.clone());
        thread::spawn(move || serve(&stream, &supervisor, &config));
    }
    Ok(0)
}

/// One request, one answer.
fn serve(mut stream: &UnixStream, supervisor: &Arc<Supervisor>, config: &HostConfig) {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(request) => answer(request, supervisor, config).unwrap_or_else(|e| Reply::Refused(e.chain())),
        Err(error) => Reply::Refused(format!("not a request: {error}")),
    };
    let text = serde_json::to_string(&reply).expect("plain data");
    // Whoever asked may have given up waiting.
    let _ = writeln!(stream, "{text}");
}

fn answer(request: Request, supervisor: &Arc<Supervisor>, config: &HostConfig) -> Result<Reply, LabError> {
    match request {
        Request::Start => {
            let retries = Path::new("/proc/sys/net/ipv4/tcp_syn_retries");
            fs::write(retries, SYN_RETRIES).at("write", retries)?;
            supervisor.ip(&net::host_lines(config.mgmt, config.vm))?;
            let order = Arc::clone(supervisor);
            thread::spawn(move || order.start_in_order());
        }
        Request::Status => {
            let (booted, services) = supervisor.status();
            return Ok(Reply::Status { booted, services });
        }
        Request::Reload => {
            supervisor.reload(disk::read_services(&HostConfig::services_file(&config.disk))?);
        }
        Request::Service { name, verb } => supervisor.act(&name, verb)?,
        Request::Bind(bind) => mounts::bind(&bind)?,
    }
    Ok(Reply::Done)
}
