// Owns one WebSocket to one gateway. Promises: `onend` is called exactly once, whatever happens, and within
// the limits below. To noVNC a Link looks like a WebSocket that carries the display's bytes only; the
// gateway's own words (text frames) go to `onword`.

/** A gateway that has not answered by then is not there. */
const CONNECT_MS = 1000;
/** The gateway says something every 250 ms; three of its beats lost, and a little for the way. A host that
 *  lost its power sends no FIN, so silence is the only sign. Silence and tick together stay below a second: by
 *  then the page is on its way to another gateway. */
const SILENCE_MS = 900;
const TICK_MS = 50;
/** A tick this late means that this page itself stood still (sleep, hidden tab): silence proves nothing. */
const LATE_MS = 600;

export const PROTOCOL = 'understudy.v1';

export class Link {
  // The interface that noVNC asks of a channel.
  binaryType = 'arraybuffer';
  protocol = '';
  readyState = WebSocket.OPEN;
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;

  /** @param {string} url of the gateway's WebSocket
   *  @param {(word: object) => void} onword
   *  @param {(end: {code: number, reason: string, answered: boolean}) => void} onend */
  constructor(url, onword, onend) {
    this.onword = onword;
    this.onend = onend;
    this.answered = false;
    this.heard = performance.now();
    this.ticked = this.heard;
    this.socket = new WebSocket(url, [PROTOCOL]);
    this.socket.binaryType = 'arraybuffer';
    this.socket.onmessage = (event) => this.#hear(event);
    this.socket.onclose = (event) => this.#finish(event.code, event.reason);
    this.timer = setInterval(() => this.#tick(), TICK_MS);
  }

  send(data) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(data);
  }

  /** Ends the link at once: the closing handshake would wait for a peer that may be dead. */
  close(code = 1000, reason = '') {
    this.#finish(code, reason);
  }

  #hear(event) {
    this.heard = performance.now();
    this.answered = true;
    if (typeof event.data === 'string') this.onword(JSON.parse(event.data));
    else this.onmessage?.(event);
  }

  #tick() {
    const now = performance.now();
    if (now - this.ticked > LATE_MS) this.heard = now;
    this.ticked = now;
    if (now - this.heard > (this.answered ? SILENCE_MS : CONNECT_MS)) this.#finish(4900, 'gateway is silent');
  }

  #finish(code, reason) {
    if (this.readyState === WebSocket.CLOSED) return;
    this.readyState = WebSocket.CLOSED;
    clearInterval(this.timer);
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.onclose?.({ code, reason });
    this.onend({ code, reason, answered: this.answered });
  }
}
