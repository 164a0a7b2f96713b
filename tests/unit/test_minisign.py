"""minisign: keys as text, and signatures that say whose they are or are refused."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.crypto.minisign import PublicKey, SecretKey, sign, verify
from backupd.errors import ConfigError, IntegrityError

SECRET = SecretKey.generate()
OTHER = SecretKey.generate()
DATA = b"a manifest"
TEXT = sign(SECRET, DATA, trusted_comment="backup 1")

# Made by minisign 0.11 with `minisign -G -W`, `-S -t tc` and `-S -l` over b"hi\n".
PUBLIC_FILE = """untrusted comment: minisign public key 12A9BA929DE5FB33
RWQz++WdkrqpEjIVHUY1YlNfaN7UJY0nyZVhQZGo0ahfcTh///rqmDf1
"""
SECRET_FILE = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAM/vlnZK6qRIKE/cHP18oNwsF74HRuLXjM5tY1rw9j2NcQBr3GyrqJDIVHUY1YlNfaN7UJY0nyZVhQZGo0ahfcTh///rqmDf1AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
SIGNATURE = """untrusted comment: signature from minisign secret key
RUQz++WdkrqpEk8DWUGJ0ckb7bhuzvQQNjsR8ir+NB8kczM16H40whpUcFetB4eJUkdDmJPjbCwAIebaKsslImhmswPkz0MQ4QA=
trusted comment: tc
OJkFeMVSZ3b39FFzxI+A6JCcdWHSUHYrnO4WouixZB0T5qTxFojsncjRly7VrRYfdj2my5dY1J4qfBKBvMxEDQ==
"""
LEGACY = """untrusted comment: signature from minisign secret key
RWQz++WdkrqpEhGu8r7KBhbTw3DPpk0zkjFLHb87lhW58zoL8EcT8H7xHe6bFgKfMuJKlu/8dScr+boWE/3/wqy4bCdxWurCFQE=
trusted comment: timestamp:1795333517\tfile:f
CvogXSfEtWuoJzDjwbuNO2pRK0Z9dblPxDahiFfnrqYWYbcbL2nk3uQ8YPCg1vwfFW/Pd8ru4oAmeAHWOYB+Bg==
"""


def refused(text: str, data: bytes = DATA, *trusted: PublicKey) -> IntegrityError:
    with pytest.raises(IntegrityError) as error:
        verify(text, data, trusted or [SECRET.public], "manifests/1.json")
    assert "manifests/1.json" in error.value.message
    assert error.value.hint
    return error.value


def edited(text: str, line: int, new: str) -> str:
    lines = text.split("\n")
    lines[line] = new
    return "\n".join(lines)


def secret_text(**changed: bytes) -> str:
    """A secret key file's text, with some of its parts replaced."""
    raw = base64.b64decode(SECRET_FILE.split("\n")[1])
    parts = {"algorithm": raw[:2], "derivation": raw[2:4], "checksum_algorithm": raw[4:6], "limits": raw[6:54]}
    parts |= {"number": raw[54:62], "seed": raw[62:94], "public": raw[94:126], "checksum": raw[126:]}
    return "untrusted comment: x\n" + base64.b64encode(b"".join((parts | changed).values())).decode()


def test_files_made_by_minisign() -> None:
    public = PublicKey.parse(PUBLIC_FILE)
    assert public.key_id == "12A9BA929DE5FB33"
    assert str(public) == PUBLIC_FILE.split("\n")[1]
    assert PublicKey.parse(str(public)) == public
    assert SecretKey.parse(SECRET_FILE).public == public
    assert SecretKey.parse(SECRET_FILE).encode("minisign encrypted secret key") == SECRET_FILE
    assert verify(SIGNATURE, b"hi\n", [public], "f") == "tc"
    assert verify(LEGACY, b"hi\n", [public], "f") == "timestamp:1795333517\tfile:f"
    # Ed25519 is deterministic: the same key makes the same file.
    secret = SecretKey.parse(SECRET_FILE)
    mine = sign(secret, b"hi\n", trusted_comment="tc", untrusted_comment="signature from minisign secret key")
    assert mine == SIGNATURE


@given(
    data=st.binary(max_size=300),
    comment=st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from("\t "), max_size=200),
)
def test_what_is_signed_verifies_and_nothing_else(data: bytes, comment: str) -> None:
    text = sign(SECRET, data, trusted_comment=comment, untrusted_comment=comment)
    assert verify(text, data, [OTHER.public, SECRET.public], "x") == comment
    assert verify(text.replace("\n", "\r\n"), data, [SECRET.public], "x") == comment
    refused(text, data + b"\0")
    refused(text, data[:-1] if data else b"x")


@given(st.data())
def test_any_changed_character_of_a_signed_line_is_refused(draw: st.DataObject) -> None:
    lines = TEXT.split("\n")
    number = draw.draw(st.sampled_from([1, 2, 3]))
    position = draw.draw(st.integers(0, len(lines[number]) - 1))
    new = draw.draw(st.sampled_from("Ab0+/=? é\n").filter(lambda c: c != lines[number][position]))
    refused(edited(TEXT, number, lines[number][:position] + new + lines[number][position + 1 :]))


def test_the_unsigned_comment_is_anybodys() -> None:
    assert verify(edited(TEXT, 0, "untrusted comment: other"), DATA, [SECRET.public], "x") == "backup 1"


def test_an_untrusted_signer_is_named() -> None:
    error = refused(sign(OTHER, DATA, trusted_comment="x"))
    assert OTHER.public.key_id in error.message
    assert "not trusted" in error.message
    assert SECRET.public.key_id in error.detail
    with pytest.raises(IntegrityError, match="Trusted: none"):
        verify(TEXT, DATA, [], "x")


def test_a_borrowed_key_id_is_no_signature() -> None:
    impostor = SecretKey.generate()
    impostor.public = PublicKey(SECRET.public.number, impostor.public.key)
    text = sign(impostor, DATA, trusted_comment="x")
    assert refused(text).message == f"manifests/1.json is not what minisign key {SECRET.public.key_id} signed"
    # Two trusted keys of one number: each is tried.
    assert verify(text, DATA, [SECRET.public, impostor.public], "x") == "x"
    assert verify(TEXT, DATA, [impostor.public, SECRET.public], "x") == "backup 1"


def test_each_way_to_be_wrong_says_so() -> None:
    message = f"manifests/1.json is not what minisign key {SECRET.public.key_id} signed"
    assert refused(TEXT, b"other data").message == message
    error = refused(edited(TEXT, 2, "trusted comment: backup 2"))
    assert error.message.startswith("The trusted comment of the signature of manifests/1.json is not what minisign key")
    other = sign(SECRET, b"other data", trusted_comment="backup 1").split("\n")[3]
    assert "trusted comment" in refused(edited(TEXT, 3, other)).message
    # A prehashed signature passed off as a legacy one, of the hash.
    raw = base64.b64decode(TEXT.split("\n")[1])
    passed_off = edited(TEXT, 1, base64.b64encode(b"Ed" + raw[2:]).decode())
    assert refused(passed_off).message == message
    assert verify(passed_off, hashlib.blake2b(DATA).digest(), [SECRET.public], "x") == "backup 1"


@pytest.mark.parametrize(
    "text, detail",
    [
        ("", "four lines"),
        ("\n\n\n\n", "four lines"),
        (TEXT + "\n", "four lines"),
        (TEXT + "more\n", "four lines"),
        ("\n".join(TEXT.split("\n")[:3]), "four lines"),
        (TEXT.replace("untrusted comment: ", "comment: "), "four lines"),
        (TEXT.replace("\ntrusted comment: ", "\ntrusted comment:"), "four lines"),
        (edited(TEXT, 1, ""), "base64"),
        (edited(TEXT, 1, TEXT.split("\n")[1][:-4]), "base64"),
        (edited(TEXT, 1, TEXT.split("\n")[1] + "AAAA"), "base64"),
        (edited(TEXT, 1, TEXT.split("\n")[1] + " "), "base64"),
        (edited(TEXT, 1, "é" + TEXT.split("\n")[1][1:]), "base64"),
        (edited(TEXT, 3, TEXT.split("\n")[3].rstrip("=")), "base64"),
        (edited(TEXT, 1, base64.b64encode(b"ED" + bytes(72)).decode()[:-2] + "B="), "base64"),
        (edited(TEXT, 1, base64.b64encode(b"EE" + bytes(72)).decode()), "algorithm"),
        (edited(TEXT, 2, "trusted comment: \udcff"), "UTF-8"),
    ],
)
def test_what_is_no_signature_file(text: str, detail: str) -> None:
    error = refused(text)
    assert error.message == "The signature of manifests/1.json is not a minisign signature"
    assert detail in error.detail


@pytest.mark.parametrize("comment", ["two\nlines", "cr\r", "nul\0", "\u2028", "\udcff", "x" * 9000])
def test_comments_that_minisign_could_not_read(comment: str) -> None:
    with pytest.raises(ValueError, match="comment"):
        sign(SECRET, DATA, trusted_comment=comment)
    with pytest.raises(ValueError, match="comment"):
        sign(SECRET, DATA, trusted_comment="x", untrusted_comment=comment)
    with pytest.raises(ValueError, match="comment"):
        SECRET.encode(comment)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RW",
        str(SECRET.public)[:-1],
        f"{SECRET.public}\n{SECRET.public}",
        SECRET.encode(),
        "RU" + str(SECRET.public)[2:],
    ],
)
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(ConfigError, match="not a minisign public key") as error:
        PublicKey.parse(text)
    assert not text or text[:20] not in str(error.value) or text == "RW"


def test_a_secret_key_comes_back_and_is_never_shown() -> None:
    text = SECRET.encode("for backups")
    assert text.startswith("untrusted comment: for backups\n")
    again = SecretKey.parse(text)
    assert again.public == SECRET.public
    assert sign(again, DATA, trusted_comment="backup 1") == TEXT
    seed = base64.b64decode(text.split("\n")[1])[62:94]
    for shown in (repr(SECRET), str(SECRET), repr([SECRET])):
        assert str(SECRET.public) in shown
        assert base64.b64encode(seed).decode()[:10] not in shown
        assert seed.hex()[:10] not in shown
    assert not hasattr(SECRET, "__dict__")


def test_a_checksum_is_believed_if_it_is_right() -> None:
    raw = base64.b64decode(SECRET_FILE.split("\n")[1])
    right = hashlib.blake2b(raw[:2] + raw[54:126], digest_size=32).digest()
    assert SecretKey.parse(secret_text(checksum=right)).public == PublicKey.parse(PUBLIC_FILE)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "f.key is not a minisign secret key"),
        (PUBLIC_FILE, "f.key is not a minisign secret key"),
        (SECRET_FILE.split("\n")[1], "f.key is not a minisign secret key"),
        (SECRET_FILE.replace("=", ""), "f.key is not a minisign secret key"),
        (secret_text(algorithm=b"RS"), "f.key is a minisign secret key of an unknown kind"),
        (secret_text(derivation=b"Ar"), "f.key is a minisign secret key of an unknown kind"),
        (secret_text(checksum_algorithm=b"S2"), "f.key is a minisign secret key of an unknown kind"),
        (secret_text(derivation=b"Sc"), "f.key is a minisign key with a password"),
        (secret_text(public=bytes(32)), "f.key is a damaged minisign secret key"),
        (secret_text(seed=bytes(32)), "f.key is a damaged minisign secret key"),
        (secret_text(checksum=b"\1" * 32), "f.key is a damaged minisign secret key"),
    ],
)
def test_what_is_no_usable_secret_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        SecretKey.parse(text, "f.key")
    assert "minisign -G -W" in error.value.hint
    assert "EwxP" not in str(error.value)
    assert "RWQ" not in str(error.value)
