"""What the daemon tells its supervisor, and that one that does not listen never holds it up."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread

import pytest

from backupd.daemon.systemd import Systemd


def test_a_supervisor_that_reads_nothing_does_not_hang_us(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    told = Systemd({"NOTIFY_SOCKET": address})
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        supervisor.bind(address)
        told.tell("STATUS=first")
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):  # how many it takes is the machine's affair
                other.sendto(b"STATUS=full", address)
        telling = Thread(target=told.tell, args=["STATUS=last"], daemon=True)
        telling.start()
        telling.join(10)
        hung = telling.is_alive()
        heard = supervisor.recv(100)
        telling.join(10)
    assert not hung
    assert heard == b"STATUS=first"


def test_elsewhere_nothing_is_told() -> None:
    Systemd({}).tell("READY=1")
    Systemd({"NOTIFY_SOCKET": "/nowhere/notify"}).tell("READY=1")
