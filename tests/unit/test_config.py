"""The configuration through `find` and `load`: what a file means, and what is said about one that is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import pytest

from backupd import config as config_module
from backupd.config import Config, find, load
from backupd.config_models import Check
from backupd.config_values import Address, Compression, Schedule
from backupd.crypto import age, minisign
from backupd.errors import ConfigError
from backupd.storage.s3 import S3Settings

BASE = '[repository]\nurl = "file:///srv/backups"\n'
SHOP = BASE + '[databases.shop]\ndsn = "postgresql://backupd@db/shop"\n'

Load: TypeAlias = Callable[..., Config]


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """Load a text as a file of mode 0600, with these variables."""

    def write_and_load(text: str, **environ: str) -> Config:
        return load(write(tmp_path / "backupd.toml", text), {"HOME": "/home/operator", **environ})

    return write_and_load


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refused(loaded: Load, text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return str(caught.value)


def test_defaults(loaded: Load) -> None:
    config = loaded(SHOP)
    shop = config.database("shop")
    assert (shop.name, shop.dsn.get_secret_value()) == ("shop", "postgresql://backupd@db/shop")
    assert (shop.jobs, shop.compression, shop.large_table_size) == (2, Compression("zstd", 1), 64 * 1024 * 1024)
    assert shop.lock_wait_timeout == timedelta(seconds=30)
    assert (shop.password, shop.schedule, shop.retention, shop.timezone.key) == (None, None, None, "UTC")
    assert (shop.verify.scratch_dsn, shop.verify.fingerprint, shop.verify.checks) == (None, "rows", ())
    assert (config.repository.addressing_style, config.repository.checksums) == ("auto", "auto")
    assert config.server.listen == Address("127.0.0.1", 9847)


def test_every_key_of_the_contract(loaded: Load, tmp_path: Path) -> None:
    write(tmp_path / "s3", "s3-secret\n")
    config = loaded(
        """
        [repository]
        url = "s3://acme-backups/prod"
        endpoint_url = "https://s3.example.com"
        region = "eu"
        profile = "p"
        addressing_style = "path"
        storage_class = "STANDARD_IA"
        checksums = "when_supported"
        ca_bundle = "ca.pem"
        access_key_id = "${S3_KEY}"
        secret_access_key_file = "s3"
        [encryption]
        recipients = ["age1x"]
        identity_file = "~/identity.age"
        signing_key_file = "/nowhere/signing.key"
        trusted_signers = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"]
        [defaults]
        schedule = "0 */6 * * *"
        timezone = "Europe/Berlin"
        jobs = 3
        compression = "zstd:19"
        lock_wait_timeout = "1m30s"
        large_table_size = "100MB"
        retention = { keep_last = 3, keep_within = "2d", daily = 7, weekly = 5, monthly = 12, yearly = 3 }
        [defaults.verify]
        schedule = "@every 6h"
        scratch = "host=scratch"
        fingerprint = "content"
        [databases.shop]
        dsn = "dbname=shop"
        jobs = 4
        retention = { hourly = 2 }
        [[databases.shop.verify.checks]]
        name = "orders"
        sql = "select true"
        [postgres]
        bin_dirs = ["bin", "/usr/lib/postgresql/17/bin"]
        [server]
        listen = "[::1]:80"
        """,
        S3_KEY="the key",
    )
    shop, repository = config.database("shop"), config.repository
    assert repository.access_key_id is not None
    assert repository.access_key_id.get_secret_value() == "the key"
    assert repository.secret_access_key is not None
    assert repository.secret_access_key.get_secret_value() == "s3-secret"
    assert repository.ca_bundle == tmp_path / "ca.pem"
    assert config.encryption.identity_file == Path("/home/operator/identity.age")
    assert config.postgres.bin_dirs == (tmp_path / "bin", Path("/usr/lib/postgresql/17/bin"))
    assert config.server.listen == Address("::1", 80)
    assert (shop.jobs, shop.large_table_size, shop.timezone.key) == (4, 100_000_000, "Europe/Berlin")
    assert shop.lock_wait_timeout == timedelta(seconds=90)
    assert shop.schedule == Schedule("0 */6 * * *")
    # retention is replaced as a whole, verify is merged key by key
    assert shop.retention is not None
    assert (shop.retention.hourly, shop.retention.keep_last, shop.retention.keep_within) == (2, 0, None)
    assert shop.verify.schedule == Schedule("@every 6h", timedelta(hours=6))
    assert shop.verify.scratch_dsn is not None
    assert shop.verify.checks == (Check(name="orders", sql="select true"),)
    assert shop.verify.fingerprint == "content"


def test_s3_settings_are_plain_and_complete(loaded: Load) -> None:
    settings = loaded('[repository]\nurl = "s3://abc"\naccess_key_id = "a"\nsecret_access_key = "b"\n').s3_settings()
    assert isinstance(settings, S3Settings)
    assert (settings.access_key_id, settings.secret_access_key, settings.session_token) == ("a", "b", None)
    assert "'b'" not in repr(settings)


@pytest.mark.parametrize(
    "text, said",
    [
        (SHOP + "jobbs = 2", "backupd.toml:5: databases.shop.jobbs: is not a known key\ndid you mean jobs?"),
        (SHOP + 'pasword_file = "x"', "did you mean password_file?"),
        (SHOP.replace("repository]", "repositry]"), ":1: repositry: is not a known key (did you mean repository?)"),
        (SHOP + "recipients = []", "recipients belongs in [encryption]"),
        (SHOP + "keep_last = 3", "keep_last belongs in [databases.NAME.retention]"),
        (SHOP + "xyzzy = 3", "known here: bandwidth_limit, compression, dsn, dsn_file,"),
        (BASE + '[defaults]\ndsn = "x"', "backupd.toml:4: defaults.dsn: is not known here"),
        (SHOP + "retention = { keep_lst = 3 }", ":5: databases.shop.retention.keep_lst: is not a known key"),
        (BASE + '[databases.eu.shop]\ndsn = "host=a"', 'a name with a dot is quoted: [databases."eu.shop"]'),
        (SHOP + "jobs = 65", "databases.shop.jobs: expected a whole number of at most 64, found 65"),
        (SHOP + "jobs = 0", "at least 1, found 0"),
        (SHOP + 'jobs = "2"', 'expected a whole number, found "2"'),
        (SHOP + "jobs = true", "expected a whole number, found true"),
        (SHOP + "schedule = 5", "expected five cron fields"),
        (SHOP + 'schedule = "0 25 * * *"', "bad hour"),
        (SHOP + 'schedule = "* * * * * *"', "expected five cron fields"),
        (SHOP + 'schedule = "@every 59s"', "at least 1m"),
        (SHOP + 'timezone = "Europe/Berln"', 'such as "Europe/Berlin", found "Europe/Berln"'),
        (SHOP + 'timezone = "Europe"', "expected a time zone"),
        (SHOP + 'compression = "zstd:20"', "from 1 to 19"),
        (SHOP + 'compression = "gzip:1"', 'expected "zstd:LEVEL"'),
        (SHOP + 'lock_wait_timeout = "0s"', "from 1s to 1d"),
        (SHOP + "lock_wait_timeout = 30", 'expected a duration such as "30s", "5m", "2h", "3d" or "1h30m", found 30'),
        (SHOP + 'large_table_size = "64"', 'expected a size such as "64MiB"'),
        (SHOP + "retention = {}", "has no rule"),
        (SHOP + "retention = { keep_last = -1 }", "at least 0"),
        (SHOP + 'verify = { fingerprint = "row" }', 'expected "rows", "content" or "off", found "row"'),
        (SHOP + 'verify = { checks = [{name = "a", sql = ""}] }', "checks[0].sql: expected a text that is not empty"),
        (SHOP + 'verify = { checks = [{name="a",sql="b"},{name="a",sql="c"}] }', "two checks of the same name"),
        (SHOP + 'password = ""', "password: is empty"),
        (BASE + "[databases.shop]", ":3: databases.shop.dsn: is required, or dsn_file"),
        ("databases = 3\n" + BASE, "expected a table, found a whole number"),
        (BASE + '[databases]\nshop = "host=x"', "databases.shop: expected a table"),
        (BASE + '[databases.shop]\ndsn = "shop"', "expected a PostgreSQL connection string"),
        (BASE + '[databases.shop]\ndsn = ""', "dsn: is empty"),
        (BASE + '[databases."a b"]\ndsn = "host=x"', 'databases."a b": is not a database name'),
        (BASE + '[databases.".a"]\ndsn = "host=x"', "is not a database name"),
        (BASE + '[databases.".."]\ndsn = "host=x"', "is not a database name"),
        (BASE + '[databases."backupd.json"]\ndsn = "host=x"', "is not a database name"),
        ("[encryption]", "repository: is required"),
        ('[repository]\nurl = "s3:acme"', "repository.url: expected"),
        ('[repository]\nurl = "file://relative/x"', "repository.url: expected"),
        (BASE + 'endpoint_url = "s3.example.com"', 'expected "https://HOST"'),
        (BASE + 'access_key_id = "x"', "only one is given"),
        (BASE + 'addressing_style = "paths"', 'expected "auto", "path" or "virtual", found "paths"'),
        (BASE + "ca_bundle = 2024-01-01", "expected a path, found a date or time"),
        (BASE + '[encryption]\nrecipients = "age1"', "encryption.recipients: expected a list"),
        (BASE + '[encryption]\nrecipients = ["AGE-SECRET-KEY-1X"]', "holds a secret key"),
        (BASE + '[encryption]\nrecipients = ["ssh-ed25519 AAAA"]', 'expected age public keys, "age1…"'),
        (BASE + '[encryption]\ntrusted_signers = ["RWx"]', "expected minisign public keys"),
        (BASE + "[postgres]\nbin_dirs = [3]", "postgres.bin_dirs[0]: expected a path"),
        (BASE + '[server]\nlisten = "127.0.0.1:70000"', "expected"),
        (BASE + "key = = 3", "backupd.toml:3:7: is not TOML"),
        (BASE + "key = [", "backupd.toml:3:8: is not TOML"),
        (BASE + '[repository]\nurl = "x"', "backupd.toml:3:12: is not TOML: Cannot declare ('repository',) twice"),
        (SHOP + 'password = "${NOPE}"', "databases.shop.password: the environment variable NOPE is not set\nset NOPE"),
        (SHOP + 'password = "${1x}"', "has a ${ that is not ${NAME}"),
        (SHOP + 'password_file = "gone"', "databases.shop.password_file"),
        (SHOP + 'password_file = "/"', "/ cannot be read"),
        (SHOP + 'password_file = "x"\npassword = "y"', ":5: databases.shop.password_file: password and password_file"),
        ('[repository]\nurl = "s3://key:secret@bucket"', "repository.url: holds a key"),
    ],
)
def test_a_wrong_file_is_told_what_and_where(loaded: Load, tmp_path: Path, text: str, said: str) -> None:
    message = refused(loaded, text)
    assert said in message
    assert str(tmp_path / "backupd.toml") in message


def test_all_problems_at_once_in_the_order_of_the_file(loaded: Load) -> None:
    text = '[repository]\nulr = "x"\n[defaults]\njobs = 0\n[databases.a]\ndsn_file = "gone"\n[srv]\n'
    message = refused(loaded, text)
    assert "5 problems" in message
    assert re.findall(r"toml:(\d+): (\S+):", message) == [
        ("1", "repository.url"),
        ("2", "repository.ulr"),
        ("4", "defaults.jobs"),
        ("6", "databases.a.dsn_file"),  # and nothing about the dsn that is missing because of it
        ("7", "srv"),
    ]


def test_lines_are_found_past_quotes_arrays_and_long_texts(loaded: Load) -> None:
    text = SHOP + '[[databases.shop.verify.checks]]\nname = "a"\nsql = """\n[databases."a.b"]\njobs = 1\n"""\n'
    text += '[[databases.shop.verify.checks]]\nname = 1\nsql = "x"\n[databases."a.b"]\ndsn = "host=x"\n"jobs" = 0\n'
    message = refused(loaded, text)
    assert ":12: databases.shop.verify.checks[1].name:" in message
    assert ':16: databases."a.b".jobs:' in message


def test_environment(loaded: Load) -> None:
    text = BASE + '[databases.shop]\ndsn = "host=${HOST_1} user=u"\npassword = "a$${x}$b"\n'
    text += 'verify.scratch = "host=${S}"\n'
    shop = loaded(text, HOST_1="db", S="s").database("shop")
    assert shop.dsn.get_secret_value() == "host=db user=u"
    assert shop.password is not None
    assert shop.password.get_secret_value() == "a${x}$b"
    assert shop.verify.scratch_dsn is not None
    assert shop.verify.scratch_dsn.get_secret_value() == "host=s"
    # what came from the environment is not shown, wherever it was put
    assert "found" not in refused(loaded, SHOP + 'timezone = "${PASSWORD}"', PASSWORD="hunter2")


def test_find_in_the_order_of_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "SYSTEM_FILE", tmp_path / "etc.toml")
    with pytest.raises(ConfigError) as caught:
        find(None, {}, tmp_path)
    for part in ("--config", "$BACKUPD_CONFIG", f"{tmp_path}/backupd.toml", f"{tmp_path}/etc.toml", "backupd init"):
        assert part in str(caught.value)
    for name, explicit, environ in (
        ("etc.toml", None, {}),
        ("backupd.toml", None, {}),
        ("variable.toml", None, {"BACKUPD_CONFIG": "variable.toml"}),
        ("explicit.toml", "explicit.toml", {"BACKUPD_CONFIG": "variable.toml"}),
    ):
        write(tmp_path / name, "")
        assert find(explicit, environ, tmp_path) == tmp_path / name
    for explicit, environ in (("gone.toml", {}), (None, {"BACKUPD_CONFIG": "gone.toml"})):
        with pytest.raises(ConfigError, match=r"gone\.toml does not exist"):
            find(explicit, environ, tmp_path)


def test_an_unknown_database_names_the_nearest(loaded: Load) -> None:
    with pytest.raises(ConfigError, match=r"(?s)'shp'.*did you mean shop\?"):
        loaded(SHOP).database("shp")
    with pytest.raises(ConfigError, match="it has: shop"):
        loaded(SHOP).database("x")


def test_keys(loaded: Load, tmp_path: Path) -> None:
    identity, signing = age.Identity.generate(), minisign.SecretKey.generate()
    write(tmp_path / "id", identity.encode() + "\n")
    write(tmp_path / "sign", signing.encode("c"))
    files = BASE + '[encryption]\nidentity_file = "id"\nsigning_key_file = "sign"\n'
    config = loaded(files + f'recipients = ["{identity.recipient}"]')
    assert [str(each.recipient) for each in config.load_identities()] == [str(identity.recipient)]
    assert config.load_signing_key().public == signing.public
    assert config.trusted_signers() == [signing.public]
    assert list(map(str, config.recipients())) == [str(identity.recipient)]
    other = minisign.SecretKey.generate().public
    assert loaded(files + f'trusted_signers = ["{other}"]').trusted_signers() == [other]
    with pytest.raises(ConfigError, match=r"backupd\.toml: encryption\.recipients\[1\]: "):
        loaded(files + f'recipients = ["{identity.recipient}", "age1x"]').recipients()
    (tmp_path / "id").chmod(0o644)  # after it was loaded
    with pytest.raises(ConfigError, match="chmod 600"):
        config.load_identities()
    (tmp_path / "id").unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        config.load_identities()
    empty = loaded(BASE)
    for ask in (empty.load_identities, empty.load_signing_key, empty.trusted_signers, empty.recipients):
        with pytest.raises(ConfigError, match=r"(?s)in \[encryption\] of .*backupd\.toml\n.+"):
            ask()


def test_importing_it_is_cheap() -> None:
    code = "import sys, backupd.config; print([m for m in ('boto3', 'psycopg', 'cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
