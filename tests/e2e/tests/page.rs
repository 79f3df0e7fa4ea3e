//! The terminal page in a real browser, in front of real X screens: what the person at the terminal sees when
//! a display or a gateway dies.
//!
//! Screenshots are kept in `target/screenshots/page` (or below `CARGO_TARGET_DIR`).

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it set it up")]

#[path = "page/rig.rs"]
mod rig;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rig::{Gateway, Namespace, Screen, alice, until};
use tempfile::TempDir;
use understudy_e2e::browser::picture::{Colour, Picture};
use understudy_e2e::browser::{Browser, BrowserError};

const BLUE: Colour = [0x2a, 0x60, 0x99];
const GREEN: Colour = [0x3a, 0x7d, 0x44];

/// For what takes well under a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a person is promised: the page reconnects by itself within a second. This is the page's own part, on its own
/// clock: until it asks a gateway again.
const OWN: Duration = Duration::from_secs(1);
/// Until the screen is shown again, the gateway's and the display's part included: the limit leaves a busy two-core
/// machine another second; the measured figure is printed.
const BACK: Duration = Duration::from_secs(2);

/// A browser with its profile.
fn browser() -> (Browser, TempDir) {
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(profile.path()).unwrap_or_else(|error| {
        let log = std::fs::read_to_string(profile.path().join("browser.log")).unwrap_or_default();
        panic!("{error:?}\n{log}");
    });
    (browser, profile)
}

fn shot(browser: &Browser, name: &str) -> Picture {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let folder = target.join("screenshots/page");
    std::fs::create_dir_all(&folder).unwrap();
    browser.screenshot(&folder.join(format!("{name}.png"))).unwrap()
}

/// Waits until the page shows a screen and `also` holds. Never a count of connections: a machine that stands
/// still for a second makes the page reconnect once more, and rightly so.
fn shown(browser: &Browser, also: &str) -> Duration {
    let condition = format!("document.body.dataset.state === 'connected' && {also}");
    browser.wait("the page shows the screen", &condition, PATIENCE).unwrap()
}

fn epoch(number: u64) -> String {
    format!("document.body.dataset.epoch === '{number}'")
}

/// From here on the page keeps what its link does, with the time: `waiting` once one has ended, `connecting` when the next
/// is begun.
fn watch_links(browser: &Browser) {
    let observe = "(() => {
        window.links = [];
        const note = () => window.links.push([performance.now(), document.body.dataset.state]);
        new MutationObserver(note).observe(document.body, { attributeFilter: ['data-state'] });
        return true;
    })()";
    assert_eq!(browser.eval(observe).unwrap(), true);
}

/// The page's own clock, in milliseconds.
fn page_clock(browser: &Browser) -> f64 {
    browser.eval("performance.now()").unwrap().as_f64().unwrap()
}

/// When the page's link was first in `state` after `since`.
fn link_was(browser: &Browser, state: &str, since: f64) -> f64 {
    let first =
        format!("window.links.find(([at, state]) => at >= {since} && state === '{state}')?.[0] ?? null");
    let at = browser.eval(&first).unwrap().as_f64();
    at.unwrap_or_else(|| panic!("never {state}: {}", browser.eval("window.links").unwrap()))
}

/// How long after `since`, on its own clock, the page began to ask a gateway anew.
fn asked_again(browser: &Browser, since: f64) -> Duration {
    Duration::from_secs_f64((link_was(browser, "connecting", since) - since) / 1000.0)
}

/// The longest time, on its own clock, that the page let pass after `since` from the end of a link to its next attempt.
fn longest_pause(browser: &Browser, since: f64) -> Duration {
    let pauses = format!(
        "window.links.filter(([at]) => at >= {since}).flatMap(([at, state], i, all) =>
            state === 'waiting' && i + 1 < all.length ? [all[i + 1][0] - at] : [])"
    );
    let pauses = browser.eval(&pauses).unwrap();
    let pauses = pauses.as_array().unwrap().iter().map(|pause| pause.as_f64().unwrap());
    Duration::from_secs_f64(pauses.max_by(f64::total_cmp).expect("no link ended") / 1000.0)
}

/// The index of the gateway that the page uses.
fn current(browser: &Browser, urls: &[&str]) -> usize {
    let gateway = browser.dataset("gateway").unwrap().unwrap();
    urls.iter().position(|url| *url == gateway).unwrap()
}

/// The page was told why its connection ended, or (on a machine that stood still) gave it up itself; what must
/// not be is a broken connection (1006), because then a living gateway looks like a dead one.
fn assert_told(browser: &Browser, expected: &str) {
    let ended = browser.eval("document.getElementById('notice').dataset.ended").unwrap();
    let ended = ended.as_str().unwrap_or_default();
    assert!(ended == expected || ended.starts_with("4900 "), "the page was told '{ended}'");
}

fn assert_filled(picture: &Picture, colour: Colour, what: &str) {
    assert!(!picture.is_black(), "{what}: the page is black");
    let share = picture.share_of(colour);
    assert!(share > 0.5, "{what}: {colour:?} fills only {share:.2} of the page");
}

/// Marks the loaded page, so that a reload would show.
fn mark(browser: &Browser) {
    browser.eval("(window.loadedOnce = true)").unwrap();
}

fn assert_never_reloaded(browser: &Browser) {
    assert_eq!(browser.eval("window.loadedOnce === true").unwrap(), true, "the page was loaded again");
}

#[test]
#[ignore = "needs a browser"]
fn the_page_follows_its_display_without_a_reload() {
    let (browser, profile) = browser();
    let one = Screen::start("one", BLUE);
    let gateway = Gateway::start(alice(1, Some(one.address), &[]));
    browser.goto(&format!("{}/t/alice/", gateway.url)).unwrap();
    shown(&browser, &epoch(1));
    mark(&browser);
    watch_links(&browser);
    assert_filled(&shot(&browser, "1-before"), BLUE, "before");

    let lost = page_clock(&browser);
    drop(one);
    browser.wait("the page notices", "document.body.dataset.state !== 'connected'", PATIENCE).unwrap();
    browser
        .wait(
            "the notice is there",
            "getComputedStyle(document.getElementById('notice')).opacity === '1'",
            PATIENCE,
        )
        .unwrap();
    assert_told(&browser, "4000 display_closed");
    // The last picture stays, a little dimmed: the page must not go black over a failover.
    let between = shot(&browser, "2-between");
    assert!(!between.is_black() && between.share_of([0x16, 0x18, 0x1b]) < 0.5, "the last picture is gone");

    let two = Screen::start("two", GREEN);
    let start = Instant::now();
    gateway.publisher.publish(alice(2, Some(two.address), &[]));
    shown(&browser, &epoch(2));
    let (back, own) = (start.elapsed(), longest_pause(&browser, lost));
    eprintln!("display reachable -> page shows it: {back:?}; longest pause between two attempts {own:?}");
    assert_filled(&shot(&browser, "3-after"), GREEN, "after");
    assert!(own < OWN && back < BACK, "a pause of {own:?}, took {back:?}");
    assert_never_reloaded(&browser);

    // A line of our own proves that the page's console ends in the log at all.
    browser.eval("console.warn('end of the test')").unwrap();
    let log = || std::fs::read_to_string(profile.path().join("console.log")).unwrap_or_default();
    until("the console is in the log", PATIENCE, || log().contains("end of the test"));
    let log = log();
    assert!(!log.contains("Content Security Policy"), "the page's own policy stops it: {log}");
}

#[test]
#[ignore = "needs a browser"]
fn a_running_display_that_is_replaced_is_left_at_once() {
    let (browser, _profile) = browser();
    let (one, two) = (Screen::start("one", BLUE), Screen::start("two", GREEN));
    let gateway = Gateway::start(alice(1, Some(one.address), &[]));
    browser.goto(&format!("{}/t/alice/", gateway.url)).unwrap();
    shown(&browser, &epoch(1));
    watch_links(&browser);
    let (start, raised) = (Instant::now(), page_clock(&browser));
    gateway.publisher.publish(alice(2, Some(two.address), &[]));
    shown(&browser, &epoch(2));
    let (back, own) = (start.elapsed(), asked_again(&browser, raised));
    eprintln!("epoch raised -> page shows the new display: {back:?}, asks for it {own:?}");
    assert!(own < OWN && back < BACK, "asked after {own:?}, took {back:?}");
    assert_filled(&shot(&browser, "4-replaced"), GREEN, "replaced");
    assert_told(&browser, "4001 display_moved");
}

#[test]
#[ignore = "needs a browser"]
fn the_page_goes_on_through_another_gateway_when_its_own_is_killed_or_freezes() {
    let (browser, _profile) = browser();
    let screen = Screen::start("one", BLUE);
    let mut gateways: Vec<_> = (0..3).map(|_| Gateway::start(alice(1, Some(screen.address), &[]))).collect();
    let urls: Vec<_> = gateways.iter().map(|gateway| gateway.url.clone()).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    browser.goto(&format!("{}/t/alice/", urls[0])).unwrap();
    shown(&browser, &epoch(1));
    mark(&browser);
    // The list comes after the page: it is kept in memory, because its own gateway will not be there to ask.
    for gateway in &gateways {
        gateway.publisher.publish(alice(1, Some(screen.address), &urls));
    }
    browser.wait("the list arrives", "document.body.dataset.gateways === '3'", PATIENCE).unwrap();

    let first = current(&browser, &urls);
    watch_links(&browser);
    let before = page_clock(&browser);
    gateways[first].kill();
    let start = Instant::now();
    shown(&browser, &format!("document.body.dataset.gateway !== '{}'", urls[first]));
    let (killed, own) = (start.elapsed(), asked_again(&browser, before));
    eprintln!("gateway killed -> page asks the next: {own:?}");
    assert!(own < OWN, "the page asked another gateway {own:?} after its own was killed");

    let second = current(&browser, &urls);
    let before = page_clock(&browser);
    gateways[second].freeze();
    let start = Instant::now();
    let dead = format!("!['{}', '{}'].includes(document.body.dataset.gateway)", urls[first], urls[second]);
    shown(&browser, &dead);
    let frozen = start.elapsed();
    // Silence is the only sign, and three beats of it are waited for: what follows is the page's own.
    let noticed = link_was(&browser, "waiting", before);
    let own = asked_again(&browser, noticed);
    eprintln!("gateway frozen -> page notices after {:.0} ms, asks the next {own:?} later", noticed - before);
    assert!(own < OWN, "the page asked another gateway {own:?} after it had noticed the silence");
    eprintln!("gateway killed -> screen through the next: {killed:?}; frozen: {frozen:?}");
    assert_filled(&shot(&browser, "5-other-gateway"), BLUE, "through the last gateway");
    assert!(killed < BACK && frozen < BACK, "killed {killed:?}, frozen {frozen:?}");
    assert_never_reloaded(&browser);
}

#[test]
#[ignore = "needs a browser"]
fn a_gateway_that_offers_an_older_display_is_passed_over() {
    let (browser, _profile) = browser();
    let (old, new) = (Screen::start("old", BLUE), Screen::start("new", GREEN));
    let screens = [(5, new.address), (4, old.address), (5, new.address)];
    let mut gateways: Vec<_> =
        screens.iter().map(|&(epoch, address)| Gateway::start(alice(epoch, Some(address), &[]))).collect();
    let urls: Vec<_> = gateways.iter().map(|gateway| gateway.url.clone()).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    for (gateway, &(epoch, address)) in gateways.iter().zip(&screens) {
        gateway.publisher.publish(alice(epoch, Some(address), &urls));
    }
    browser.goto(&format!("{}/t/alice/", urls[0])).unwrap();
    shown(&browser, &epoch(5));
    gateways[0].kill();
    shown(&browser, &format!("document.body.dataset.gateway === '{}'", urls[2]));
    assert_eq!(browser.dataset("epoch").unwrap().as_deref(), Some("5"));
    assert_filled(&shot(&browser, "6-not-the-older"), GREEN, "after the older one was passed over");
}

#[test]
#[ignore = "needs a browser"]
fn a_page_without_a_display_waits_and_an_unknown_terminal_is_named() {
    let (browser, _profile) = browser();
    let gateway = Gateway::start(alice(1, None, &[]));
    browser.goto(&format!("{}/t/bob/", gateway.url)).unwrap();
    assert_eq!(browser.eval("document.querySelector('h1').textContent").unwrap(), "No terminal bob");
    shot(&browser, "7-unknown");

    browser.goto(&format!("{}/t/alice/", gateway.url)).unwrap();
    let notice = "document.getElementById('notice').textContent === 'waiting for the display…'";
    browser.wait("the page says that it waits", notice, PATIENCE).unwrap();
    shot(&browser, "8-waiting");
    let screen = Screen::start("one", BLUE);
    gateway.publisher.publish(alice(1, Some(screen.address), &[]));
    shown(&browser, &epoch(1));
}

#[test]
#[ignore = "needs a browser, root, ip"]
fn a_browser_in_a_namespace_sees_only_that_network() {
    let namespace = Namespace::add().unwrap();
    let gateway = Gateway::start(alice(1, None, &[]));
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start_in(profile.path(), &namespace.name).unwrap();
    let refused = browser.goto(&format!("{}/t/alice/", gateway.url));
    assert!(matches!(&refused, Err(BrowserError::Command { .. })), "{refused:?}");
    let chain = format!("{:?}", refused.err());
    assert!(chain.contains("ERR_CONNECTION_REFUSED"), "{chain}");

    let other = tempfile::tempdir().unwrap();
    let missing = Browser::start_in(other.path(), "no-such-namespace");
    assert!(matches!(missing, Err(BrowserError::Namespace { .. })));
}

#[test]
#[ignore = "needs a browser"]
fn nothing_of_the_browser_outlives_it() {
    let before = rig::left_by_browsers();
    let (browser, profile) = browser();
    browser.goto("about:blank").unwrap();
    let marker = profile.path().to_str().unwrap().to_owned();
    assert!(!rig::processes_naming(&marker).is_empty(), "the browser does not show its profile");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = browser;
        panic!("as a failing test");
    }));
    assert!(panicked.is_err());
    assert_eq!(rig::processes_naming(&marker), Vec::<u32>::new());
    // Only root has a folder for temporary files that ends with the browser.
    if nix::unistd::geteuid().is_root() {
        assert_eq!(rig::left_by_browsers(), before);
    }
}
