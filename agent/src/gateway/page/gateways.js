// Owns which gateway is tried next, and which display epoch may be shown. No sockets, no timers, no page.

/** Every gateway of the cluster, walked round robin. */
export class Gateways {
  /** @param {string} home origin that the page was loaded from: stays in the walk even when nobody lists it,
   *  because it is known to be reachable under that name. */
  constructor(home) {
    this.home = home;
    this.list = [home];
    this.at = 0;
  }

  get current() {
    return this.list[this.at];
  }

  advance() {
    this.at = (this.at + 1) % this.list.length;
  }

  /** Takes a newer list. An empty one is no news: a gateway that knows of nobody must not strand the page. */
  learn(urls) {
    const fresh = [...new Set(urls.map(originOf).filter(Boolean))];
    if (fresh.length === 0) return;
    const current = this.current;
    this.list = fresh.includes(this.home) ? fresh : [...fresh, this.home];
    const kept = this.list.indexOf(current);
    // A gateway that left the list is not left at once: it may still carry this very connection.
    this.at = kept >= 0 ? kept : this.list.push(current) - 1;
  }
}

/** Refuses the picture of an older epoch: a gateway that is cut off from the cluster would go on to offer it. */
export class EpochGuard {
  constructor() {
    this.newest = 0;
    this.refusals = 0;
  }

  /** Whether a display of `epoch` may be shown. When a whole round of `gateways` offers only older ones, the
   *  cluster agrees (a terminal that was deleted and made anew starts over), and the page follows. */
  admits(epoch, gateways) {
    if (epoch < this.newest && ++this.refusals <= gateways) return false;
    this.newest = epoch;
    this.refusals = 0;
    return true;
  }
}

function originOf(url) {
  try {
    const origin = new URL(url).origin;
    return origin === 'null' ? null : origin;
  } catch {
    return null;
  }
}
