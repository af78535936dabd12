"""JSON Schemas of models, with what the source says about each field: the ``#:`` comments that people read there."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

_MARK = "#:"

#: Fields that mean the same wherever they are, and that a comment in the source would only repeat.
_EVERYWHERE = {
    "id": "Counted up from 1, never used twice.",
    "agent_id": "The agent.",
    "task_id": "The task.",
    "task_ids": "The tasks, by rising id.",
    "agents": "The agents of this page.",
    "tasks": "The tasks of this page.",
    "artifacts": "The artifacts of this page.",
    "total_count": "How many there are on all pages.",
    "limit": "How many a page holds at most.",
    "offset": "How many were left out before this page.",
    "name": "Unique among agents.",
    "entrypoint": "Which of the files is run.",
    "status": "Where the task stands.",
    "scheduled_at": "When it was to start.",
    "created_at": "When it was made.",
    "updated_at": "When it was last changed.",
    "started_at": "When it started.",
    "completed_at": "When the task ended.",
    "ended_at": "When it ended; null while it runs.",
    "result": "The run's summary, or the last line of its output.",
    "error": "What went wrong.",
    "attempt": "Which attempt it belongs to, by its number.",
    "at": "When it was recorded.",
    "exit_code": "Of the agent's program; 128 + n after signal n.",
    "retry_count": "How often it was tried again.",
    "max_retries": "How often it may be tried again.",
    "state": "What the agent's next run gets as its context.",
    "summary": "A line for people.",
    "usage": "What it used.",
    "next_fires": "The next fire times, the soonest first.",
}


class DescribedSchema(GenerateJsonSchema):
    """Pydantic's schemas with the comments of fields as their descriptions."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Describe a model's fields."""
        made = super().model_schema(schema)
        comments = field_comments(schema["cls"])
        for name, field in made.get("properties", {}).items():
            text = comments.get(name) or _EVERYWHERE.get(name)
            if text is not None:
                field.setdefault("description", text)
        return made


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """Return the comments of a model's fields, its own before those of its bases; none where there is no source."""
    comments: dict[str, str] = {}
    for kind in model.__mro__:
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            comments = _own_comments(kind) | comments
    return comments


@functools.cache
def _own_comments(model: type[BaseModel]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(model))
    except (OSError, TypeError):
        return {}
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: text
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if (text := _comment_above(lines, node.lineno - 1))
    }


def _comment_above(lines: list[str], index: int) -> str:
    words: list[str] = []
    while index > 0 and (line := lines[index - 1].strip()).startswith(_MARK):
        words.insert(0, line.removeprefix(_MARK).strip())
        index -= 1
    return " ".join(words)
