"""The user's API description, block by block: each runs as written in a process of its own, import line apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Agent, AgentDraft, Settings, open_runtime

Run = Callable[[str], str]

RUN_BLOCK = Path(__file__).with_name("run_block.py")

COUNTER = """
import handoff
print("agent", handoff.task.agent_id, "sees", context)
print('Processed 10 items')
"""


@pytest.fixture
async def agent(tmp_path: Path) -> Agent:
    """The agent with id 1 that the description's examples talk about."""
    async with open_runtime(Settings(data_dir=tmp_path)) as runtime:
        agent = await runtime.store.create_agent(AgentDraft(name="example", code=COUNTER))
    assert agent.id == 1
    return agent


@pytest.fixture
def run(tmp_path: Path, agent: Agent) -> Run:
    """Run a block in a process of its own and return what it printed."""

    def run_block(block: str) -> str:
        process = subprocess.run(
            [sys.executable, "-W", "error", RUN_BLOCK],
            input=textwrap.dedent(block),
            env={**os.environ, "HARNESS_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == "", "a program that closes nothing must still end without a complaint"
        return process.stdout

    return run_block


def test_executor_is_made_as_described(run: Run) -> None:
    printed = run(
        """
        from harness import AgentExecutor

        executor = AgentExecutor(
            timeout_seconds=300,  # 5 minutes default
            max_memory_mb=256
        )
        result = await executor.execute_agent(
            agent_id=1,
            context={"key": "value"}  # Optional context dict
        )
        print(result.success, result.exit_code, result.error_message, type(result.duration_seconds).__name__)
        print(result.stdout, end="")
        print(repr(result.stderr))
        """
    )
    assert printed == "True 0 None float\nagent 1 sees {'key': 'value'}\nProcessed 10 items\n''\n"


def test_executor_example_prints_the_output(run: Run) -> None:
    printed = run(
        """
        from harness import AgentExecutor

        executor = AgentExecutor(timeout_seconds=60)
        result = await executor.execute_agent(agent_id=1)

        if result.success:
            print(f"Output: {result.stdout}")
        else:
            print(f"Error: {result.error_message}")
        """
    )
    assert printed == "Output: agent 1 sees {}\nProcessed 10 items\n\n"


def test_defaults_are_those_of_the_description(run: Run) -> None:
    printed = run(
        """
        import inspect
        from harness import AgentExecutor, ResourceLimits
        parameters = inspect.signature(AgentExecutor).parameters
        print(parameters["timeout_seconds"].default, parameters["max_memory_mb"].default)
        print(ResourceLimits())
        """
    )
    assert printed == "300 256\nmax_memory_mb=256 max_cpu_percent=80.0 max_processes=5\n"


def test_handoff_methods_in_the_order_of_the_description(run: Run) -> None:
    printed = run(
        """
        from harness import HandoffManager

        manager = HandoffManager()
        print(await manager.load_artifact(agent_id=1))
        artifact = await manager.save_artifact(
            agent_id=1,
            state={"counter": 42, "last_value": "test"},
            summary="Processed 10 items"
        )
        artifact = await manager.load_artifact(agent_id=1)
        print(artifact.agent_id, artifact.state, artifact.summary, artifact.created_at.utcoffset(), artifact.run_count)
        compressed = await manager.compress_context(
            agent_id=1,
            raw_output="Long output...",
            previous_state={"key": "value"}
        )
        print(compressed["key"])
        await manager.clear_artifact(agent_id=1)
        print(await manager.load_artifact(agent_id=1))
        """
    )
    assert printed == (
        "None\n1 {'counter': 42, 'last_value': 'test'} Processed 10 items 0:00:00 1\nvalue\nNone\n"
    )


LONG_RUNNING = """
from harness import AgentExecutor, HandoffManager

executor = AgentExecutor()
manager = HandoffManager()

# Load previous state
artifact = await manager.load_artifact(agent_id=1)
context = artifact.state if artifact else {}

# Execute with context
result = await executor.execute_agent(agent_id=1, context=context)

# Save new state
if result.success:
    new_state = await manager.compress_context(
        agent_id=1,
        raw_output=result.stdout,
        previous_state=context
    )
    await manager.save_artifact(agent_id=1, state=new_state)
"""


def test_long_running_example_counts_each_run_once(run: Run) -> None:
    look = "print((await manager.load_artifact(agent_id=1)).run_count, bool(context))"
    assert run(LONG_RUNNING + look) == "1 False\n"
    assert run(LONG_RUNNING + look) == "2 True\n"


def test_resource_manager_as_described(run: Run) -> None:
    printed = run(
        """
        from harness import ResourceManager, ResourceLimits

        manager = ResourceManager()
        limits = ResourceLimits(
            max_memory_mb=256,
            max_cpu_percent=80.0,
            max_processes=5
        )
        import os
        usage = manager.get_process_usage(process_id=os.getpid())
        print(sorted(usage))
        if manager.exceeds_limits(usage, ResourceLimits(max_memory_mb=1)):
            print("Resource limit exceeded!")
        resources = manager.get_system_resources()
        print(sorted(resources))
        """
    )
    assert printed == (
        "['cpu_percent', 'memory_mb', 'num_children', 'num_threads']\nResource limit exceeded!\n"
        "['available_memory_mb', 'cpu_count', 'cpu_percent', 'memory_percent', 'total_memory_mb']\n"
    )


@pytest.fixture
def greedy_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that soon holds more than 128 MiB and then waits."""
    program = "x = bytearray(b'x') * (200 << 20); import time; time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        yield process
        process.kill()


def test_monitoring_example_ends_a_process_that_takes_too_much(
    run: Run, greedy_process: subprocess.Popen[bytes]
) -> None:
    printed = run(
        """
        from harness import ResourceManager, ResourceLimits
        import time

        manager = ResourceManager()
        limits = ResourceLimits(max_memory_mb=128)

        # Monitor process
        process_id = 12345
        while True:
            usage = manager.get_process_usage(process_id)

            if manager.exceeds_limits(usage, limits):
                print(f"Memory limit exceeded: {usage['memory_mb']:.2f}MB")
                manager.kill_process(process_id)
                break

            time.sleep(1)
        """.replace("12345", str(greedy_process.pid))
    )
    # It may be seen while it still grows.
    assert re.fullmatch(r"Memory limit exceeded: (1[2-9]\d|2\d\d)\.\d\dMB\n", printed)
    assert greedy_process.wait(timeout=10) == -15
