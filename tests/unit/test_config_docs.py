"""Every key is documented, and the example says the truth about it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from backupd.config import load
from backupd.config_models import Document, Table

ROOT = Path(__file__).parents[2]
DOCS, EXAMPLE = (ROOT / "docs/configuration.md").read_text(), (ROOT / "config/backupd.toml").read_text()
HEAD = '[repository]\nurl = "file:///x"\n[databases.shop]\ndsn = "host=x"\n'


def test_every_key_is_documented_and_in_the_example() -> None:
    for model in Table.__subclasses__():
        for key in model.model_fields.keys() - Document.model_fields.keys():
            assert f"`{key}`" in DOCS, key
            assert re.search(rf"^(# ?)?(.*\W)?{key}(_file)? = |\[[\w.]+\.{key}\]", EXAMPLE, re.MULTILINE), key
    for table in Document.model_fields:
        assert f"`[{table}" in DOCS, table
        assert f"[{table}" in EXAMPLE, table


def test_the_example_loads() -> None:
    assert set(load(ROOT / "config/backupd.toml", {}).databases) == {"shop"}


def test_its_defaults_are_the_defaults(tmp_path: Path) -> None:
    defaults, _, rest = EXAMPLE.partition("\n[defaults]\n")[2].partition("\n#[defaults.verify]\n")
    verify = rest.partition("\n[databases.shop]")[0]
    for table, section, most in (("defaults", defaults, 4), ("defaults.verify", verify, 4)):
        keys = [line[1:] for line in section.splitlines() if re.match(r"#[a-z_]+ = ", line)]
        # Examples, which are no defaults.
        keys = [
            key for key in keys if not re.match("password_file|scratch_|schedule|retention|window|hooks|ping_url", key)
        ]
        keys = [key.replace(', ignore = ["public.queue_*"]', "") for key in keys]
        assert len(keys) >= most
        assert loaded_with(tmp_path, f"[{table}]\n" + "\n".join(keys)) == loaded_with(tmp_path, ""), table
    for table, least in (("daemon", 6), ("server", 1)):
        section = EXAMPLE.partition(f"\n[{table}]\n")[2].partition("\n[")[0]
        keys = [line[1:] for line in section.splitlines() if re.match(r"#[a-z_]+ = ", line)]
        assert len(keys) >= least
        config = load(write(tmp_path, HEAD + f"[{table}]\n" + "\n".join(keys)), {})
        assert getattr(config, table) == getattr(load(write(tmp_path, HEAD), {}), table)
    for key, default in (("addressing_style", "auto"), ("checksums", "auto")):
        assert tomllib.loads(re.findall(rf"^#({key} = .*)", EXAMPLE, re.MULTILINE)[0]) == {key: default}


def test_its_examples_are_valid(tmp_path: Path) -> None:
    """With every # before a key or a section taken away."""
    text = re.sub(r"(?m)^#(?=\[|[a-z_]+ = )", "", EXAMPLE.replace('#url = "s3://acme-backups/prod"\n', ""))
    text = re.sub(r"(?m)^([a-z_]+_file = .*|access_key_id = .*|urls = .*)$", "", text)
    config = load(write(tmp_path, text), {"HOME": "/"})
    shop = config.database("shop")
    assert shop.schedule is not None
    assert shop.retention is not None
    assert shop.retention.yearly == 3
    assert shop.verify.schedule is not None
    assert shop.hooks.before
    assert config.database("main.crm").window == shop.window is not None


def test_its_check_is_one(tmp_path: Path) -> None:
    block = EXAMPLE.partition("#[[databases.shop.verify.checks]]")[2].split("\n\n")[0]
    text = "[[databases.shop.verify.checks]]" + block.replace("\n#", "\n")
    (check,) = load(write(tmp_path, HEAD + text), {}).database("shop").verify.checks
    assert check.name == "orders of the last day"


def write(folder: Path, text: str) -> Path:
    path = folder / "backupd.toml"
    path.write_text(text)
    return path


def loaded_with(folder: Path, text: str) -> object:
    return load(write(folder, HEAD + text), {}).database("shop")
