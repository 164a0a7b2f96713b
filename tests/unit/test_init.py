"""`init`: what it writes works at once, is for its owner's eyes only, and never costs anyone a key."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from backupd import init as init_module
from backupd.config import load
from backupd.errors import BackupdError, ConfigError, RefusedError
from backupd.init import init, render

EXAMPLE = Path(__file__).parents[2] / "config/backupd.toml"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_it_writes_works(tmp_path: Path) -> None:
    result = init(tmp_path)
    assert result.config == tmp_path / "backupd.toml"
    assert {path.name for path in result.files} == {"backupd.toml", "identity.age", "signing.key", "signing.pub"}
    assert names(tmp_path) == sorted(path.name for path in result.files)
    config = load(result.config, {})
    assert config.repository.url == result.repository == "file:///var/lib/backupd/repository"
    assert dict(config.databases) == {}
    assert [str(each.recipient) for each in config.load_identities()] == [result.recipient]
    assert list(map(str, config.recipients())) == [result.recipient]
    assert config.trusted_signers() == [config.load_signing_key().public]
    assert str(config.load_signing_key().public) == result.signer
    assert f"# public key: {result.recipient}\n" in (tmp_path / "identity.age").read_text()
    assert (tmp_path / "signing.pub").read_text().endswith(f"\n{result.signer}\n")


def test_only_the_owner_reads_what_it_writes(tmp_path: Path) -> None:
    before = os.umask(0)  # the most careless one
    try:
        init(tmp_path, "s3://abc/d", {"shop": "postgresql://u:pw@h/d"})
    finally:
        os.umask(before)
    modes = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert modes.pop("signing.pub") == 0o644
    assert set(modes) == {"backupd.toml", "identity.age", "signing.key", "shop.password"}
    assert set(modes.values()) == {0o600}


def test_each_run_makes_new_keys(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = map(init, folders)
    assert first.recipient != second.recipient
    assert first.signer != second.signer


@pytest.mark.parametrize("name", ["backupd.toml", "identity.age", "signing.key", "signing.pub", "shop.password"])
@pytest.mark.parametrize("link", [False, True])
def test_it_never_overwrites(tmp_path: Path, name: str, link: bool) -> None:
    path = tmp_path / name
    if link:
        path.symlink_to("elsewhere")
    else:
        path.write_text("precious")
    with pytest.raises(RefusedError) as caught:
        init(tmp_path, None, {"shop": "host=h password=pw"})
    assert caught.value.exit_code == 8
    assert str(path) in caught.value.message
    assert "another folder" in caught.value.hint
    assert names(tmp_path) == [name]  # nothing else was left
    assert link or path.read_text() == "precious"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(path: Path, text: str, mode: int) -> None:
        if path.name == "backupd.toml":
            raise OSError(28, "No space left on device")
        path.write_text(text)

    monkeypatch.setattr(init_module, "create_file", create)
    with pytest.raises(ConfigError, match="No space left"):
        init(tmp_path)
    assert names(tmp_path) == []


def test_a_file_can_be_named(tmp_path: Path) -> None:
    assert init(tmp_path / "prod.toml").config == tmp_path / "prod.toml"
    with pytest.raises(ConfigError, match="mkdir -p"):
        init(tmp_path / "gone" / "prod.toml")
    with pytest.raises(ConfigError, match="key file"):
        init(tmp_path / "signing.key")


@pytest.mark.parametrize(
    "dsn, parameters, password",
    [
        ("postgresql://u@h/d", {"user": "u", "host": "h", "dbname": "d"}, None),
        ("postgresql://u:p%40w@h:5433/d?sslmode=require", {"user": "u", "port": "5433", "sslmode": "require"}, "p@w"),
        ("postgresql://h/d?password=pw", {"host": "h"}, "pw"),
        (r"host=h user=u password='p w\''", {"host": "h", "user": "u"}, "p w'"),
        ("postgresql://u:@h/d", {"host": "h"}, None),
        ("host=h password=${PW}", {"host": "h", "password": "outside"}, None),
        ("host=h sslpassword=kw password=pw", {"sslpassword": "kw", "password": "pw"}, None),
    ],
)
def test_passwords_move_to_files(tmp_path: Path, dsn: str, parameters: dict[str, str], password: str | None) -> None:
    result = init(tmp_path, None, {"eu.shop": dsn})
    result.config.chmod(0o644)  # allowed, as long as it holds no secret
    database = load(result.config, {"PW": "outside"}).database("eu.shop")
    found = conninfo_to_dict(database.dsn.get_secret_value())
    assert parameters.items() <= found.items()
    if password is not None:
        assert "password" not in found
        assert (tmp_path / "eu.shop.password").read_text() == f"{password}\n"
    assert (None if database.password is None else database.password.get_secret_value()) == password


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$"), min_size=1, max_size=12))
def test_any_password_survives(tmp_path_factory: pytest.TempPathFactory, password: str) -> None:
    folder = tmp_path_factory.mktemp("init")
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    # a literal ${…} from outside means the environment, as everywhere in the configuration
    config = init(folder, None, {"a": f"host=h password='{quoted}'"}).config
    secret = load(config, {}).database("a").password
    assert secret is not None
    assert secret.get_secret_value() == password


@pytest.mark.parametrize(
    "repository, databases, said",
    [
        ("s3://S3CRET:S3CRET@b", {}, "not the URL of a repository"),
        ("s3:S3CRET", {}, "s3://BUCKET"),
        (None, {".x": "host=h password=S3CRET"}, "'.x' is not a database name"),
        (None, {"a/b": "host=h"}, "is not a database name"),
        (None, {"a": "S3CRET"}, "not a PostgreSQL connection string"),
        (None, {"a": "postgresql://u:S3CRET%zz@h/d"}, "not a PostgreSQL connection string"),
        (None, {"a": ""}, "not a PostgreSQL connection string"),
    ],
)
def test_wrong_arguments(tmp_path: Path, repository: str | None, databases: dict[str, str], said: str) -> None:
    with pytest.raises(BackupdError) as caught:
        init(tmp_path, repository, databases)
    assert isinstance(caught.value, ConfigError)
    assert said in str(caught.value)
    assert caught.value.hint
    assert "S3CRET" not in str(caught.value)
    assert names(tmp_path) == []


def test_the_example_is_the_template() -> None:
    given = tomllib.loads(EXAMPLE.read_text())
    text = render(
        given["repository"]["url"],
        given["encryption"]["recipients"],
        given["encryption"]["trusted_signers"],
        {"shop": ['dsn = "postgresql://backupd@db.internal/shop"', '#password_file = "/run/secrets/shop"']},
    )
    assert text == EXAMPLE.read_text(), "write the rendered template to config/backupd.toml"
    assert max(map(len, text.splitlines())) <= 100


def test_values_are_quoted_for_toml() -> None:
    url = 'file:///a"b\\c\x7f\n@DATABASES@'
    document = tomllib.loads(render(url, [], [], {"a.b": ['dsn = "x"']}))
    assert document["repository"]["url"] == url
    assert document["databases"] == {"a.b": {"dsn": "x"}}
