"""`DecisionLog`: what is written down of the decisions about one run: in the log of the runner, and with the task."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from harness.egress.decision import Decision, Verdict

logger = logging.getLogger(__name__)

#: Decisions of each verdict that one run has written down, one by one; of the others the number.
MAX_WRITTEN = 100


class DecisionLog:
    """Called with each decision; `finish` it when no more come."""

    def __init__(self, task_id: int, agent_id: int, write: Callable[[str], None]) -> None:
        """Write about a task.

        Args:
            task_id: The task.
            agent_id: Whose it is.
            write: Given lines for whoever looks at the task, without their end.
        """
        self._ids: dict[str, object] = {"task_id": task_id, "agent_id": agent_id}
        self._write = write
        self._counts: Counter[Verdict] = Counter()

    def __call__(self, decision: Decision) -> None:
        """Take a decision."""
        verdict = decision.verdict
        self._counts[verdict] += 1
        if self._counts[verdict] > MAX_WRITTEN:
            return
        at = f" at {decision.address}" if decision.address else ""
        why = f": {decision.why}" if decision.why else ""
        level = logging.INFO if verdict is Verdict.ALLOWED else logging.WARNING
        logger.log(
            level,
            "task %d: egress %s: %s%s%s",
            self._ids["task_id"],
            verdict,
            decision.place,
            at,
            why,
            extra={
                "action": f"egress_{verdict}",
                **self._ids,
                "place": decision.place,
                "address": decision.address,
                "why": decision.why,
            },
        )
        self._write(f"[harness] egress {verdict}: {decision.place}{at}{why}")

    def finish(self) -> None:
        """Write down how many decisions were not, if any."""
        left = {
            verdict: count - MAX_WRITTEN for verdict, count in self._counts.items() if count > MAX_WRITTEN
        }
        if left:
            words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(left.items()))
            logger.warning(
                "task %d: egress, not written down one by one: %s",
                self._ids["task_id"],
                words,
                extra={"action": "egress_counted", **self._ids, **{f"{v}": n for v, n in left.items()}},
            )
            self._write(f"[harness] egress, not written down one by one: {words}")
