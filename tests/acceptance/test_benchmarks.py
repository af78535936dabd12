"""The benchmarks themselves work: their short form measures everything, and an interrupt leaves nothing. No times are held."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from docker import APIClient
from tests.benchmarks.contenders import LABEL
from tests.sandboxes import Lab, wait_until

from harness.sandbox.hostconfig import LABEL_STORE
from harness.store.sqlite import SqliteStore

ROOT = Path(__file__).parent.parent.parent
GROUPS = ["startup", "latency", "throughput", "burst", "memory", "history"]


def _start(lab: Lab, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # Whoever runs the tests in the background has SIGINT ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "tests.benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "DOCKER_HOST": lab.engine.address.url, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


async def _containers(lab: Lab, *labels: str) -> set[str]:
    found: set[str] = set()
    for label in labels:
        listed: list[dict[str, Any]] = await lab.engine.call(
            APIClient.containers, all=True, filters={"label": label}
        )
        found |= {container["Id"] for container in listed}
    return found


@pytest.mark.timeout(300)
async def test_the_short_form_measures_every_group_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"

    process = _start(lab, tmp_path, "--quick", "--json", str(path))
    output, _ = await asyncio.to_thread(process.communicate)

    assert process.returncode == 0, output
    found = json.loads(path.read_text())
    assert {"CPU", "Memory", "Kernel", "Docker Engine", "Storage driver", "Cgroup", "Python"} <= {
        *found["machine"]
    }
    assert [group["group"] for group in found["groups"]] == GROUPS
    for group in found["groups"]:
        names = [row["name"] for row in group["rows"]]
        assert len(names) == len(set(names)) > 1
        assert all(row["beside"] in (None, *names) for row in group["rows"])
        for row in group["rows"]:
            # What must not grow may well shrink; everything else takes something.
            assert row["p50"] > 0 or group["group"] == "memory", row
    for group in found["groups"]:
        for goal in group["goals"]:
            assert goal["what"] in output.replace("\n", " ")
            assert (goal["measured"] is None) == (goal["verdict"] == "not measured")
            assert (
                goal["measured"] is not None
                or any("no warm pool" in note for note in group["notes"])
                or (
                    # Its forty tasks at once are no short form.
                    group["group"] == "burst"
                )
            )
    assert await _containers(lab, f"{LABEL}={process.pid}") == set()
    assert _left(tmp_path) == [path.name]


def _stores(folder: Path) -> list[Path]:
    return [*folder.glob("harness-bench-*/*/harness.db")]


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def _store_labels(folder: Path) -> list[str]:
    """Return what the containers of stores below a folder are labelled with; others use this engine as well."""
    labels = []
    for path in _stores(folder):
        store = SqliteStore(path)
        await store.open()
        labels.append(f"{LABEL_STORE}={store.store_id}")
        await store.close()
    return labels


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("number", "whose"), [(signal.SIGINT, "docker's"), (signal.SIGTERM, "ours")], ids=["int", "term"]
)
async def test_an_interrupted_benchmark_stops_and_removes_what_it_started(
    lab: Lab, tmp_path: Path, number: signal.Signals, whose: str
) -> None:
    process = _start(lab, tmp_path, "--only", "throughput", "--seconds", "24")
    labels: list[str] = []

    async def has_begun() -> bool:
        labels[:] = await _store_labels(tmp_path) if whose == "ours" else [f"{LABEL}={process.pid}"]
        return bool(await _containers(lab, *labels))

    await wait_until(has_begun, what=f"a container of {whose}", timeout_seconds=90)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    output, _ = await asyncio.to_thread(process.communicate)

    assert process.returncode in (-number, 128 + number), output
    assert await _containers(lab, f"{LABEL}={process.pid}", *labels) == set()
    assert _left(tmp_path) == []
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
