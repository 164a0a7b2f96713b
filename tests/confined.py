"""What systemd does with the limits of backupd.service, as far as it can be done without systemd.

    python -m tests.confined STATE [UID PYTHON] -- COMMAND…

Everybody can give up new privileges, memory that is written and then run, system calls and kinds of sockets. As root,
and then as user UID, moreover: file systems that can't be written but for STATE, private temporary folders, a /proc
without others' processes, no capabilities. The values come from the unit. Users and devices of its own are not tried.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PROJECT = Path(__file__).resolve().parents[1]
UNIT = PROJECT / "systemd" / "backupd.service"

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQ, _GT, _MASKED = 4, 6, 7
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
_PROT_WRITE, _PROT_EXEC = 2, 4
_PR_SET_NO_NEW_PRIVS = 38
_MS_BIND = 4096


class _Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def settings() -> dict[str, list[str]]:
    """The unit's keys and their values, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"(?m)^(\w+)=(.*)$", UNIT.read_text()):
        found.setdefault(key, []).append(value)
    return found


# ---- system calls (seccomp_rule_add(3))


class _Filter:
    def __init__(self, otherwise: int) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def rule(self, action: int, call: str, *arguments: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # of another architecture
            return
        compared = (_Argument * len(arguments))(*(_Argument(*each) for each in arguments))
        done = self._library.seccomp_rule_add_array(
            self._filter, ctypes.c_uint32(action), number, len(arguments), compared
        )
        assert done == 0, (call, os.strerror(-done))

    def load(self) -> None:
        done = self._library.seccomp_load(self._filter)
        assert done == 0, os.strerror(-done)


def calls(group: str) -> set[str]:
    """Those of a group, as systemd has it."""
    told = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    names = {line.strip() for line in told.stdout.splitlines()[1:] if line.strip() and not line.strip().startswith("#")}
    return {call for name in names for call in (calls(name) if name.startswith("@") else {name})}


def _confine(allowed: set[str]) -> None:
    """Give all that up, for us and our children. No limit of the unit that stands here may be missing from it."""
    unit = settings()
    assert unit["NoNewPrivileges"] == unit["MemoryDenyWriteExecute"] == unit["RestrictNamespaces"] == ["yes"]
    assert unit["SystemCallErrorNumber"] == ["EPERM"]
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    refused = _ERRNO | errno.EPERM
    others = _Filter(_ALLOW)
    others.rule(refused, "mmap", (2, _MASKED, _PROT_WRITE | _PROT_EXEC, _PROT_WRITE | _PROT_EXEC))
    for call in ("mprotect", "pkey_mprotect"):
        others.rule(refused, call, (2, _MASKED, _PROT_EXEC, _PROT_EXEC))
    for call in ("unshare", "setns"):
        others.rule(refused, call)
    others.rule(_ERRNO | errno.ENOSYS, "clone3")  # as systemd does: its flags can't be seen
    others.rule(refused, "personality", (0, _GT, 0, 0))
    for bits in (0o4000, 0o2000):
        others.rule(refused, "chmod", (1, _MASKED, bits, bits))
        others.rule(refused, "fchmod", (1, _MASKED, bits, bits))
        others.rule(refused, "fchmodat", (2, _MASKED, bits, bits))
    families = {_FAMILIES[name] for name in unit["RestrictAddressFamilies"][0].split()}
    unsupported = _ERRNO | errno.EAFNOSUPPORT
    for family in set(range(max(families))) - families:
        others.rule(unsupported, "socket", (0, _EQ, family, 0))
    others.rule(unsupported, "socket", (0, _GT, max(families), 0))
    listed = _Filter(refused)
    for call in allowed | calls_always():
        listed.rule(_ALLOW, call)
    others.load()
    listed.load()


def calls_always() -> set[str]:
    """What seccomp itself needs to load the second filter."""
    return {"prctl", "seccomp"}


def wanted_calls() -> set[str]:
    """What SystemCallFilter= leaves."""
    found: set[str] = set()
    for value in settings()["SystemCallFilter"]:
        named = {call for name in value.removeprefix("~").split() for call in calls(name)}
        found = found - named if value.startswith("~") else found | named
    return found


# ---- what is mounted


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _bind(source: str, target: Path) -> None:
    if ctypes.CDLL(None, use_errno=True).mount(source.encode(), bytes(target), None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), "mount", str(target))


def _mount_as_wanted(state: Path) -> None:
    """In a mount namespace of our own."""
    unit = settings()
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["PrivateTmp"] == ["yes"]
    assert (unit["ProtectProc"], unit["ProcSubset"]) == (["invisible"], ["pid"])
    needed = [path for path in (state, PROJECT, Path(sys.prefix).resolve()) if path.exists()]
    opened = {path: os.open(path, os.O_PATH) for path in needed}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, options = line.split()[4:6]
        if not place.startswith(("/proc", "/dev", "/sys")):
            _run("mount", "-o", f"remount,bind,{options.replace('rw', 'ro', 1)}", place)
    for temporary in ("/tmp", "/var/tmp"):
        _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", temporary)
    for path, descriptor in opened.items():
        path.mkdir(parents=True, exist_ok=True)
        _bind(f"/proc/self/fd/{descriptor}", path)  # mount(8) would look up its name, which is hidden now
        how = "rw" if path == state else "ro"
        _run("mount", "-o", f"remount,bind,{how}", str(path))
        os.close(descriptor)
    _run("mount", "-t", "proc", "-o", "hidepid=invisible,subset=pid", "proc", "/proc")


def main(arguments: list[str]) -> NoReturn:
    stage, state, *rest = arguments
    split = rest.index("--")
    who, command = rest[:split], rest[split + 1 :]
    again = ["-m", "tests.confined"]
    if stage == "begin" and who:
        unshare = ["unshare", "--mount", "--ipc", "--propagation=private", sys.executable]
        os.execvp(unshare[0], [*unshare, *again, "mount", *arguments[1:]])  # noqa: S606
    if stage == "mount":
        os.environ["CONFINED_CALLS"] = " ".join(wanted_calls())  # systemd-analyze asks /proc for more than is left
        _mount_as_wanted(Path(state))
        uid, python = who
        assert settings()["CapabilityBoundingSet"] == settings()["AmbientCapabilities"] == [""]
        setpriv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"]
        setpriv += ["--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs", "--"]
        os.execvp("setpriv", [*setpriv, python, *again, "confine", *arguments[1:]])  # noqa: S606
    allowed = set(os.environ.pop("CONFINED_CALLS", "").split()) or wanted_calls()
    os.umask(int(settings()["UMask"][0], 8))
    _confine(allowed)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1:])
