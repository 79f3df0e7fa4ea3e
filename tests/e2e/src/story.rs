//! Owns the story that the demo tells and the end-to-end test repeats: a terminal loses its display, an execution
//! host, and has a host drained under it.
//!
//! Promises: every act ends with a verdict from what was seen from outside: the status, the guests' counters, the page
//! in a real browser. Must not reach into agents.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::browser::Browser;
use crate::browser::picture::Picture;
use crate::counter::Watch;
use crate::stage::Stage;

mod act;
mod failures;
mod policies;
mod upkeep;
mod wishes;

use act::UnixMs;
pub use act::{Act, Part, Verdict, table, tell};

/// Until an act's outcome is there.
const ACT: Duration = Duration::from_secs(120);
/// Until the cluster has made its backups good again.
const REPAIR: Duration = Duration::from_secs(240);
/// The demo's terminal.
pub const TERMINAL: &str = "alice";
/// Its windows.
const WINDOWS: usize = 4;
/// The size of its screen, and on it the insides of its two counters' windows: left, top, width, height, as
/// `config/terminals/alice.toml` has them.
const SCREEN: [f64; 2] = [1280.0, 800.0];
const COUNTERS: [[f64; 4]; 2] = [[50.0, 70.0, 440.0, 160.0], [50.0, 330.0, 440.0, 160.0]];

/// The teller.
pub struct Story<'a> {
    /// The cluster.
    pub stage: &'a Stage,
    /// The browser that shows the terminal.
    pub browser: &'a Browser,
    /// Where screenshots go.
    pub pictures: PathBuf,
    /// Told what goes on.
    pub say: &'a dyn Fn(&str),
}

fn text<'v>(value: &'v Value, what: &str) -> Result<&'v str> {
    value.as_str().with_context(|| format!("no {what} in the status"))
}

impl Story<'_> {
    /// Creates the terminal and waits until it is whole and shown.
    ///
    /// # Errors
    /// When it does not come to be.
    pub fn raise(&self, act: &mut Act, description: &Path) -> Result<()> {
        act.begin("terminal alice is created");
        (self.say)(
            "filling the pools, then creating terminal alice: a display node, two execution nodes, a backup of each",
        );
        let took = self.stage.create(TERMINAL, description)?;
        (self.say)(&format!("alice is whole after {:.1} s", took.as_secs_f64()));
        act.phase("alice is whole, the filling of the pools included", took);
        let page = self.stage.page(TERMINAL, 1);
        self.browser.goto(&page)?;
        self.connected(ACT)?;
        (self.say)(&format!("alice's screen: {page}"));
        Ok(())
    }

    fn connected(&self, limit: Duration) -> Result<Duration> {
        Ok(self.browser.wait(
            "the page shows the display",
            "document.body.dataset.state === 'connected'",
            limit,
        )?)
    }

    /// Opens the page through the gateway of `host`, and waits until it knows all gateways.
    fn open_through(&self, host: &str) -> Result<String> {
        let index = self.stage.cluster().hosts().iter().position(|known| known.name() == host);
        self.browser.goto(&self.stage.page(TERMINAL, index.context("no such host")? + 1))?;
        self.connected(ACT)?;
        self.browser.wait("the page knows all gateways", "document.body.dataset.gateways === '3'", ACT)?;
        self.browser.dataset("gateway")?.context("the page names no gateway")
    }

    fn picture(&self, act: &mut Act, name: &str) -> Result<()> {
        std::fs::create_dir_all(&self.pictures)?;
        let path = self.pictures.join(format!("{name}.png"));
        let picture = self.browser.screenshot(&path)?;
        act.judge(
            format!("screenshot {name} shows windows"),
            !picture.is_black(),
            path.display().to_string(),
        );
        act.pictures.push(path);
        Ok(())
    }

    /// Waits until the page has made a new connection since `before`.
    fn reconnected(&self, before: u64, limit: Duration) -> Result<Duration> {
        let condition = format!(
            "document.body.dataset.state === 'connected' && Number(document.body.dataset.connections) > {before}"
        );
        Ok(self.browser.wait("the page is connected anew", &condition, limit)?)
    }

    fn connections(&self) -> Result<u64> {
        Ok(self.browser.dataset("connections")?.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// A screenshot once the windows are there and what is in them moves: sent is not yet painted.
    fn settle_picture(&self, act: &mut Act, name: &str) -> Result<()> {
        self.connected(ACT)?;
        let until = Instant::now() + ACT;
        let shown = loop {
            let shown = self.shown_windows();
            if shown.as_ref().is_ok_and(|&shown| shown >= WINDOWS) || Instant::now() > until {
                break shown;
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        let all = shown.as_ref().is_ok_and(|&shown| shown >= WINDOWS);
        act.judge("all four windows are on the screen", all, format!("{shown:?}"));
        let counting = self.counters_move(ACT);
        let seen = match &counting {
            Ok(took) => format!("seen within {:.1} s", took.as_secs_f64()),
            Err(error) => format!("{error:#}"),
        };
        act.judge("both counters count on in the browser", counting.is_ok(), seen);
        self.picture(act, name)
    }

    /// Waits until each counter's window looks different on the page than it did.
    fn counters_move(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let first = self.counters()?;
        let mut moved = [false; COUNTERS.len()];
        while moved.contains(&false) {
            if begun.elapsed() > limit {
                bail!("within {limit:?} the counters' windows moved: {moved:?}");
            }
            let after = self.counters()?;
            for ((moved, first), after) in moved.iter_mut().zip(&first).zip(&after) {
                *moved |= first.difference(after) > 0.0;
            }
        }
        Ok(begun.elapsed())
    }

    /// The insides of the counters' windows, as the page shows them.
    fn counters(&self) -> Result<Vec<Picture>> {
        let place = "(() => { const r = document.querySelector('#screen canvas').getBoundingClientRect(); \
                     return [r.x, r.y, r.width, r.height]; })()";
        let place: [f64; 4] = serde_json::from_value(self.browser.eval(place)?).context("no screen")?;
        let picture = self.browser.look()?;
        // Pixels of a page are few and positive.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped first")]
        let pixels = |length: f64| length.clamp(0.0, 1e6) as usize;
        let part = |[x, y, width, height]: [f64; 4]| {
            let (across, down) = (place[2] / SCREEN[0], place[3] / SCREEN[1]);
            let corner = (pixels(place[0] + x * across), pixels(place[1] + y * down));
            picture.part(corner, (pixels(width * across), pixels(height * down)))
        };
        Ok(COUNTERS.map(part).into())
    }

    /// Windows mapped on the display primary, as the guest itself says.
    fn shown_windows(&self) -> Result<usize> {
        let display = self.stage.node("alice/display")?;
        let (host, instance) = member(&display)?;
        let lines = guest_us(self.stage, &host, &instance, &["display", "windows"])?;
        Ok(lines.lines().filter(|line| line.starts_with("alice.")).count())
    }
}

fn wait_sample(watch: &Watch, after: Duration, limit: Duration) -> Result<crate::counter::Sample> {
    let until = Instant::now() + limit;
    loop {
        if let Some(sample) = watch.seen().first_after(after + Duration::from_millis(500)) {
            return Ok(sample.clone());
        }
        if Instant::now() > until {
            bail!("the counter did not answer within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Host and instance of a node's primary.
///
/// # Errors
/// When it has none.
pub fn member(node: &Value) -> Result<(String, String)> {
    let primary = &node["primary"];
    Ok((text(&primary["host"], "host")?.to_owned(), text(&primary["instance"], "instance")?.to_owned()))
}

/// What a look into a guest may take: on two processors that emulate, while instances boot beside it, it took over 20 s.
const LOOK: Duration = Duration::from_secs(60);

/// What libvirt says of a guest that stands still.
const NOT_RUNNING: &str = "domain is not running";

/// Runs `us` in a guest, past the agents: for looking only.
///
/// # Errors
/// When the guest does not answer or the command fails.
pub fn guest_us(stage: &Stage, host: &str, instance: &str, words: &[&str]) -> Result<String> {
    guest_run(stage, host, instance, "/sbin/us", words, LOOK)
}

/// Runs a program in a guest and gives what it printed, within `limit`.
///
/// # Errors
/// When the guest does not answer or the program fails.
pub fn guest_run(
    stage: &Stage,
    host: &str,
    instance: &str,
    program: &str,
    words: &[&str],
    limit: Duration,
) -> Result<String> {
    let host = stage.host(host)?;
    let domain = format!("understudy-{instance}");
    let until = Instant::now() + limit;
    // libvirt refuses to ask a guest that stands still for a checkpoint: it is asked again.
    let ask = |json: &Value| loop {
        let argv = ["virsh", "-q", "qemu-agent-command", &domain, &json.to_string()];
        match host.run(argv) {
            Ok(answer) => return Ok::<Value, anyhow::Error>(serde_json::from_str(&answer)?),
            Err(error) if Instant::now() > until || !error.chain().contains(NOT_RUNNING) => {
                return Err(error.into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let start = serde_json::json!({ "execute": "guest-exec", "arguments": { "path": program, "arg": words, "capture-output": true } });
    let answer = ask(&start)?;
    let pid = answer["return"]["pid"].as_u64().context("no pid")?;
    let status = serde_json::json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
    loop {
        let answer = ask(&status)?;
        if answer["return"]["exited"] == true {
            if answer["return"]["exitcode"] != 0 {
                bail!("{program} {} ended with {}", words.join(" "), answer["return"]["exitcode"]);
            }
            let data = answer["return"]["out-data"].as_str().unwrap_or_default();
            return Ok(String::from_utf8_lossy(&STANDARD.decode(data)?).into_owned());
        }
        if Instant::now() > until {
            bail!("{program} {} does not end within {limit:?}", words.join(" "));
        }
        // Each question costs the guest some of the processor that it is measured with.
        std::thread::sleep(Duration::from_millis(100));
    }
}
