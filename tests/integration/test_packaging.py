"""What is installed from a built wheel, and what the machine is given to run it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from backupd import __version__
from backupd.cli import app

PROJECT = Path(__file__).resolve().parents[2]
UNITS = PROJECT / "systemd"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources that the build needs: from nothing that happens to lie around."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(PROJECT / "backupd", source / "backupd", ignore=shutil.ignore_patterns("__pycache__"))
    wheels = source / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    build = subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={wheels}", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    (made,) = wheels.glob("*.whl")
    return made


def test_wheel_holds_every_module_and_the_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "backupd").rglob("*.py")}
    assert names >= modules | {"backupd/config_template.toml"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith(("backupd/", f"backupd-{__version__}.dist-info/"))]


def test_installed_from_the_wheel_it_runs(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows the dependencies of this one."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment / "bin/python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site / "borrowed.pth").write_text("\n".join(here))  # after its own site-packages: the wheel's backupd comes first

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    backupd = str(environment / "bin" / "backupd")
    where = run(str(environment / "bin/python"), "-c", "import backupd; print(backupd.__file__)")
    assert where.startswith(str(environment))
    assert run(backupd, "--version") == f"backupd {__version__}\n"
    assert len(run(backupd, "init").splitlines()) == 4
    assert (tmp_path / "backupd.toml").read_text().startswith("# backupd:")


def test_command_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "backupd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"backupd {__version__}\n"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_units_are_correct(tmp_path: Path) -> None:
    (tmp_path / "backupd").symlink_to("/bin/true")
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/backupd/bin/backupd", str(tmp_path / "backupd"))
        (tmp_path / unit.name).write_text(text)
    units = [str(path) for path in tmp_path.glob("backupd*.*")]
    assert len(units) == 3
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "backupd" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_the_daemon_may_do_little(tmp_path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(UNITS / "backupd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Overall exposure level" in done.stdout
    assert done.returncode == 0, done.stdout[-200:]


@pytest.mark.parametrize("unit", ["backupd.service", "backupd-backup.service"])
def test_units_run_a_command_that_exists(unit: str) -> None:
    (start,) = re.findall(r"(?m)^ExecStart=(.*)$", (UNITS / unit).read_text())
    program, option, _, command = start.split()
    assert (program, option) == ("/opt/backupd/bin/backupd", "--config")
    assert command in app.commands
