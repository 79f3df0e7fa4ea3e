// The policy `affinity` in JavaScript: a terminal goes to the hosts of its own team, where these have room.
//
// Ranks as policies/affinity does, whose README says how. Numbers of 64 bits are BigInt here.

export const placement = {
  place(request, hosts, parameters) {
    const key = labelKey(parameters);
    const label = request.terminalLabels.find((id) => hosts.labels[id].key === key);
    const takesIdle = request.purpose === "primary" || request.purpose === "warm-backup";
    const withMember = new Set(request.members.map((member) => member.host));

    const candidates = [];
    for (let row = 0; row < hosts.state.length; row++) {
      if (suits(request, hosts, row, takesIdle)) {
        candidates.push({
          row,
          member: withMember.has(row),
          elsewhere: !hasLabel(hosts, row, label),
          free: hosts.freeMemoryMib[row],
        });
      }
    }
    candidates.sort(compare);
    return candidates.slice(0, request.wanted).map(({ row, elsewhere, free }) => ({
      host: row,
      reason: request.reasons
        ? `${elsewhere ? "not of" : "of"} the terminal's ${key}, ${free} MiB free`
        : undefined,
    }));
  },
};

function labelKey(parameters) {
  let key = "team";
  for (const parameter of parameters) {
    if (parameter.key !== "label") {
      throw `parameter '${parameter.key}' is unknown: use label`;
    }
    key = parameter.value;
  }
  return key;
}

function suits(request, hosts, row, takesIdle) {
  const takesWork = hosts.state[row] === "ready" || hosts.state[row] === "degraded";
  const hasRoom =
    hosts.freeVcpus[row] >= request.vcpus && hosts.freeMemoryMib[row] >= request.memoryMib;
  return takesWork && (hasRoom || (takesIdle && hasIdle(request, hosts, row)));
}

function hasIdle(request, hosts, row) {
  for (let entry = hosts.idleStart[row]; entry < hosts.idleStart[row + 1]; entry++) {
    if (hosts.idleTemplate[entry] === request.template && hosts.idleCount[entry] > 0) {
      return true;
    }
  }
  return false;
}

function hasLabel(hosts, row, label) {
  return hosts.labelIds.slice(hosts.labelStart[row], hosts.labelStart[row + 1]).includes(label);
}

// Hosts without a member of the node, then those with the label, then the emptiest, then the order of rows.
function compare(a, b) {
  if (a.member !== b.member) return a.member ? 1 : -1;
  if (a.elsewhere !== b.elsewhere) return a.elsewhere ? 1 : -1;
  if (a.free !== b.free) return a.free > b.free ? -1 : 1;
  return a.row - b.row;
}
