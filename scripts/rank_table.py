"""Read a rank table, the JSON that hccl_tools writes for Ascend, for common.sh.

Usage: rank_table.py FILE [NODE_RANK]

Prints what a launcher on this host needs, one value per line: the number of hosts, this host's number, the number of
devices here, their ids joined by commas, and the address of the first host. Which host this is says NODE_RANK, else the
address of the table that belongs to this machine.
"""

import ipaddress
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A host of the table: its address and the ids of its devices, in the order of their ranks."""

    address: str
    device_ids: tuple[int, ...]


def read_servers(path: Path) -> list[Server]:
    """The hosts of a rank table, that of rank 0 first.

    Raises:
        ValueError: no such file, or not a rank table; says what was expected.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [
            (
                str(entry["server_id"]),
                sorted((int(device["rank_id"]), int(device["device_id"])) for device in entry["device"]),
            )
            for entry in content["server_list"]
        ]
        entries.sort(key=lambda entry: entry[1][0])
        server_count = int(content.get("server_count", len(entries)))
    except (OSError, KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"not a rank table ({type(error).__name__}: {error}); expected the JSON of hccl_tools: "
            "server_list with server_id and device, each device with device_id and rank_id"
        ) from error
    if not entries or server_count != len(entries):
        raise ValueError(f"server_count is {server_count}, server_list holds {len(entries)}")
    ranks = [rank for _, devices in entries for rank, _ in devices]
    if ranks != list(range(len(ranks))):
        raise ValueError(f"the ranks are {ranks}; expected those of a server to follow each other, from 0")
    counts = [len(devices) for _, devices in entries]
    if len(set(counts)) > 1:
        raise ValueError(f"the servers hold {counts} devices; msrun needs equally many on each")
    return [Server(address, tuple(device_id for _, device_id in devices)) for address, devices in entries]


def find_node_rank(servers: Sequence[Server], given: str) -> int:
    """This host's number among the servers: as given, or the one whose address this machine has.

    Raises:
        ValueError: the number is out of range, or no address is this machine's.
    """
    if given:
        if not given.isdecimal() or int(given) >= len(servers):
            raise ValueError(f"NODE_RANK is {given!r}, the table holds servers 0 to {len(servers) - 1}")
        return int(given)
    own = [index for index, server in enumerate(servers) if len(servers) == 1 or is_local(server.address)]
    if not own:
        raise ValueError(
            "no server_id is an address of this machine: "
            f"{', '.join(server.address for server in servers)}; say which server it is with NODE_RANK"
        )
    return own[0]


def is_local(address: str) -> bool:
    """Whether an address belongs to this machine: only then can a socket be bound to it."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except (OSError, ValueError):
        return False
    return True


def main() -> int:
    """Print the five lines, or the error."""
    path, node_rank = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    try:
        servers = read_servers(path)
        number = find_node_rank(servers, node_rank)
    except ValueError as error:
        sys.stderr.write(f"ERROR: RANK_TABLE_FILE: '{path}': {error}\n")
        return 1
    here = servers[number]
    for line in (len(servers), number, len(here.device_ids), ",".join(map(str, here.device_ids)), servers[0].address):
        sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
