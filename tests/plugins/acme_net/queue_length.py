"""A kernel object that netlib does not have: how many packets wait at a link."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from netlib.errors import KernelError
from netlib.plan import KernelObject, Key

if TYPE_CHECKING:
    from netlib.kernel.handle import Kernel

_KERNELS_OWN = 1000


class QueueLength(KernelObject, frozen=True, kw_only=True, tag="acme-net.queue_length"):
    """The length of a link's transmit queue, in packets; the link is the host's, and ours."""

    ifname: str
    packets: int

    @cached_property
    def key(self) -> Key:
        return Key("queue_length", "", self.ifname)

    @property
    def _file(self) -> Path:
        return Path("/sys/class/net", self.ifname, "tx_queue_len")

    def ensure(self, kernel: "Kernel") -> None:
        try:
            self._file.write_text(str(self.packets))
        except OSError as error:
            raise KernelError(f"could not set the queue length of link {self.ifname}: {error.strerror}") from error

    def remove(self, kernel: "Kernel") -> None:
        if self._file.exists():
            self._file.write_text(str(_KERNELS_OWN))

    def drift(self, kernel: "Kernel") -> str | None:
        found = int(self._file.read_text()) if self._file.exists() else 0
        return None if found == self.packets else f"the queue of link {self.ifname} takes {found} packets, not {self.packets}"

    def commands(self) -> Iterable[str]:
        yield f"ip link set {self.ifname} txqueuelen {self.packets}"
