"""What the daemon says of itself; and, as `python -m backupd.daemon.health [URL]`, the question that a container's
health check asks."""

from __future__ import annotations

import ssl
import sys
import urllib.request
from collections.abc import Mapping
from time import monotonic

_ASLEEP = 120.0  # seconds without a turn of the loop, after which it hangs


class Health:
    """Written by the daemon's loop, read by the server's threads."""

    def __init__(self) -> None:
        self._turned = monotonic()
        self._troubles: Mapping[str, str] = {"storage": "it was not asked yet"}

    def turn(self) -> None:
        self._turned = monotonic()

    def note(self, what: str, trouble: str | None) -> None:
        """`what`: config, storage, clock, cluster NAME … None: it is well."""
        others = {name: text for name, text in self._troubles.items() if name != what}
        self._troubles = others if trouble is None else {**others, what: trouble}

    @property
    def alive(self) -> bool:
        return monotonic() - self._turned < _ASLEEP

    @property
    def troubles(self) -> Mapping[str, str]:
        """By what is not well."""
        return self._troubles


def main(url: str = "http://127.0.0.1:9847") -> int:
    """Exit code 0: it is alive. Only asked on this machine: whose name the certificate bears does not matter."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5, context=context) as answer:  # noqa: S310
            return 0 if answer.status == 200 else 1
    except OSError:  # refused, late, or 503
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
