"""Fixtures for all tests: real servers, started when first asked for and gone with the tests."""

from __future__ import annotations

import gc
import signal

import pytest
from hypothesis import settings

from tests.postgres import any_pg, new_database, pg15, pg17, pg18
from tests.seaweed import SeaweedServer, s3_server

__all__ = ["any_pg", "new_database", "pg15", "pg17", "pg18", "s3_server"]

settings.register_profile("backupd", derandomize=True, deadline=None)
settings.load_profile("backupd")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case by its long texts' argument, not by the texts: they may be made of random keys, and the processes
    of one run must agree on every name. pytest numbers those that are alike."""
    return argname if isinstance(val, str | bytes) and len(val) > 24 else None


# nohup, and a shell that starts us in the background, have these ignored, which every program of ours would inherit.
for _number, _usual in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture
def s3_bucket(s3_server: SeaweedServer) -> str:
    """A new bucket on the session's S3 server."""
    return s3_server.new_bucket()


def pytest_collection_finish() -> None:
    """What pytest knows of thousands of tests stays: no collection of garbage is to look through it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for minutes comes first: at the end the other processes would wait for it."""
    items.sort(key=lambda item: "test_prometheus" not in item.nodeid)
