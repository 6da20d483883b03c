"""What libnftables cannot do for two threads at once is done by one after another."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from netlib.firewall import libnftables
from netlib.firewall.libnftables import Nft
from netlib.kernel.handle import Kernel
from netlib.model import HOST

SECONDS = 10.0


class Meeting:
    """Stands where the library runs commands: who comes in waits until another is in as well, or until *patience* is over."""

    def __init__(self, patience: float) -> None:
        self.most = 0
        self._inside = 0
        self._patience = patience
        self._changed = threading.Condition()

    @contextmanager
    def attended(self) -> Iterator[None]:
        with self._changed:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most > 1, self._patience)
        yield
        with self._changed:
            self._inside -= 1


@pytest.mark.parametrize(("json", "patience", "most"), [(True, 0.2, 1), (False, SECONDS, 2)])
def test_one_thread_writes_json_at_a_time(monkeypatch: pytest.MonkeyPatch, json: bool, patience: float, most: int) -> None:
    meeting, library = Meeting(patience), libnftables._library()

    def run(context: int, commands: bytes) -> int:
        with meeting.attended():
            return int(library.nft_run_cmd_from_buffer(context, commands))

    members = ("nft_ctx_output_set_flags", "nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer")
    watched = SimpleNamespace(nft_run_cmd_from_buffer=run, **{name: getattr(library, name) for name in members})
    conversations = [Nft(Kernel(), HOST) for _ in range(2)]
    try:
        monkeypatch.setattr(libnftables, "_library", lambda: watched)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda nft: nft.listing("list tables") if json else nft.text("list tables"), conversations))
    finally:
        monkeypatch.undo()
        for nft in conversations:
            nft.close()
    assert meeting.most == most
