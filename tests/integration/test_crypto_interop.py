"""The real age and minisign read what backupd writes, and the other way round."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from backupd.crypto.age import Identity, RandomAccess, Recipient, Sealer, open_stream, parse_identities
from backupd.crypto.minisign import PublicKey, SecretKey, sign, verify
from backupd.errors import ConfigError, IntegrityError
from tests.programs import program

SIZES = (0, 1, 65535, 65536, 65537, 200_000)
PLAIN = random.Random(2).randbytes(max(SIZES))


def run(name: str, *arguments: str | Path, stdin: bytes = b"", fails: bool = False) -> bytes:
    """The program's output; its exit status must be as expected."""
    done = subprocess.run([program(name), *map(str, arguments)], input=stdin, capture_output=True, timeout=60)
    assert (done.returncode != 0) == fails, done.stderr.decode()
    return done.stdout


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """An identity file that age-keygen made."""
    path = tmp_path / "theirs.age"
    run("age-keygen", "-o", path)
    return path


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """An identity file that backupd made."""
    path = tmp_path / "ours.age"
    path.write_text(f"# made for a test\n{Identity.generate().encode()}\n")
    return path


def identities(path: Path) -> list[Identity]:
    return parse_identities(path.read_text(), path.name)


def sealed(plain: bytes, *recipients: Recipient) -> bytes:
    pieces = (plain[i : i + 50_000] for i in range(0, len(plain), 50_000))
    return b"".join(Sealer(recipients).seal(pieces))


@pytest.mark.parametrize("size", SIZES)
def test_age_opens_what_backupd_seals(size: int, theirs: Path, ours: Path) -> None:
    keys = [*identities(theirs), *identities(ours), Identity.generate()]
    stored = sealed(PLAIN[:size], *[key.recipient for key in keys])
    for path in (theirs, ours):
        assert run("age", "-d", "-i", path, stdin=stored) == PLAIN[:size]


@pytest.mark.parametrize("size", SIZES)
def test_backupd_opens_what_age_seals(size: int, theirs: Path, ours: Path) -> None:
    to = [argument for path in (theirs, ours) for argument in ("-r", str(identities(path)[0].recipient))]
    stored = run("age", *to, stdin=PLAIN[:size])
    for path in (theirs, ours):
        pieces = (stored[i : i + 70_000] for i in range(0, len(stored), 70_000))
        assert b"".join(open_stream(identities(path), pieces)) == PLAIN[:size]
        data = RandomAccess(identities(path), lambda at, n: stored[at : at + n], len(stored))
        assert data.size == size
        assert data.read(size // 2, size) == PLAIN[size // 2 : size]


def test_age_keygen_agrees_on_the_public_key(theirs: Path, ours: Path) -> None:
    for path in (theirs, ours):
        assert run("age-keygen", "-y", path).decode().strip() == str(identities(path)[0].recipient)


def test_age_says_so_too_when_backupd_refuses(ours: Path) -> None:
    (key,) = identities(ours)
    stored = sealed(PLAIN[:70_000], key.recipient)
    header = stored.index(b"\n---") + 50
    for bad in (
        stored[:-1],
        stored + b"x",
        stored[: header + 16 + 65552],
        stored[:header],
        stored[:30] + b"A" + stored[31:],
        stored[:-5] + bytes([stored[-5] ^ 1]) + stored[-4:],
        sealed(b"for others", Identity.generate().recipient),
        stored.replace(b"\n---", b"\n-> x\n\n---", 1),
    ):
        run("age", "-d", "-i", ours, "-o", os.devnull, stdin=bad, fails=True)
        with pytest.raises(IntegrityError):
            list(open_stream([key], [bad]))


def test_an_armored_age_file_is_named_as_such(theirs: Path) -> None:
    armored = run("age", "-a", "-r", str(identities(theirs)[0].recipient), stdin=b"hello")
    with pytest.raises(IntegrityError, match="ASCII-armored"):
        list(open_stream(identities(theirs), [armored]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    path.write_bytes(PLAIN[:70_000])
    return path


@pytest.fixture
def minisign_key(tmp_path: Path) -> tuple[Path, Path]:
    """A secret and a public key file that minisign made."""
    secret, public = tmp_path / "minisign.key", tmp_path / "minisign.pub"
    run("minisign", "-G", "-W", "-s", secret, "-p", public)
    return secret, public


def check(data: Path, public: PublicKey, *, fails: bool = False) -> str:
    """minisign's own verdict on the signature beside the file; the trusted comment if it is good."""
    return run("minisign", "-V", "-Q", "-m", data, "-P", str(public), fails=fails).decode().removesuffix("\n")


def signature_of(data: Path) -> Path:
    return data.with_name(data.name + ".minisig")


def test_minisign_verifies_what_backupd_signs(data: Path, minisign_key: tuple[Path, Path]) -> None:
    for secret in (SecretKey.generate(), SecretKey.parse(minisign_key[0].read_text())):
        signature_of(data).write_text(sign(secret, data.read_bytes(), trusted_comment="shop\tné 1"))
        assert check(data, secret.public) == "shop\tné 1"
        assert verify(signature_of(data).read_text(), data.read_bytes(), [secret.public], "x") == "shop\tné 1"


@pytest.mark.parametrize("legacy", [(), ("-l",)], ids=["prehashed", "legacy"])
def test_backupd_verifies_what_minisign_signs(
    data: Path, minisign_key: tuple[Path, Path], tmp_path: Path, legacy: tuple[str, ...]
) -> None:
    mine = SecretKey.generate()
    (tmp_path / "mine.key").write_text(mine.encode("made by backupd"))
    for path, public in (
        (minisign_key[0], PublicKey.parse(minisign_key[1].read_text())),
        (tmp_path / "mine.key", mine.public),
    ):
        run("minisign", "-S", *legacy, "-W", "-s", path, "-m", data, "-t", "signed by minisign")
        text = signature_of(data).read_text()
        assert text.split("\n")[1].startswith("RW" if legacy else "RU")
        assert verify(text, data.read_bytes(), [public], "x") == "signed by minisign"
        assert check(data, public) == "signed by minisign"


def test_minisign_recreates_the_public_key_of_ours(tmp_path: Path) -> None:
    secret = SecretKey.generate()
    (tmp_path / "k").write_text(secret.encode())
    run("minisign", "-R", "-s", tmp_path / "k", "-p", tmp_path / "p")
    text = (tmp_path / "p").read_text()
    assert PublicKey.parse(text) == secret.public
    assert secret.public.key_id.lstrip("0") in text.split("\n")[0]


def test_both_refuse_a_tampered_file(data: Path) -> None:
    secret = SecretKey.generate()
    good = data.read_bytes()
    text = sign(secret, good, trusted_comment="backup 1")
    lines = text.split("\n")
    other = sign(secret, good, trusted_comment="backup 2").split("\n")
    for content, signature in (
        (good + b"x", text),
        (good[:-1], text),
        (good, text.replace("backup 1", "backup 2")),
        (good, "\n".join([*lines[:3], other[3], ""])),
        (good, "\n".join([lines[0], lines[1][:-5] + "AAAA=", *lines[2:]])),
        (good, "\n".join(lines[:3])),
        (good, sign(SecretKey.generate(), good, trusted_comment="backup 1")),
    ):
        data.write_bytes(content)
        signature_of(data).write_text(signature)
        check(data, secret.public, fails=True)
        with pytest.raises(IntegrityError):
            verify(signature, content, [secret.public], "x")


def test_a_minisign_key_with_a_password_is_refused_until_it_is_taken_off(tmp_path: Path) -> None:
    secret, public = tmp_path / "k", tmp_path / "p"
    run("minisign", "-G", "-s", secret, "-p", public, stdin=b"password\npassword\n")
    with pytest.raises(ConfigError, match="with a password") as error:
        SecretKey.parse(secret.read_text())
    assert "minisign -C -W" in error.value.hint
    run("minisign", "-C", "-W", "-s", secret, stdin=b"password\n")
    assert SecretKey.parse(secret.read_text()).public == PublicKey.parse(public.read_text())
