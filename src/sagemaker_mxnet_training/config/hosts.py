"""The hosts of a job, from environment variables or ``resourceconfig.json``."""

import re
import socket
from typing import Any, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.settings.sources import Found, Sources, non_empty
from sagemaker_mxnet_toolkit.settings.validation import Kind, Validator, matching, string

FILE = "resourceconfig.json"
"""The configuration file that describes the hosts."""

# Labels of 1 to 63 characters (RFC 1035, 2.3.4; RFC 1123, 2.1), with underscores, which
# docker-compose uses. Python's resolver raises UnicodeError for other labels.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


def _host_name(value: Any) -> str:
    if not isinstance(value, str) or not (_NAME.fullmatch(value) or _is_ipv6(value)):
        raise ValueError("not a host name")
    return value


def _is_ipv6(value: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, value)
    except (OSError, ValueError):
        return False
    return "%" not in value


_EXPECTED = "labels of 1 to 63 letters, digits, '-' and '_', separated by dots, or an IP address"
HOST_NAME = Kind(_host_name, f"a host name: {_EXPECTED}")
_LISTED = Kind(_host_name, _EXPECTED)
_INTERFACE = matching(
    re.compile(r"[!-.0-~]{1,255}"), "the name of a network interface", "a name such as eth0"
)


def read(
    sources: Sources, resources: Mapping[str, Found], check: Validator
) -> Tuple[str, Tuple[str, ...]]:
    """Return this host's name, and the names of all hosts, sorted.

    Args:
        sources: provides ``SM_CURRENT_HOST`` and ``SM_HOSTS``, which take precedence.
        resources: the members of ``resourceconfig.json``.
        check: collects faults.
    """
    named = sources.variable("SM_CURRENT_HOST") or non_empty(resources.get("current_host"))
    current = check.value(named, HOST_NAME, "")
    invalid = named is not None and not current
    current = current or _machine_name()
    found = sources.json("SM_HOSTS", list) or resources.get("hosts")
    if found is None:
        return current, (current,)
    if found.name == "hosts" and found.value is None:
        found = found._replace(value=[])
    hosts = check.names(found, _LISTED, "host name")
    if hosts is not None and not hosts:
        check.faults.add("no hosts", found, "at least this host's name")
    elif hosts is not None and current not in hosts and not invalid:
        check.faults.add(
            f"this host, {current!r}, is not among the hosts",
            found,
            f"a list with the current host (SM_CURRENT_HOST, or current_host in {FILE})",
        )
    return current, tuple(sorted(hosts or [current]))


def interface(sources: Sources, resources: Mapping[str, Found], check: Validator) -> str:
    """Return the network interface to the other hosts; empty if it is not configured."""
    found = sources.variable("SM_NETWORK_INTERFACE_NAME")
    return check.value(found or non_empty(resources.get("network_interface_name")), _INTERFACE, "")


def _machine_name() -> str:
    """Return this machine's name, or ``localhost`` if it is not a valid host name."""
    name = socket.gethostname()
    return name if _NAME.fullmatch(name) else "localhost"


def check_resources(resources: Mapping[str, Found], check: Validator) -> None:
    """Check the optional members of ``resourceconfig.json``, which are passed to scripts."""
    for name in ("current_instance_type", "current_instance_group", "current_group_name"):
        check.value(non_empty(resources.get(name)), string("a string"), "")
    groups = non_empty(resources.get("instance_groups"))
    if groups is not None and not (
        isinstance(groups.value, list) and all(map(_is_group, groups.value))
    ):
        check.faults.add(
            "not a list of instance groups",
            groups,
            'a JSON list of {"instance_group_name": ..., "instance_type": ..., "hosts": [...]}',
        )


def distributed(
    hosts: Tuple[str, ...], named: Optional[Found], resources: Mapping[str, Found], check: Validator
) -> Tuple[str, ...]:
    """Return the hosts of the instance groups that train together, sorted.

    These are all hosts if no groups are selected, or if there are no instance groups (local mode),
    as in sagemaker-training 5.1.4.
    """
    listed = non_empty(resources.get("instance_groups"))
    if named is None or listed is None or not isinstance(named.value, list):
        return hosts
    if not (isinstance(listed.value, list) and all(map(_is_group, listed.value))):
        return hosts
    groups = {group["instance_group_name"]: group["hosts"] for group in listed.value}
    missing = [name for name in named.value if name not in groups]
    if missing:
        check.faults.add(f"unknown instance groups {missing}", named, f"some of {list(groups)}")
    members = {host for name in named.value for host in groups.get(name, ())}
    return tuple(host for host in hosts if host in members)


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, dict)
        and isinstance(group.get("instance_group_name"), str)
        and isinstance(group.get("hosts"), list)
        and all(isinstance(host, str) for host in group["hosts"])
    )
