//! Owns a real browser: headless Chromium under ChromeDriver, for tests that look at a page as a person does.
//!
//! Promises: whatever happens to the test (return, panic, SIGKILL), every process of the browser is gone: they
//! live in a PID namespace of their own, whose first process dies with the thread that started it. Blocking
//! outside, so that a test reads as a list of steps. Must not be used from within an async runtime.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fantoccini::error::{CmdError, NewSessionError};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

mod driver;
pub mod picture;

pub use driver::DriverError;
use picture::{Picture, PictureError};

/// For one command: far beyond what a busy machine takes, so that only a dead browser reaches it.
const COMMAND: Duration = Duration::from_secs(60);
/// Between two looks at a condition in the page.
const LOOK: Duration = Duration::from_millis(10);

/// Why a browser did not start or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrowserError {
    /// The network namespace cannot be entered.
    #[error("entering the network namespace '{name}': make it first with `ip netns add {name}`, as root")]
    Namespace {
        /// Its name, as `ip netns` knows it.
        name: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// ChromeDriver did not come up.
    #[error("starting the browser's driver")]
    Driver(#[from] DriverError),
    /// ChromeDriver came up, Chromium did not.
    #[error("opening a session in the browser (its output is in {log})")]
    Session {
        /// Output of driver and browser.
        log: PathBuf,
        /// What the driver said.
        #[source]
        source: Box<NewSessionError>,
    },
    /// A command failed.
    #[error("the browser could not {what}")]
    Command {
        /// What was asked.
        what: String,
        /// What the driver said.
        #[source]
        source: Box<CmdError>,
    },
    /// A command took longer than any living browser takes, or the browser is gone.
    #[error("the browser did not {0} in {COMMAND:?}: it hangs or has ended")]
    Hangs(String),
    /// A condition in the page never came true.
    #[error("waited {limit:?} for {what}; the last value of `{script}` was {last}")]
    Waited {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The expression that was evaluated.
        script: String,
        /// Its last value.
        last: Value,
    },
    /// A screenshot is no picture or cannot be written.
    #[error("taking a screenshot")]
    Picture(#[from] PictureError),
    /// A file of the browser cannot be written or a thread cannot be started.
    #[error("preparing the browser in {path}")]
    Prepare {
        /// The profile folder.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A running browser with one page.
pub struct Browser {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Goto(String, mpsc::Sender<Result<(), BrowserError>>),
    Eval(String, mpsc::Sender<Result<Value, BrowserError>>),
    Screenshot(mpsc::Sender<Result<Vec<u8>, BrowserError>>),
}

impl Browser {
    /// Starts a browser that keeps its files in the folder `profile`, the page's console (`console.log`) and
    /// the driver's output (`browser.log`) among them.
    pub fn start(profile: &Path) -> Result<Self, BrowserError> {
        Self::launch(profile, None)
    }

    /// Starts a browser that sees only the network namespace `namespace`. Needs root.
    pub fn start_in(profile: &Path, namespace: &str) -> Result<Self, BrowserError> {
        Self::launch(profile, Some(namespace.to_owned()))
    }

    fn launch(profile: &Path, namespace: Option<String>) -> Result<Self, BrowserError> {
        let prepare = |source| BrowserError::Prepare { path: profile.to_owned(), source };
        fs::create_dir_all(profile).map_err(prepare)?;
        let profile = profile.canonicalize().map_err(prepare)?;
        let (commands, inbox) = mpsc::channel();
        let (started, outcome) = mpsc::channel();
        // One thread for all: it enters the namespace, so that driver, browser and the connection to the
        // driver are inside, and the driver's life is bound to it.
        let thread = std::thread::Builder::new()
            .name("browser".to_owned())
            .spawn(move || match open(&profile, namespace.as_deref()) {
                Ok(session) => {
                    if started.send(Ok(())).is_ok() {
                        session.serve(&inbox);
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            })
            .map_err(prepare)?;
        let browser = Self { commands: Some(commands), thread: Some(thread) };
        outcome.recv().unwrap_or_else(|_| Err(BrowserError::Hangs("start".to_owned())))?;
        Ok(browser)
    }

    /// Loads `url` and waits until the page and all its modules are loaded.
    pub fn goto(&self, url: &str) -> Result<(), BrowserError> {
        self.ask(&format!("load {url}"), |reply| Command::Goto(url.to_owned(), reply))
    }

    /// The value of a JavaScript expression; of a promise, what it resolves to.
    pub fn eval(&self, expression: &str) -> Result<Value, BrowserError> {
        self.ask(&format!("evaluate {expression}"), |reply| Command::Eval(expression.to_owned(), reply))
    }

    /// `document.body.dataset[key]`.
    pub fn dataset(&self, key: &str) -> Result<Option<String>, BrowserError> {
        let value = self.eval(&format!("document.body.dataset[{}]", json!(key)))?;
        Ok(value.as_str().map(str::to_owned))
    }

    /// Writes what the page shows to `path`, as PNG, and returns it.
    pub fn screenshot(&self, path: &Path) -> Result<Picture, BrowserError> {
        let png = self.ask("take a screenshot", Command::Screenshot)?;
        fs::write(path, &png).map_err(|source| PictureError::Write { path: path.to_owned(), source })?;
        Ok(Picture::decode(&png)?)
    }

    /// What the page shows at this moment.
    pub fn look(&self) -> Result<Picture, BrowserError> {
        Ok(Picture::decode(&self.ask("take a screenshot", Command::Screenshot)?)?)
    }

    /// Waits until `expression` is true in the page, and returns how long that took.
    pub fn wait(&self, what: &str, expression: &str, limit: Duration) -> Result<Duration, BrowserError> {
        let start = Instant::now();
        loop {
            let value = self.eval(expression)?;
            if value == Value::Bool(true) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                let (what, script) = (what.to_owned(), expression.to_owned());
                return Err(BrowserError::Waited { what, limit, script, last: value });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn ask<T>(
        &self,
        what: &str,
        command: impl FnOnce(mpsc::Sender<Result<T, BrowserError>>) -> Command,
    ) -> Result<T, BrowserError> {
        let hangs = || BrowserError::Hangs(what.to_owned());
        let (reply, answer) = mpsc::channel();
        let commands = self.commands.as_ref().ok_or_else(hangs)?;
        commands.send(command(reply)).map_err(|_| hangs())?;
        answer.recv().map_err(|_| hangs())?
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Without commands the thread ends, and with it everything that it started.
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the browser's thread panicked; its processes ended with it");
        }
    }
}

/// What the browser's thread holds. Fields are dropped in this order: the client before its runtime, the
/// processes last.
struct Session {
    client: Client,
    runtime: tokio::runtime::Runtime,
    _driver: driver::Driver,
}

fn open(profile: &Path, namespace: Option<&str>) -> Result<Session, BrowserError> {
    if let Some(name) = namespace {
        let wrong = |source| BrowserError::Namespace { name: name.to_owned(), source };
        let handle = File::open(Path::new("/run/netns").join(name)).map_err(wrong)?;
        setns(handle, CloneFlags::CLONE_NEWNET).map_err(|errno| wrong(errno.into()))?;
    }
    let log = profile.join("browser.log");
    let driver = driver::Driver::start(&log)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| BrowserError::Prepare { path: profile.to_owned(), source })?;
    let capabilities = json!({
        "browserName": "chrome",
        "goog:chromeOptions": { "args": arguments(profile) },
    });
    let Value::Object(capabilities) = capabilities else { unreachable!("written as an object above") };
    let address = format!("http://127.0.0.1:{}", driver.port());
    let mut builder = ClientBuilder::new(HttpConnector::new());
    builder.capabilities(capabilities);
    let connecting = async { tokio::time::timeout(COMMAND, builder.connect(&address)).await };
    let client = match runtime.block_on(connecting) {
        Ok(Ok(client)) => client,
        Ok(Err(source)) => return Err(BrowserError::Session { log, source: Box::new(source) }),
        Err(_) => return Err(BrowserError::Hangs("start".to_owned())),
    };
    Ok(Session { client, runtime, _driver: driver })
}

/// Nothing but the page under test may use the network: without these, Chromium looks for updates, syncs, and
/// warms up connections to its maker.
fn arguments(profile: &Path) -> Vec<String> {
    let fixed = [
        "--headless",
        // Root has no sandbox; the page under test is our own.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        "--hide-scrollbars",
    ];
    let files = [
        format!("--user-data-dir={}", profile.join("data").display()),
        format!("--log-file={}", profile.join("console.log").display()),
    ];
    fixed.into_iter().map(str::to_owned).chain(files).collect()
}

impl Session {
    fn serve(self, inbox: &mpsc::Receiver<Command>) {
        for command in inbox {
            let gone = match command {
                Command::Goto(url, reply) => {
                    let done = self.run(&format!("load {url}"), self.client.goto(&url));
                    reply.send(done).is_err()
                }
                Command::Eval(expression, reply) => {
                    let script = format!("return ({expression});");
                    let what = format!("evaluate {expression}");
                    reply.send(self.run(&what, self.client.execute(&script, Vec::new()))).is_err()
                }
                Command::Screenshot(reply) => {
                    reply.send(self.run("take a screenshot", self.client.screenshot())).is_err()
                }
            };
            if gone {
                return;
            }
        }
    }

    fn run<T>(
        &self,
        what: &str,
        command: impl Future<Output = Result<T, CmdError>>,
    ) -> Result<T, BrowserError> {
        match self.runtime.block_on(async { tokio::time::timeout(COMMAND, command).await }) {
            Ok(done) => done
                .map_err(|source| BrowserError::Command { what: what.to_owned(), source: Box::new(source) }),
            Err(_) => Err(BrowserError::Hangs(what.to_owned())),
        }
    }
}
