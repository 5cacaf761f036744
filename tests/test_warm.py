"""The tests' own way to start commands."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from subprocess import PIPE

import pytest
import warm

from img2img_cli import cli  # noqa: F401 - as it sets variables of its libraries


def test_commands_are_forked_whatever_the_package_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from img2img_cli.engines.diffusion import build  # noqa: F401

    template = warm._start_template()
    assert template.suits(dict(os.environ))
    assert template.suits({**os.environ, "HF_TOKEN": "read anew"})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert not template.suits(dict(os.environ))
    monkeypatch.delenv("PYTHONPATH")
    assert not template.suits(dict(os.environ))


def test_threads_that_ask_at_once_get_their_own_commands() -> None:
    def run(number: int) -> int:
        with warm.Warm(["--help"] if number % 2 else ["--nonsense"], stdout=PIPE, stderr=PIPE) as process:
            process.communicate()
        return process.returncode

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(40))) == [2, 0] * 20
