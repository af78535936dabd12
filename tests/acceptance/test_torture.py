"""The oracle test in its short form: the product under faults for a while, held to its promises afterwards."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from tests.torture.run import Torture, torture

#: Its plan has every kind of fault in it. The long form, `./justw torture`, takes a new seed each time.
SEED = 667
SECONDS = 45.0


# The Docker SDK leaves a socket to the garbage collector when it can't connect.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.timeout(300)
async def test_promises_hold_while_processes_store_and_engine_fail(
    sandbox_image: str, tmp_path: Path
) -> None:
    what = Torture(seed=SEED, seconds=SECONDS, agents=16, warm=4)

    report = await torture(what, sandbox_image, tmp_path, print)

    gc.collect()
    print(report.text())  # noqa: T201 - pytest shows it when the test fails
    assert report.violations == []
    assert report.exit_code == 0
    # There was something to be held to.
    assert report.numbers["tasks"]["completed"] > 20
    assert report.numbers["attempts"]["lost"] > 0
    assert report.numbers["containers"]["warm"] > 0
