//! A small client of the QEMU guest agent, over the unix socket of its channel.
//!
//! It owns one connection and promises that an answer belongs to the question asked: it synchronises first, as
//! whoever asked before may have left an answer in the channel. The agent's own client is libvirt; this one serves
//! tests that look at a guest without libvirt.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Asking costs the guest time, which under emulation is time that the command lacks: seldom, and more so later.
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_LATER: Duration = Duration::from_millis(400);

/// What went wrong between the guest agent and us.
#[derive(Debug, thiserror::Error)]
pub enum QgaError {
    /// The channel broke, or nobody answered in time.
    #[error("guest agent does not answer")]
    Channel(#[source] std::io::Error),
    /// What came is no JSON.
    #[error("guest agent's answer cannot be read")]
    Answer(#[source] serde_json::Error),
    /// The agent refused the command.
    #[error("guest agent refused {command}: {reason}")]
    Refused {
        /// What was asked.
        command: String,
        /// Its words.
        reason: String,
    },
    /// The answer lacks what its command promises.
    #[error("guest agent's answer to {command} lacks {field}")]
    Lacks {
        /// What was asked.
        command: String,
        /// What is not there.
        field: &'static str,
    },
    /// The command in the guest did not end in time.
    #[error("{argv:?} did not end within {limit:?}")]
    Overdue {
        /// The command.
        argv: Vec<String>,
        /// The time it had.
        limit: Duration,
    },
}

/// How a command in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; -1 when a signal ended it.
    pub code: i64,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

/// One connection to a guest's agent.
#[derive(Debug)]
pub struct Qga {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qga {
    /// Connects and waits until the agent answers, at most `limit`.
    ///
    /// # Errors
    /// When it does not answer in that time.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self, QgaError> {
        let end = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= end => return Err(QgaError::Channel(error)),
                Err(_) => std::thread::sleep(POLL_FIRST),
            }
        };
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(QgaError::Channel)?;
        let writer = stream.try_clone().map_err(QgaError::Channel)?;
        let mut qga = Self { reader: BufReader::new(stream), writer };
        qga.synchronise()?;
        Ok(qga)
    }

    /// Runs a command in the guest with `stdin`, and waits for its end, at most `limit`.
    ///
    /// # Errors
    /// When the agent does not answer, refuses, or the command takes longer.
    pub fn run(&mut self, argv: &[&str], stdin: &str, limit: Duration) -> Result<Ended, QgaError> {
        let end = Instant::now() + limit;
        let (program, arguments) = argv.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
        let mut question = json!({ "path": program, "arg": arguments, "capture-output": true });
        if !stdin.is_empty() {
            question["input-data"] = json!(BASE64.encode(stdin));
        }
        let pid = number(&self.ask("guest-exec", &question)?, "guest-exec", "pid")?;
        let mut pause = POLL_FIRST;
        loop {
            let status = self.ask("guest-exec-status", &json!({ "pid": pid }))?;
            if status["exited"] == json!(true) {
                return Ok(Ended {
                    code: status["exitcode"].as_i64().unwrap_or(-1),
                    stdout: text(&status["out-data"]),
                    stderr: text(&status["err-data"]),
                });
            }
            if Instant::now() >= end {
                return Err(QgaError::Overdue {
                    argv: argv.iter().map(|&word| word.to_owned()).collect(),
                    limit,
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL_LATER);
        }
    }

    /// Sets the guest's clock, as after a restore.
    ///
    /// # Errors
    /// When the agent does not answer or refuses.
    pub fn set_time(&mut self, since_epoch: Duration) -> Result<(), QgaError> {
        let nanoseconds = i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX);
        self.ask("guest-set-time", &json!({ "time": nanoseconds })).map(drop)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, QgaError> {
        self.send(&json!({ "execute": command, "arguments": arguments }))?;
        let answer: Value = serde_json::from_slice(&self.line()?).map_err(QgaError::Answer)?;
        if let Some(reason) = answer["error"]["desc"].as_str() {
            return Err(QgaError::Refused { command: command.to_owned(), reason: reason.to_owned() });
        }
        Ok(answer["return"].clone())
    }

    /// The agent answers `guest-sync-delimited` with the byte 0xFF before it, which ends whatever was there.
    fn synchronise(&mut self) -> Result<(), QgaError> {
        let id = std::process::id();
        self.writer.write_all(&[0xFF]).map_err(QgaError::Channel)?;
        self.send(&json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } }))?;
        loop {
            let line = self.line()?;
            let fresh = line.rsplit(|&byte| byte == 0xFF).next().unwrap_or_default();
            if serde_json::from_slice::<Value>(fresh).is_ok_and(|answer| answer["return"] == json!(id)) {
                return self
                    .reader
                    .get_ref()
                    .set_read_timeout(Some(Duration::from_mins(1)))
                    .map_err(QgaError::Channel);
            }
        }
    }

    fn send(&mut self, question: &Value) -> Result<(), QgaError> {
        self.writer.write_all(format!("{question}\n").as_bytes()).map_err(QgaError::Channel)
    }

    fn line(&mut self) -> Result<Vec<u8>, QgaError> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).map_err(QgaError::Channel)?;
        if line.last() != Some(&b'\n') {
            return Err(QgaError::Channel(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(line)
    }
}

fn number(answer: &Value, command: &str, field: &'static str) -> Result<i64, QgaError> {
    answer[field].as_i64().ok_or_else(|| QgaError::Lacks { command: command.to_owned(), field })
}

fn text(data: &Value) -> String {
    let bytes = data.as_str().and_then(|coded| BASE64.decode(coded).ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
