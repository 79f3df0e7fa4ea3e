"""The policy `affinity` in Python: a terminal goes to the hosts of its own team, where these have room.

Ranks as policies/affinity does, whose README says how.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.placement import Hosts, HostState, Pick, Purpose, Request
from wit_world.imports.types import Parameter


class Placement(exports.Placement):
    """The one interface that this policy answers."""

    def place(self, request: Request, hosts: Hosts, parameters: list[Parameter]) -> list[Pick]:
        """The hosts that would do, best first."""
        key = label_key(parameters)
        label = next((i for i in request.terminal_labels if hosts.labels[i].key == key), None)
        with_member = {member.host for member in request.members}
        # Hosts without a member of the node, then those with the label, then the emptiest, then the order of rows.
        candidates = sorted(
            (row in with_member, not has_label(hosts, row, label), -hosts.free_memory_mib[row], row)
            for row in range(len(hosts.state))
            if suits(request, hosts, row)
        )
        return [
            Pick(row, reason(key, elsewhere, -free) if request.reasons else None)
            for _, elsewhere, free, row in candidates[: request.wanted]
        ]


def label_key(parameters: list[Parameter]) -> str:
    """The key that the site set, if it set one and nothing else."""
    key = "team"
    for parameter in parameters:
        if parameter.key != "label":
            raise Err(f"parameter '{parameter.key}' is unknown: use label")
        key = parameter.value
    return key


def suits(request: Request, hosts: Hosts, row: int) -> bool:
    """Whether the host takes work, and has room or an idle instance that would do."""
    if hosts.state[row] not in (HostState.READY, HostState.DEGRADED):
        return False
    has_room = (
        hosts.free_vcpus[row] >= request.vcpus and hosts.free_memory_mib[row] >= request.memory_mib
    )
    return has_room or has_idle(request, hosts, row)


def has_idle(request: Request, hosts: Hosts, row: int) -> bool:
    """A held place runs nothing and a migration brings its own instance, so these take no idle one."""
    if request.purpose not in (Purpose.PRIMARY, Purpose.WARM_BACKUP):
        return False
    return any(
        hosts.idle_template[entry] == request.template and hosts.idle_count[entry] > 0
        for entry in range(hosts.idle_start[row], hosts.idle_start[row + 1])
    )


def has_label(hosts: Hosts, row: int, label: int | None) -> bool:
    """Whether the host has this label, key and value."""
    return label in hosts.label_ids[hosts.label_start[row] : hosts.label_start[row + 1]]


def reason(key: str, elsewhere: bool, free: int) -> str:
    """For the operator."""
    return f"{'not of' if elsewhere else 'of'} the terminal's {key}, {free} MiB free"
