// Owns the page of one terminal: keeps its screen connected, for ever and without a reload.
//
//   connecting ──first picture──▶ connected ──link ended──▶ waiting ──pause──▶ connecting …
//
// Every module is imported here, statically: after its own gateway died the page can load nothing more.
// document.body.dataset carries {state, connections, gateway, gateways, epoch, ended} for tests and for support.

import RFB from '../novnc/core/rfb.js';
import { EpochGuard, Gateways } from './gateways.js';
import { Link } from './link.js';

/** Pause after a gateway said that there is nothing to show, or after a whole round of dead gateways. */
const RETRY_MS = 200;
/** Pause for a terminal that was deleted: somebody may make it anew, but nobody hurries. */
const GONE_MS = 1000;
/** From the gateway's greeting to the first picture; a busy emulated guest takes seconds. */
const PICTURE_MS = 10000;
/** How often a new screen is looked at until its first picture is there. */
const LOOK_MS = 16;

/** Close codes of the gateway (gateway/counters.rs), and those that the page gives to itself. */
const FIRST_OF_GATEWAY = 4000;
const LAST_OF_GATEWAY = 4899;
const MOVED = 4001;
const GONE = 4404;
const OLDER_EPOCH = 4901;
const NO_PICTURE = 4902;

const { dataset } = document.body;
const screen = document.getElementById('screen');
const still = document.getElementById('still');
const notice = document.getElementById('notice');
const terminal = dataset.terminal;

const gateways = new Gateways(location.origin);
const guard = new EpochGuard();
let failures = 0;

function connect() {
  const gateway = gateways.current;
  dataset.state = 'connecting';
  dataset.gateway = gateway;
  const session = { link: null, rfb: null, canvas: null, shown: false, timers: [] };
  const url = `${gateway.replace(/^http/, 'ws')}/t/${terminal}/ws`;
  session.link = new Link(url, (word) => hear(session, word), (end) => finish(session, end));
}

function hear(session, word) {
  if (word.gateways) gateways.learn(word.gateways);
  dataset.gateways = gateways.list.length;
  if (word.type !== 'hello' || word.epoch === null) return;
  if (!guard.admits(word.epoch, gateways.list.length)) {
    session.link.close(OLDER_EPOCH, 'older display');
    return;
  }
  dataset.epoch = word.epoch;
  start(session);
}

function start(session) {
  const rfb = new RFB(screen, session.link, { shared: true });
  session.rfb = rfb;
  session.canvas = screen.querySelector('canvas');
  rfb.scaleViewport = true;
  rfb.background = 'transparent';
  // Text is what people read here, and the way is a local network: no visible JPEG artefacts.
  rfb.qualityLevel = 9;
  const limit = setTimeout(() => session.link.close(NO_PICTURE, 'no picture'), PICTURE_MS);
  session.timers.push(limit);
  rfb.addEventListener('connect', () => {
    const look = setInterval(() => {
      if (!painted(session.canvas)) return;
      clearInterval(look);
      clearTimeout(limit);
      show(session);
    }, LOOK_MS);
    session.timers.push(look);
  });
  rfb.addEventListener('credentialsrequired', () => session.link.close(NO_PICTURE, 'display wants a password'));
  // Only news when noVNC itself gave up (the bytes are no RFB): a link that has ended takes no second end.
  rfb.addEventListener('disconnect', () => session.link.close(NO_PICTURE, 'not a display'));
}

function show(session) {
  session.shown = true;
  failures = 0;
  still.hidden = true;
  dataset.connections = Number(dataset.connections) + 1;
  dataset.state = 'connected';
  session.rfb.focus({ preventScroll: true });
}

function finish(session, end) {
  session.timers.forEach(clearTimeout);
  if (session.shown) keepPicture(session.canvas);
  dataset.state = 'waiting';
  dataset.ended = `${end.code} ${end.reason}`;
  notice.textContent = wording(session, end);
  setTimeout(connect, pause(session, end));
}

/** Chooses the next gateway and says how long to wait before it is tried. */
function pause(session, end) {
  // The gateway is well and said that the display changed: it is the one to ask, and now.
  if (session.shown && fromGateway(end)) return 0;
  gateways.advance();
  failures += 1;
  if (end.code === GONE) return GONE_MS;
  // Dead gateways are skipped at once, until all were tried; a living one that has nothing is not hurried.
  const skip = session.shown || (!end.answered && failures % gateways.list.length !== 0);
  return skip ? 0 : RETRY_MS;
}

function wording(session, end) {
  if (end.code === GONE) return `terminal ${terminal} does not exist any more`;
  if (session.shown) {
    const display = end.code === MOVED ? 'display moved' : 'display lost';
    notice.dataset.lost = fromGateway(end) ? display : 'connection lost';
    notice.dataset.ended = dataset.ended;
  }
  const lost = notice.dataset.lost;
  return lost ? `${lost}, reconnecting…` : 'waiting for the display…';
}

/** Whether a living gateway ended the link, for a reason of the display's. */
function fromGateway(end) {
  return end.code >= FIRST_OF_GATEWAY && end.code <= LAST_OF_GATEWAY;
}

/** Whether noVNC has drawn a whole first picture: both ends of its canvas are opaque. Read through a canvas of
 *  one pixel, because reading the screen's own would make the browser draw it without acceleration. */
const probe = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
function painted(canvas) {
  if (!canvas || canvas.width === 0) return false;
  return [[0, 0], [canvas.width - 1, canvas.height - 1]].every(([x, y]) => {
    probe.clearRect(0, 0, 1, 1);
    probe.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
    return probe.getImageData(0, 0, 1, 1).data[3] === 255;
  });
}

function keepPicture(canvas) {
  if (!canvas || canvas.width === 0) return;
  still.width = canvas.width;
  still.height = canvas.height;
  still.getContext('2d').drawImage(canvas, 0, 0);
  still.hidden = false;
}

connect();
