"""The real programs that tests need: found, or a failure that says what to install. Never a skip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / ".tools" / "bin"  # of this checkout, for machines without packages
PACKAGES = {"age": "age", "age-keygen": "age", "minisign": "minisign", "zstd": "zstd"}


def program(name: str) -> str:
    """The path of a program, from PATH or from the checkout's .tools/bin."""
    found = shutil.which(name) or shutil.which(name, path=os.fspath(TOOLS))
    if found is None:
        package = PACKAGES.get(name, name)
        pytest.fail(f"{name} is not on PATH and not in {TOOLS}: apt-get install {package}", pytrace=False)
    return found
