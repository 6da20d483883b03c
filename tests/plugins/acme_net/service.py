"""An address service, as it might run on another host: it answers after a while, and remembers by whom it was asked.

``python -m acme_net.service SOCKET SECONDS``: a request and its answer are one line of JSON each. ``held`` is answered at once.
"""

import json
import socketserver
import sys
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

_BLOCK = ip_network("10.77.0.0/16")


class Addresses:
    """Who has what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subnets: dict[str, str] = {}
        self._addresses: dict[str, str] = {}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what *asked* says."""
        with self._lock:
            return getattr(self, asked.pop("verb"))(**asked)  # type: ignore[no-any-return]

    def take_subnet(self, record: str, subnet: str = "") -> dict[str, Any]:
        """A /24, the same one when the record asks again."""
        if record not in self._subnets:
            taken = {ip_network(item) for item in self._subnets.values()}
            free = (block for block in _BLOCK.subnets(new_prefix=24) if not any(block.overlaps(item) for item in taken))
            self._subnets[record] = subnet or str(next(free))
        return {"subnet": self._subnets[record]}

    def take_address(self, record: str, subnet: str, address: str = "") -> dict[str, Any]:
        """An address of *subnet*, the same one when the record asks again; the first is for a gateway."""
        if record not in self._addresses:
            taken = {ip_address(item) for item in self._addresses.values()}
            hosts = list(ip_network(subnet).hosts())[1:]
            free = [host for host in hosts if host not in taken]
            if address and ip_address(address) not in free:
                return {"error": f"address {address} is not free in {subnet}"}
            self._addresses[record] = address or str(free[0])
        return {"address": self._addresses[record]}

    def release(self, record: str) -> dict[str, Any]:
        """Forget the record."""
        self._subnets.pop(record, None)
        self._addresses.pop(record, None)
        return {}

    def held(self) -> dict[str, Any]:
        """All that is taken."""
        return {"held": sorted([*self._subnets.values(), *self._addresses.values()])}


def serve(path: str, seconds: float) -> None:
    """Answer until this process ends."""
    addresses = Addresses()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = json.loads(self.rfile.readline())
            if asked["verb"] != "held":
                threading.Event().wait(seconds)  # as far away as it is
            self.wfile.write(json.dumps(addresses.answer(asked)).encode() + b"\n")

    Path(path).unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
