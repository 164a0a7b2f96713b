"""Recipients, identities and identity files: what they parse, and that no secret is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.crypto import bech32
from backupd.crypto.age import Identity, Recipient, Sealer, parse_identities
from backupd.errors import ConfigError

IDENTITY = Identity.generate()


def mistyped(text: str) -> str:
    """Another last character than it has."""
    return text[:-1] + ("Q" if text[-1] != "Q" else "P")


def test_keys_as_the_specification_shows_them() -> None:
    secret = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
    public = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
    identity = Identity.parse(secret)
    assert str(identity.recipient) == public
    assert identity.encode() == secret
    assert Recipient.parse(public) == identity.recipient
    assert bech32.encode("age", b"\x42" * 32) == bech32.encode("age", bech32.decode(secret)[1])


@given(prefix=st.text("abcxyz-", min_size=1), data=st.binary(max_size=70))
def test_bech32_comes_back(prefix: str, data: bytes) -> None:
    text = bech32.encode(prefix, data)
    assert bech32.decode(text) == (prefix, data)
    assert bech32.decode(text.upper()) == (prefix.upper(), data)


def test_bech32_of_bip_173() -> None:
    for text in (
        "A12UEL5L",
        "a12uel5l",
        "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
    ):
        assert bech32.decode(text)[1] == b""
    assert (
        bech32.decode("abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw")[1].hex()
        == "00443214c74254b635cf84653a56d7c675be77df"
    )
    for text in (
        "\x201nwldj5",
        "\x7f1axkwrx",
        "pzry9x0s0muk",
        "1pzry9x0s0muk",
        "x1b4n0q5v",
        "li1dgmt3",
        "A1G7SGD8",
        "10a06t8",
        "1qzzfhee",
        "A12uEL5L",
        "",
    ):
        with pytest.raises(ValueError, match=r"^its? "):
            bech32.decode(text)


def test_bech32_has_no_superfluous_character() -> None:
    """A q before a final p keeps the checksum right: here it adds five zero bits, which no byte needs."""
    texts = (bech32.encode("age", number.to_bytes(5, "big")) for number in range(100_000))
    text = next(text for text in texts if text.endswith("p") and text[-6] == "q")
    with pytest.raises(ValueError, match="padding"):
        bech32.decode(text[:-1] + "qp")


@given(position=st.integers(0, 61), replacement=st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7lB1 é"))
def test_a_mistyped_recipient_is_refused(position: int, replacement: str) -> None:
    text = str(IDENTITY.recipient)
    typed = text[:position] + replacement + text[position + 1 :]
    if typed != text:
        with pytest.raises(ConfigError) as error:
            Recipient.parse(typed)
        assert error.value.hint


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "does not start with age1"),
        (f" {IDENTITY.encode()}", "A secret age identity stands where"),
        (IDENTITY.encode().lower(), "A secret age identity stands where"),
        ("hunter2", "does not start with age1"),
        (str(IDENTITY.recipient).upper(), "does not start with age1"),
        (bech32.encode("age", bytes(32)), "low order"),
        (bech32.encode("age", bytes(31)), "another kind"),
        (bech32.encode("age1pq", bytes(1200)), "another kind"),
        (str(IDENTITY.recipient) + "\n", "a character that no key has"),
    ],
)
def test_what_is_no_recipient(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Recipient.parse(text)
    assert "hunter2" not in str(error.value)
    assert IDENTITY.encode().lower()[20:] not in str(error.value).lower()


def test_identities_come_from_an_age_identity_file() -> None:
    other = Identity.generate()
    text = f"# created: today\r\n\n{IDENTITY.encode()}\r\n  # public key: x\n{other.encode()}  \n"
    found = parse_identities(text, "identity.age")
    assert [identity.recipient for identity in found] == [IDENTITY.recipient, other.recipient]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "f.age holds no age identity"),
        ("# nothing\n\n", "f.age holds no age identity"),
        (f"#\n\n{mistyped(IDENTITY.encode())}\n", "f.age, line 3: not an age X25519 identity\nIts checksum"),
        (IDENTITY.encode().lower(), "f.age, line 1: not an age X25519 identity\nIt is a key of another kind"),
        (IDENTITY.encode()[:40], "f.age, line 1"),
        (f"{IDENTITY.encode()} {IDENTITY.encode()}", "f.age, line 1"),
        (f"identity = {IDENTITY.encode()}", "f.age, line 1"),
        (str(IDENTITY.recipient), "f.age, line 1: .*\nIt is a key of another kind"),
        ("AGE-PLUGIN-YUBIKEY-1Q\n", "f.age, line 1"),
        ("age-encryption.org/v1\n-> scrypt x 18\n", "f.age is encrypted itself"),
    ],
)
def test_what_is_no_identity_file(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_identities(text, "f.age")
    assert error.value.hint
    assert IDENTITY.encode()[20:40].lower() not in str(error.value).lower()


def test_a_secret_is_never_shown() -> None:
    secret = IDENTITY.encode().lower()[16:]
    raw = bech32.decode(IDENTITY.encode())[1]
    for shown in (repr(IDENTITY), str(IDENTITY), f"{IDENTITY}", repr([IDENTITY]), repr(Sealer([IDENTITY.recipient]))):
        assert secret not in shown.lower()
        assert raw.hex() not in shown
    assert not hasattr(IDENTITY, "__dict__")
