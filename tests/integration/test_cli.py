"""The installed command `harness` as a process, on a real engine and a real store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from harness.sandbox.engine import Engine
from harness.sandbox.hostconfig import LABEL_STORE
from harness.sandbox.inspection import engine_facts
from harness.settings import Settings
from harness.wiring import make_store, open_runtime

HARNESS = Path(sys.executable).with_name("harness")

COUNTER = """\
import sys
import handoff
count = context.get("count", 0) + 1
print("run", count)
print("a warning", file=sys.stderr)
handoff.save({"count": count}, f"counted to {count}")
"""

pytestmark = pytest.mark.usefixtures("sandbox_image")


class Ended:
    """A command that has ended."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr
        assert "Traceback" not in self.err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        assert self.out == ""
        return json.loads(self.err)["error"]


class Shell:
    """Runs `harness` with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")},
            "HARNESS_DATA_DIR": str(folder / "data"),
        }

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [HARNESS, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment | changes,
        )

    def __call__(self, *arguments: str, stdin: str = "", **changes: str) -> Ended:
        return Ended(
            subprocess.run(
                [HARNESS, *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
                timeout=50,
                cwd=self.folder,
                env=self.environment | changes,
            )
        )

    def create(self, code: str, *arguments: str, name: str = "agent") -> int:
        ended = self("agents", "create", name, "--code", "-", "--json", *arguments, stdin=code)
        assert ended.code == 0, ended.err
        return int(ended.json["id"])

    @property
    def settings(self) -> Settings:
        return Settings(data_dir=self.folder / "data")

    async def containers(self) -> int:
        """Count the containers of this store."""
        async with open_runtime(self.settings) as runtime:
            return len(await runtime.sandbox.owned_containers(runtime.store.store_id))


@pytest.fixture
def harness(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


async def test_an_agent_lives_from_creation_to_deletion(harness: Shell) -> None:
    (harness.folder / "counter.py").write_text(COUNTER)
    created = harness(
        "agents", "create", "counter", "--code", "counter.py", "--set", "limits.timeout_seconds=20"
    )
    assert (created.code, created.out) == (0, "agent 1 (counter) created, version 1\n")

    first = harness("run", "counter")
    assert (first.code, first.out) == (0, "run 1\n")
    assert first.err.startswith("a warning\ntask 1 completed (")
    assert first.err.endswith("): counted to 1\n")
    second = harness("run", "1")
    assert second.out == "run 2\n"

    logs = harness("logs", "2")
    assert (logs.out, logs.err) == ("run 2\n", "a warning\n")
    assert harness("logs", "2", "--stream", "stderr").out == "a warning\n"
    tasks = harness("tasks", "list", "--agent", "counter", "--status", "completed", "--json").json
    assert [task["id"] for task in tasks["items"]] == [2, 1]
    assert "counted to 2" in harness("tasks", "list").out
    assert "counted to 2" in harness("tasks", "show", "2").out

    assert harness("handoff", "show", "counter", "--state").json == {"count": 2}
    assert len(harness("handoff", "history", "counter", "--json").json["items"]) == 2
    assert harness("handoff", "set", "counter", "-", stdin='{"count": 40}').code == 0
    assert harness("run", "counter").out == "run 41\n"
    assert harness("handoff", "clear", "counter").code == 0
    assert harness("run", "counter").out == "run 1\n"

    assert harness("agents", "delete", "counter", "--yes").code == 0
    assert harness("tasks", "show", "1").code == 3
    assert await harness.containers() == 0


def test_a_given_context_is_seen_and_the_new_state_saved(harness: Shell) -> None:
    harness.create(COUNTER)
    (harness.folder / "c.json").write_text('{"count": 7}')
    assert harness("run", "agent", "--context", "@c.json").out == "run 8\n"
    assert harness("run", "agent").out == "run 9\n"


def test_a_result_as_json_is_all_there_is_on_standard_output(harness: Shell) -> None:
    harness.create(COUNTER)
    ended = harness("run", "agent", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["success"] is True
    assert ended.json["stdout"] == "run 1\n"
    assert ended.json["state"] == {"count": 1}
    assert ended.json["usage"]["peak_memory_bytes"] > 0


def test_output_can_be_left_out(harness: Shell) -> None:
    harness.create(COUNTER)
    ended = harness("run", "agent", "--no-follow")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("task 1 completed")


@pytest.mark.parametrize(
    ("code", "settings", "reason"),
    [
        ("raise SystemExit(3)", (), "exit_nonzero"),
        ("import time; time.sleep(30)", ("--set", "limits.timeout_seconds=0.5"), "timeout"),
    ],
)
def test_a_failed_run_exits_1_and_says_why(
    code: str, settings: tuple[str, ...], reason: str, harness: Shell
) -> None:
    harness.create(code, *settings)
    ended = harness("run", "agent")
    assert ended.code == 1
    assert "task 1 failed (" in ended.err
    assert f": {reason}: " in ended.err
    assert harness("run", "agent", "--json").json["reason"] == reason


def test_a_folder_runs_with_its_modules_and_config(harness: Shell) -> None:
    folder = harness.folder / "crawler"
    (folder / "lib").mkdir(parents=True)
    (folder / "start.py").write_text(
        "import os\nfrom lib.words import word\nprint(word, os.environ['WHO'])\n"
    )
    (folder / "lib" / "words.py").write_text("word = 'hej'\n")
    (harness.folder / "c.yaml").write_text("env:\n  WHO: världen\nlimits:\n  max_memory_mb: 64\n")
    created = harness(
        "agents", "create", "crawler", "--folder", "crawler", "--entrypoint", "start.py", "--config", "c.yaml"
    )
    assert created.code == 0, created.err
    assert harness("run", "crawler").out == "hej världen\n"


def test_failures_of_input_have_their_codes(harness: Shell) -> None:
    harness.create(COUNTER)
    (harness.folder / "bad.yaml").write_text("limits: [")
    assert harness("run", "nobody", "--json").error["code"] == "agent_not_found"
    assert harness("run", "nobody").code == 3
    assert harness("run", "agent", "--context", "{oops").code == 2
    assert harness("handoff", "set", "agent", "@missing.json").code == 2
    bad = harness("agents", "update", "agent", "--config", "bad.yaml")
    assert (bad.code, bad.err.count("\n")) == (2, 1)
    assert "bad.yaml" in bad.err
    assert harness("logs", "99", "--json").error["code"] == "task_not_found"


def test_without_an_engine_a_run_fails_at_once_and_leaves_no_task(harness: Shell) -> None:
    harness.create(COUNTER)
    ended = harness("run", "agent", "--json", DOCKER_HOST="unix:///nonexistent")
    assert (ended.code, ended.error["code"]) == (4, "engine_unavailable")
    assert harness("tasks", "list", "--json").json["total_count"] == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_a_signal_cancels_the_run_and_removes_its_container(
    number: signal.Signals, code: int, harness: Shell
) -> None:
    harness.create("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    process = harness.start("run", "agent")
    wait_for_line(process, "begun")
    assert await harness.containers() == 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (code, f"error: stopped by {number.name}; task 1 cancelled\n")
    task = harness("tasks", "show", "1", "--json").json
    assert (task["status"], task["reason"]) == ("cancelled", "cancelled")
    assert harness("logs", "1").out == "begun\n"
    assert await harness.containers() == 0


async def test_a_killed_runner_leaves_nothing_behind_for_long(harness: Shell) -> None:
    harness.create("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    process = harness.start("run", "agent", HARNESS_LEASE_SECONDS="1")
    wait_for_line(process, "begun")
    process.kill()
    process.communicate(timeout=20)
    await asyncio.sleep(1.2)  # the lease
    harness.create(COUNTER, name="other")
    assert harness("run", "other").code == 0
    assert harness("tasks", "show", "1", "--json").json["reason"] == "lost"
    assert await harness.containers() == 0


def test_a_closed_pipe_ends_a_listing_quietly(harness: Shell) -> None:
    # More than a pipe holds, so that it is written to after it was closed.
    harness.create("print('x')\n" + "# filler\n" * 20_000)
    process = harness.start("agents", "show", "agent", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=20) == 141


def test_a_closed_pipe_does_not_end_a_run(harness: Shell) -> None:
    harness.create("for i in range(20000): print('line', i)\nimport handoff; handoff.save({'done': True})")
    process = harness.start("run", "agent")
    wait_for_line(process, "line 0")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read().startswith("task 1 completed")
    process.stderr.close()
    assert process.wait(timeout=20) == 0
    assert harness("handoff", "show", "agent", "--state").json == {"done": True}


def test_output_that_cannot_be_written_is_an_error_without_traceback(harness: Shell) -> None:
    harness.create(COUNTER)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [HARNESS, "agents", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=harness.environment,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "No space left" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_followed_logs_come_while_the_task_runs_and_end_with_it(harness: Shell) -> None:
    harness.create(
        "import time\nprint('begun', flush=True)\ntime.sleep(2)\nprint('ended')",
        "--set",
        "limits.timeout_seconds=20",
    )
    running = harness.start("run", "agent")
    wait_for_line(running, "begun")
    following = harness.start("logs", "1", "--follow")
    wait_for_line(following, "begun")
    assert running.poll() is None
    assert following.communicate(timeout=20)[0] == "ended\n"
    assert following.returncode == 0
    running.communicate(timeout=20)


def test_following_ends_when_nobody_reads_any_more(harness: Shell) -> None:
    harness.create("import time\nfor i in range(300):\n    print('line', i, flush=True)\n    time.sleep(0.1)")
    running = harness.start("run", "agent")
    wait_for_line(running, "line 0")
    following = harness.start("logs", "1", "--follow")
    wait_for_line(following, "line 0")
    assert following.stdout is not None
    following.stdout.close()
    assert following.wait(timeout=20) == 141
    assert running.poll() is None
    assert following.stderr is not None
    assert following.stderr.read() == ""
    following.stderr.close()
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=20)


def test_logs_as_json_tell_streams_and_attempts(harness: Shell) -> None:
    harness.create(COUNTER)
    harness("run", "agent")
    chunks = harness("logs", "1", "--json").json["chunks"]
    assert {(chunk["stream"], chunk["data"], chunk["attempt"]) for chunk in chunks} == {
        ("stdout", "run 1\n", 1),
        ("stderr", "a warning\n", 1),
    }


def test_a_busy_agent_is_a_conflict(harness: Shell) -> None:
    harness.create("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    process = harness.start("run", "agent")
    wait_for_line(process, "begun")
    busy = harness("run", "agent", "--json")
    assert (busy.code, busy.error["code"]) == (3, "agent_busy")
    assert harness("agents", "delete", "agent", "--yes").code == 3
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


def test_images_are_listed_with_the_base_and_the_current_one(harness: Shell, sandbox_image: str) -> None:
    images = harness("images", "list", "--json").json["items"]
    assert [image["tag"] for image in images if image["is_current"]] == [sandbox_image]
    built = harness("images", "build")
    assert (built.code, built.out) == (0, f"{sandbox_image}\n")
    assert images[0]["base"] in built.err


async def test_doctor_finds_a_healthy_machine_healthy(harness: Shell) -> None:
    report = harness("doctor", "--json")
    assert report.code == 0, report.out
    found = {check["name"]: check["status"] for check in report.json["checks"]}
    # Known escapes depend on the engine's versions.
    assert found.pop("versions") in ("ok", "warning")
    assert found == dict.fromkeys(
        [
            "settings",
            "data directory",
            "store",
            "engine",
            "runtime",
            "limits",
            "cgroups",
            "security",
            "image",
            "sandbox run",
            "leftovers",
        ],
        "ok",
    )
    lines = harness("doctor").out.splitlines()
    assert len([line for line in lines if "remedy:" not in line]) == 12


async def test_doctor_names_the_versions_that_the_engine_says_it_has(harness: Shell) -> None:
    async with open_runtime(harness.settings) as runtime:
        said = await runtime.sandbox.engine.call(APIClient.version)
    versions = {part["Name"]: part["Version"] for part in said["Components"]}
    report = harness("doctor", "--no-run", "--json")
    detail = next(check["detail"] for check in report.json["checks"] if check["name"] == "versions")
    assert detail.startswith(
        f"Docker {versions['Engine']}, containerd {versions['containerd']}, runc {versions['runc']}"
    )


def test_a_missing_runtime_is_a_problem_to_the_doctor_and_the_end_of_a_run(harness: Shell) -> None:
    kata = {"HARNESS_SANDBOX_RUNTIME": "no-such-runtime"}
    report = harness("doctor", "--json", **kata)
    found = {check["name"]: check for check in report.json["checks"]}
    assert report.code == 1
    assert found["runtime"]["status"] == found["sandbox run"]["status"] == "problem"
    assert "HARNESS_SANDBOX_RUNTIME=no-such-runtime asks for; it has" in found["runtime"]["detail"]
    assert "daemon.json" in found["runtime"]["remedy"]

    agent = harness.create("print('never')")
    ran = harness("run", str(agent), "--json", **kata)
    assert ran.code == 1
    assert ran.json["reason"] == "sandbox_error"
    assert "HARNESS_SANDBOX_RUNTIME asks for it" in ran.json["error_message"]


async def test_a_profile_counts_only_where_the_engine_has_apparmor(harness: Shell) -> None:
    async with open_runtime(harness.settings) as runtime:
        facts = await engine_facts(runtime.sandbox.engine)
    has_apparmor = any(option.startswith("name=apparmor") for option in facts.security_options)
    report = harness("doctor", "--no-run", "--json", HARNESS_APPARMOR_PROFILE="docker-default")
    found = next(check for check in report.json["checks"] if check["name"] == "security")
    assert found["status"] == ("ok" if has_apparmor else "problem")
    assert ("with the profile docker-default" if has_apparmor else "nothing enforces it") in found["detail"]


def test_doctor_names_a_missing_image(harness: Shell) -> None:
    report = harness("doctor", "--json", HARNESS_SANDBOX_IMAGE="agent-harness/no-such:1")
    found = {check["name"]: check for check in report.json["checks"]}
    assert report.code == 1
    assert "agent-harness/no-such:1" in found["image"]["detail"]
    assert found["sandbox run"]["detail"] == "needs the image"


async def test_doctor_finds_a_container_left_behind(harness: Shell, sandbox_image: str) -> None:
    store = make_store(harness.settings, None)  # type: ignore[arg-type] # it is not asked for the time
    await store.open()
    labels = {LABEL_STORE: store.store_id, "io.agent-harness.task": "99", "io.agent-harness.fence": "1"}
    await store.close()
    async with open_runtime(harness.settings) as runtime:
        engine: Engine = runtime.sandbox.engine

        def create(client: APIClient) -> str:
            return str(client.create_container(sandbox_image, labels=labels)["Id"])

        container_id = await engine.call(create)
        try:
            report = harness("doctor", "--no-run", "--json")
        finally:
            await runtime.sandbox.remove_container(container_id)
    found = {check["name"]: check for check in report.json["checks"]}
    assert report.code == 1
    assert container_id[:12] in found["leftovers"]["remedy"]


def test_no_command_page_loads_a_driver_or_docker(harness: Shell) -> None:
    program = (
        "import sys\nfrom harness.cli.app import invoke\ninvoke(['agents', 'create', '--help'])\n"
        "sys.exit(','.join(sorted({'docker', 'pymongo', 'aiosqlite', 'rich', 'harness.models'} & set(sys.modules))) or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=harness.environment
    )
    assert (ended.returncode, ended.stderr) == (0, "")
