"""Messages to people, by apprise, and pings to a dead man's switch. None of it can hold up or fail a job."""

from __future__ import annotations

import importlib.util
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Literal

from pydantic import SecretStr

from backupd.config_models import Notify
from backupd.daemon.background import Background
from backupd.errors import ConfigError

_SECONDS = 10.0
_MOST_WAITING = 200  # messages; a service that is dead for long must not fill our memory
Event = Literal["start", "success", "fail"]


def check(wanted: Notify) -> None:
    """Raises ConfigError where messages are wanted and can't be sent."""
    if not wanted.urls:
        return
    if importlib.util.find_spec("apprise") is None:
        raise ConfigError(
            "[notify] has urls, and apprise is not installed", hint="Install it: pip install 'backupd[notify]'"
        )
    import apprise

    for number, url in enumerate(wanted.urls):
        if not apprise.Apprise().add(url.get_secret_value()):
            raise ConfigError(
                f"notify.urls[{number}] is no address that apprise knows",
                hint="https://github.com/caronc/apprise has the forms: mailto://…, slack://…, ntfy://…",
            )


class Teller:
    """Sends in the background, one at a time. `complain` is told what could not be sent, never a secret."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._background = Background("telling")
        self._waiting = 0

    def message(self, wanted: Notify, title: str, body: str, *, well: bool = False) -> None:
        """`well`: it is good news."""
        if wanted.urls:
            self._later(lambda: self._send(wanted, title, body, well=well))

    def ping(self, url: SecretStr | None, event: Event, text: str = "") -> None:
        """As healthchecks.io and its like have it: URL/start, URL, URL/fail; the text is the body."""
        if url is not None:
            place = url.get_secret_value().rstrip("/") + {"start": "/start", "success": "", "fail": "/fail"}[event]
            self._later(lambda: self._ping(place, text))

    def close(self) -> None:
        """Wait for what is still to be sent, but not for long."""
        deadline = time.monotonic() + _SECONDS
        while self._waiting and time.monotonic() < deadline:
            time.sleep(0.05)

    def _later(self, send: Callable[[], None]) -> None:
        if self._waiting >= _MOST_WAITING:
            self._complain("too many messages wait to be sent: one is dropped")
            return
        self._waiting += 1
        self._background.submit(self._one, send)

    def _one(self, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:  # noqa: BLE001  (whatever a message service does, backups go on)
            self._complain(f"a message could not be sent: {type(error).__name__}")
        finally:
            self._waiting -= 1

    def _send(self, wanted: Notify, title: str, body: str, *, well: bool) -> None:
        import apprise

        kind = apprise.NotifyType.SUCCESS if well else apprise.NotifyType.FAILURE
        for number, url in enumerate(wanted.urls):
            service = apprise.Apprise()
            if not (service.add(url.get_secret_value()) and service.notify(title=title, body=body, notify_type=kind)):
                self._complain(f"a message could not be sent to notify.urls[{number}]")

    def _ping(self, place: str, text: str) -> None:
        request = urllib.request.Request(place, data=text.encode()[:10_000], method="POST")  # noqa: S310  (checked)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
                pass
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "code", None) or type(error).__name__
            self._complain(f"a ping could not be sent: {reason}")
