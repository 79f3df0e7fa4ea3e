//! The gateway on loopback, with displays that behave well and badly.

mod rig;
pub(super) mod view;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use tokio_tungstenite::tungstenite;
use understudy_core::model::view::View;

use self::rig::{BlackHole, Display, Gateway, LOST, Manner, OPEN, alice, ipv4, screen_address, shown, until};
use self::view::view;
use super::{End, Limits};

const ECHO: Manner = Manner::Echo { delay: Duration::ZERO };
/// What the design allows between a new epoch and the end of every old socket.
const CUT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn bytes_go_both_ways() {
    let display = Display::start("one", ECHO).await;
    let (_sender, directory) = shown(alice(1, Some(display.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;

    let mut terminal = gateway.connect("alice").await;
    assert_eq!(terminal.protocol.as_deref(), Some("binary"));
    assert_eq!(terminal.read_until("one").await, b"RFB 003.008\none");
    terminal.send(b"keys and pointer").await;
    assert_eq!(terminal.read_until("pointer").await, b"keys and pointer");
    assert_eq!((gateway.counters.open(), gateway.counters.connections()), (1, 1));

    drop(terminal);
    until("the display's side ends with the terminal's", || display.ended.load(SeqCst) == 1).await;
    until("the end is counted", || gateway.counters.ended(End::ClientLeft) == 1).await;
    assert_eq!(gateway.counters.open(), 0);
}

#[tokio::test]
async fn a_terminal_that_offers_no_subprotocol_is_served_too() {
    let display = Display::start("one", ECHO).await;
    let (_sender, directory) = shown(alice(1, Some(display.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let mut terminal = gateway.try_connect("alice", None, None).await.unwrap();
    assert_eq!(terminal.protocol, None);
    terminal.read_until("one").await;
}

#[tokio::test]
async fn a_new_epoch_cuts_every_socket_and_the_next_one_reaches_the_new_display() {
    let (old, new) = (Display::start("old", ECHO).await, Display::start("new", ECHO).await);
    let (sender, directory) = shown(alice(1, Some(old.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let mut terminals = [gateway.connect("alice").await, gateway.connect_page("alice").await];
    for terminal in &mut terminals {
        terminal.read_until("old").await;
    }

    let start = Instant::now();
    sender.publish(alice(2, Some(new.addr)));
    for terminal in &mut terminals {
        assert_eq!(terminal.closed().await, (4001, "display_moved".to_owned()));
    }
    assert!(start.elapsed() < CUT, "took {:?}", start.elapsed());
    until("the old display is left", || old.ended.load(SeqCst) == 2).await;
    assert_eq!(gateway.counters.ended(End::DisplayMoved), 2);

    gateway.connect("alice").await.read_until("new").await;
    assert_eq!((old.taken.load(SeqCst), new.taken.load(SeqCst)), (2, 1));
}

#[tokio::test]
async fn each_change_of_the_entry_cuts_with_its_own_reason() {
    let display = Display::start("one", ECHO).await;
    let elsewhere = Display::start("two", ECHO).await;
    for (next, reason) in [
        (alice(2, Some(display.addr)), End::DisplayMoved),
        (alice(1, Some(elsewhere.addr)), End::DisplayMoved),
        (alice(1, None), End::NoDisplay),
        (View::default(), End::TerminalGone),
    ] {
        let (sender, directory) = shown(alice(1, Some(display.addr)));
        let gateway = Gateway::start(directory, Limits::default()).await;
        let mut terminal = gateway.connect("alice").await;
        terminal.read_until("one").await;
        let start = Instant::now();
        sender.publish(next);
        assert_eq!(terminal.closed().await, (reason.code(), reason.as_str().to_owned()));
        assert!(start.elapsed() < CUT, "{reason:?} took {:?}", start.elapsed());
        assert_eq!(gateway.counters.ended(reason), 1);
    }
}

#[tokio::test]
async fn another_terminals_failover_and_a_new_list_of_gateways_cut_nothing() {
    let display = Display::start("one", ECHO).await;
    let (sender, directory) = shown(alice(1, Some(display.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let mut terminal = gateway.connect_page("alice").await;
    let hello = terminal.word("hello").await;
    assert_eq!(hello["epoch"], 1);
    assert_eq!(hello["gateways"], serde_json::json!(["http://host1:8443", "http://host2:8443"]));
    terminal.read_until("one").await;

    let at = Some(ipv4(display.addr));
    sender.publish(view(&[("alice", 1, at), ("bob", 1, at)], &OPEN, &LOST));
    sender.publish(view(
        &[("alice", 1, at), ("bob", 2, None)],
        &[OPEN[0], OPEN[1], "http://host3:8443"],
        &LOST,
    ));
    assert_eq!(terminal.word("gateways").await["gateways"][2], "http://host3:8443");
    terminal.send(b"still here").await;
    terminal.read_until("still here").await;
}

#[tokio::test]
async fn a_terminal_without_a_display_is_told_to_wait_and_one_that_does_not_exist_that_it_is_gone() {
    let (_sender, directory) = shown(alice(3, None));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let mut alice = gateway.connect_page("alice").await;
    let hello = alice.word("hello").await;
    assert!(hello["epoch"].is_null(), "{hello}");
    assert_eq!(hello["gateways"][0], "http://host1:8443", "a page that waits needs the list most");
    assert_eq!(alice.closed().await, (4503, "no_display".to_owned()));

    assert_eq!(gateway.connect("bob").await.closed().await, (4404, "terminal_gone".to_owned()));
    let refused = gateway.try_connect("No_Name", None, None).await;
    assert!(matches!(refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 404));
}

#[tokio::test]
async fn a_dead_display_is_reported_whether_it_refuses_or_says_nothing() {
    let refusing = screen_address();
    let hole = BlackHole::start().await;
    let limits = Limits { connect: Duration::from_millis(400), ..Limits::default() };
    for (addr, at_least) in [(refusing, Duration::ZERO), (hole.addr, limits.connect)] {
        let (_sender, directory) = shown(alice(1, Some(addr)));
        let gateway = Gateway::start(directory, limits).await;
        let start = Instant::now();
        let mut terminal = gateway.connect_page("alice").await;
        assert_eq!(terminal.closed().await, (4502, "display_unreachable".to_owned()));
        assert!(start.elapsed() >= at_least, "gave up after {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_move_ends_the_wait_for_a_display_that_does_not_answer() {
    let hole = BlackHole::start().await;
    let (sender, directory) = shown(alice(1, Some(hole.addr)));
    let limits = Limits { connect: Duration::from_secs(60), ..Limits::default() };
    let gateway = Gateway::start(directory, limits).await;
    let mut terminal = gateway.connect_page("alice").await;
    terminal.word("beat").await;
    let start = Instant::now();
    sender.publish(alice(2, None));
    assert_eq!(terminal.closed().await.0, 4503);
    assert!(start.elapsed() < CUT, "took {:?}", start.elapsed());
}

#[tokio::test]
async fn a_slow_display_is_waited_for_while_the_gateway_shows_that_it_lives() {
    let beat = Duration::from_millis(20);
    let limits = Limits { greeting: Duration::from_millis(1500), beat, ..Limits::default() };
    let slow = Display::start("slow", Manner::Echo { delay: Duration::from_millis(400) }).await;
    let (sender, directory) = shown(alice(1, Some(slow.addr)));
    let gateway = Gateway::start(directory, limits).await;
    let mut terminal = gateway.connect_page("alice").await;
    for _ in 0..5 {
        terminal.word("beat").await;
    }
    terminal.read_until("slow").await;

    let mute = Display::start("mute", Manner::Mute).await;
    sender.publish(alice(2, Some(mute.addr)));
    let start = Instant::now();
    let mut terminal = gateway.connect_page("alice").await;
    assert_eq!(terminal.closed().await, (4504, "display_silent".to_owned()));
    assert!(start.elapsed() >= limits.greeting);
}

#[tokio::test]
async fn a_terminal_that_reads_nothing_stops_its_display_and_is_cut_all_the_same() {
    let display = Display::start("flood", Manner::Flood).await;
    let (sender, directory) = shown(alice(1, Some(display.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let _terminal = gateway.connect("alice").await;

    let sent = || display.sent.load(SeqCst);
    until("the flood starts", || sent() > 0).await;
    let (mut last, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_millis(300) {
        if sent() != last {
            (last, quiet) = (sent(), Instant::now());
        }
        // What the kernel's buffers hold on both legs (a few MiB each, by its own limits).
        assert!(last < 64 << 20, "the gateway takes {last} bytes for a terminal that reads none");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let start = Instant::now();
    sender.publish(alice(2, None));
    until("the display is left", || display.ended.load(SeqCst) == 1).await;
    assert!(start.elapsed() < CUT, "took {:?}", start.elapsed());
    until("the end is counted", || gateway.counters.ended(End::NoDisplay) == 1).await;
    assert_eq!(gateway.counters.open(), 0);
}

#[tokio::test]
async fn a_display_that_reads_nothing_stops_its_terminal_and_is_cut_all_the_same() {
    let display = Display::start("deaf", Manner::Deaf).await;
    let (sender, directory) = shown(alice(1, Some(display.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let mut terminal = gateway.connect("alice").await;
    terminal.read_until("deaf").await;
    static PASTE: [u8; 64 * 1024] = [7; 64 * 1024];
    let mut sent = 0_usize;
    while tokio::time::timeout(Duration::from_millis(300), terminal.send(&PASTE)).await.is_ok() {
        sent += PASTE.len();
        assert!(sent < 64 << 20, "the gateway takes {sent} bytes for a display that reads none");
    }
    let start = Instant::now();
    sender.publish(alice(2, None));
    until("the connection ends", || gateway.counters.ended(End::NoDisplay) == 1).await;
    assert!(start.elapsed() < CUT, "took {:?}", start.elapsed());
    // With all that was never read, the reason arrives nevertheless.
    assert_eq!(terminal.closed().await, (4503, "no_display".to_owned()));
}

#[tokio::test]
async fn a_terminal_that_answers_no_ping_is_dropped() {
    let display = Display::start("one", ECHO).await;
    let (_sender, directory) = shown(alice(1, Some(display.addr)));
    let (ping, client_silence) = (Duration::from_millis(50), Duration::from_millis(400));
    let gateway = Gateway::start(directory, Limits { ping, client_silence, ..Limits::default() }).await;

    // The living one only reads: its library answers the pings.
    let mut living = gateway.connect("alice").await;
    let listening = tokio::spawn(async move { living.closed().await });
    let mut dead = gateway.connect("alice").await;
    dead.read_until("one").await;
    until("the silent terminal is dropped", || gateway.counters.ended(End::ClientSilent) == 1).await;
    until("its display connection too", || display.ended.load(SeqCst) == 1).await;
    assert_eq!(gateway.counters.open(), 1);
    assert!(!listening.is_finished());
    listening.abort();
}

#[tokio::test]
async fn a_foreign_page_is_refused_and_counted_while_the_clusters_pages_are_served() {
    let display = Display::start("one", ECHO).await;
    let (_sender, directory) = shown(alice(1, Some(display.addr)));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let refused = gateway.try_connect("alice", Some("binary"), Some("http://elsewhere.example")).await;
    assert!(matches!(refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 403));
    assert_eq!(gateway.counters.refused_origins(), 1);
    assert_eq!(display.taken.load(SeqCst), 0);
    // A page outlives the gateway that it was loaded from, also once that gateway's host is given up.
    for origin in ["http://host2:8443", "http://host9:8443", &format!("http://{}", gateway.addr)] {
        let mut terminal = gateway.try_connect("alice", Some("binary"), Some(origin)).await.unwrap();
        terminal.read_until("one").await;
    }
}

#[tokio::test]
async fn every_gateway_serves_every_terminal_and_one_that_goes_down_says_so() {
    let display = Display::start("one", ECHO).await;
    let (first, directory) = shown(alice(1, Some(display.addr)));
    let a = Gateway::start(directory, Limits::default()).await;
    let (_second, directory) = shown(alice(1, Some(display.addr)));
    let b = Gateway::start(directory, Limits::default()).await;
    let (mut on_a, mut on_b) = (a.connect("alice").await, b.connect("alice").await);
    on_a.read_until("one").await;
    on_b.read_until("one").await;

    drop(first);
    assert_eq!(on_a.closed().await, (1001, "shutdown".to_owned()));
    on_b.send(b"goes on").await;
    on_b.read_until("goes on").await;
}

#[tokio::test]
async fn the_page_comes_with_its_policy_and_its_assets_may_be_kept_for_ever() {
    let (_sender, directory) = shown(alice(1, None));
    let gateway = Gateway::start(directory, Limits::default()).await;
    assert!(gateway.get("/t/alice", "").await.to_lowercase().contains("location: /t/alice/\r\n"));

    let page = gateway.get("/t/alice/", "").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for part in ["content-type: text/html", "content-security-policy: default-src 'none'", "no-cache"] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(page.contains("data-terminal=\"alice\"") && page.contains("<noscript>"));

    let script = page.split("src=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let prefix = script.strip_suffix("/page/terminal.js").unwrap();
    for (path, mime) in [
        ("/page/terminal.js", "text/javascript"),
        ("/page/terminal.css", "text/css"),
        ("/novnc/core/rfb.js", "text/javascript"),
        ("/novnc/vendor/pako/LICENSE", "text/plain"),
    ] {
        let answer = gateway.get(&format!("{prefix}{path}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        assert!(answer.contains(&format!("content-type: {mime}; charset=utf-8\r\n")), "{path}");
        assert!(answer.contains("immutable") && answer.contains("x-content-type-options: nosniff"), "{path}");
        let etag = answer.split("etag: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
        let again = gateway.get(&format!("{prefix}{path}"), &format!("If-None-Match: {etag}\r\n")).await;
        assert!(again.starts_with("HTTP/1.1 304"), "{path}: {again}");
    }
    for path in ["/assets/0123456789abcdef/page/terminal.js", &format!("{prefix}/page/package.json")] {
        assert!(gateway.get(path, "").await.starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[tokio::test]
async fn an_unknown_terminal_gets_a_clear_answer_that_repeats_nothing_unescaped() {
    let (_sender, directory) = shown(alice(1, None));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let missing = gateway.get("/t/bob/", "").await;
    assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("No terminal <b>bob</b>"), "{missing}");
    for path in ["/t/%3Cscript%3E/", "/t/%3Cscript%3E"] {
        let hostile = gateway.get(path, "").await;
        assert!(hostile.starts_with("HTTP/1.1 404"), "{hostile}");
        assert!(hostile.contains("&lt;script&gt;") && !hostile.contains("<script>"), "{hostile}");
    }
    assert!(gateway.get("/t/bob/gateways.json", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn the_list_of_gateways_is_readable_by_the_clusters_pages_only() {
    let (_sender, directory) = shown(alice(1, None));
    let gateway = Gateway::start(directory, Limits::default()).await;
    let ours = gateway.get("/t/alice/gateways.json", "Origin: http://host1:8443\r\n").await;
    assert!(ours.contains("access-control-allow-origin: http://host1:8443\r\n"), "{ours}");
    assert!(ours.ends_with(r#"{"gateways":["http://host1:8443","http://host2:8443"]}"#), "{ours}");
    let foreign = gateway.get("/t/alice/gateways.json", "Origin: http://elsewhere.example\r\n").await;
    assert!(!foreign.contains("access-control-allow-origin"), "{foreign}");
}
