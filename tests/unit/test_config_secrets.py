"""Secrets of a configuration: where they come from, who may read them, and that nothing shows them."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.config import load
from backupd.errors import ConfigError
from tests.unit.test_config import BASE, SHOP, Load, loaded, refused, write

__all__ = ["loaded"]  # a fixture


@pytest.mark.parametrize("content", ["x\n", "x", "x\r\n", "x\n\n", "${A}"])
def test_secret_files(loaded: Load, tmp_path: Path, content: str) -> None:
    meant = {"x\n\n": "x\n", "${A}": "${A}"}.get(content, "x")
    (tmp_path / "pw").write_bytes(content.encode())
    (tmp_path / "pw").chmod(0o400)
    password = loaded(SHOP + 'password_file = "${DIR}/pw"', DIR=str(tmp_path)).database("shop").password
    assert password is not None
    assert password.get_secret_value() == meant


def test_one_password_per_database(loaded: Load, tmp_path: Path) -> None:
    write(tmp_path / "pw", "default")
    own = BASE + '[databases.a]\ndsn = "postgresql://u:own@h/d"\n'
    config = loaded(own + '[databases.b]\ndsn = "host=b"\n[defaults]\npassword_file = "pw"\n')
    assert config.database("a").password is None
    assert config.database("b").password is not None
    assert "keep one" in refused(loaded, own + 'password_file = "pw"')


def secret_file_cases(path: str) -> Mapping[str, str]:
    return {
        "password_file": SHOP + f'password_file = "{path}"',
        "dsn_file": BASE + f'[databases.a]\ndsn_file = "{path}"',
        "secret_access_key_file": BASE + f'access_key_id = "x"\nsecret_access_key_file = "{path}"',
        "identity_file": BASE + f'[encryption]\nidentity_file = "{path}"',
        "signing_key_file": BASE + f'[encryption]\nsigning_key_file = "{path}"',
    }


@pytest.mark.parametrize("key", secret_file_cases(""))
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_files_that_others_can_read_are_refused(loaded: Load, tmp_path: Path, key: str, mode: int) -> None:
    path = write(tmp_path / "key file", "host=x", mode)
    text = secret_file_cases(str(path))[key]
    message = refused(loaded, text)
    assert f"{key}: {path} holds a secret, and others can read it (mode {mode:04o})" in message
    assert f"run: chmod 600 '{path}'" in message
    loaded(text, CREDENTIALS_DIRECTORY=str(tmp_path))  # systemd looks after these
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(path)
    for way_out in ("../key file", "link"):
        refused(loaded, text.replace(str(path), f"{elsewhere}/{way_out}"), CREDENTIALS_DIRECTORY=str(elsewhere))
    path.chmod(0o600)
    loaded(text)


@pytest.mark.parametrize(
    "text, secret",
    [
        (SHOP, False),
        (SHOP + 'password = "x"', True),
        (SHOP + 'password = "${X}"', False),
        (BASE + '[databases.a]\ndsn = "postgresql://u:p@h/d"', True),
        (BASE + '[databases.a]\ndsn = "host=h password=p"', True),
        (BASE + '[databases.a]\ndsn = "postgresql://u:${X}@h/d"', False),
        (BASE + '[databases.a]\ndsn = "postgresql://u:p@${X}/d"', True),
        (SHOP + 'verify.scratch = "host=h password=p"', True),
        (BASE + 'access_key_id = "a"\nsecret_access_key = "${X}"', False),
        (BASE + 'access_key_id = "a"\nsecret_access_key = "b"', True),
    ],
)
def test_a_configuration_with_a_secret_in_it_is_a_secret(tmp_path: Path, text: str, secret: bool) -> None:
    path = write(tmp_path / "backupd.toml", text, 0o644)
    if secret:
        with pytest.raises(ConfigError, match=f"run: chmod 600 {path}, or use [a-z_]+_file"):
            load(path, {"X": "x"})
    path.chmod(0o600 if secret else 0o644)
    load(path, {"X": "x"})


def test_secrets_of_containers_may_be_readable(tmp_path: Path, loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "pw", "x", 0o444)
    monkeypatch.setattr("backupd.private_files.CONTAINER_SECRETS", tmp_path)
    loaded(SHOP + f'password_file = "{path}"')


# One mistake each, in a file full of secrets. "" is the file without a mistake.
MISTAKES = [
    "",
    "[srv]",
    "[databases.c]",
    "[databases.c]\njobs = 0",
    "[databases.c]\ndsn = 3",
    "[databases.c]\ndsn = SECRET",
    "[databases.c]\ndsn = [SECRET]",
    "[databases.c]\ndsn = DSN\npassword = SECRET",
    "[databases.c]\ndsn = {x = SECRET}",
    "[databases.c]\npassword = [SECRET]",
    "[databases.c]\npasword = SECRET",
    "[databases.c]\npassword = SECRET\npassword_file = '/nowhere'",
    "[databases.c]\ndsn_file = 'pw'\nverify.scratch = SECRET",
    "[databases.c]\nverify = SECRET",
    "[databases.'c d']\ndsn = DSN",
    "[databases]\nc = DSN",
    "[databases]\na = SECRET",
    "[repository]",
    "[encryption]\nidentity_file = 'pw'\nsigning_key_file = 'pw'",
    "[encryption]\nrecipients = [SECRET]\ntrusted_signers = [SECRET]",
    "[encryption]\nidentity_file = [SECRET]",
    "[encryption]\nrecipients = SECRET",
    "x = SECRET SECRET",
    "x = ${SECRET",
    "[server]\nlisten = '${VARIABLE}'",
    "[databases.c]\ndsn = '${VARIABLE}'",
    "[databases.c]\njobs = '${VARIABLE}'",
    "[databases.c]\nschedule = '${VARIABLE}'\ntimezone = '${VARIABLE}'\ncompression = '${VARIABLE}'",
]
FULL = """
[repository]
url = "s3://abc"
access_key_id = SECRET
secret_access_key = SECRET
session_token = SECRET
[defaults]
password = SECRET
verify.scratch = DSN
[databases.a]
dsn = DSN
[databases.b]
dsn_file = "dsn"
verify.scratch_file = "dsn"
"""


def everything_said(error: BaseException) -> str:
    """The error, its parts and whatever hangs on it: what a log or a crash report may hold."""
    said = [str(error), repr(error), *traceback.format_exception(error)]
    said += [str(getattr(error, part, "")) for part in ("message", "detail", "hint")]
    said += [everything_said(other) for other in (error.__cause__, error.__context__) if other is not None]
    return "\n".join(said)


@settings(deadline=None)
@given(st.sampled_from(MISTAKES), st.from_regex(r"S3CRET[A-Za-z0-9%@/:?&=.'\"\\ -]{0,9}", fullmatch=True))
def test_no_secret_is_shown(mistake: str, secret: str) -> None:
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    dsn = f"host=x password='{quoted}'"
    text = (FULL + mistake).replace("SECRET", json.dumps(secret)).replace("DSN", json.dumps(dsn))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "pw"), f"{secret}\n")
        write(Path(folder, "dsn"), f"{dsn}\n")
        path = write(Path(folder, "backupd.toml"), text)
        if mistake and "identity_file = 'pw'" not in mistake:
            with pytest.raises(ConfigError) as caught:
                load(path, {"VARIABLE": secret})
            assert "S3CRET" not in everything_said(caught.value)
        else:
            config = load(path, {"VARIABLE": secret})
            assert "S3CRET" not in f"{config!r}{config}{config.databases}{dict(config.databases)}{config.repository}"
            for ask in (config.load_identities, config.load_signing_key, config.trusted_signers, config.recipients):
                with pytest.raises(ConfigError) as caught:
                    ask()
                assert "S3CRET" not in everything_said(caught.value)
        path.chmod(0o644)
        with pytest.raises(ConfigError) as caught:
            load(path, {"VARIABLE": secret})
        assert "S3CRET" not in everything_said(caught.value)
