"""The OpenAPI 3.1 document, made from the endpoints and from the models that check requests."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from harness.config import AgentConfig
from harness.errors import (
    AuthenticationError,
    BodyTooLargeError,
    DeadlineExceededError,
    HarnessError,
    InvalidInputError,
    PermissionDeniedError,
    RateLimitedError,
    RequestTimeoutError,
    StoreUnavailableError,
    UnsupportedMediaError,
)
from harness.models import Agent, AgentDraft
from harness.secrets.rules import NAME_PATTERN
from harness_server.endpoint import JSON, Answer, Endpoint, Scope
from harness_server.problems import PROBLEM_JSON, ProblemDocument, status_of_type
from harness_server.schemas import DescribedSchema
from harness_server.streams import EVENT_STREAM

_REF = "#/components/schemas/{model}"

#: Errors of every endpoint, and of those that ask for a token, and of those that take a body.
_ANY_ERRORS = (
    PermissionDeniedError,
    RateLimitedError,
    StoreUnavailableError,
    DeadlineExceededError,
    BodyTooLargeError,
    UnsupportedMediaError,
)
_TOKEN_ERRORS = (AuthenticationError,)
_BODY_ERRORS = (RequestTimeoutError,)

_DESCRIPTION = """\
Runs autonomous agents around the clock, each run in a throwaway Docker container.

Errors are problem documents (RFC 9457) with a stable `code`. Instants are RFC 3339 in UTC. Lists come in pages."""

#: What in a path is no id.
_PATH_TEXTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "secret_name": ("Name of the secret.", {"type": "string", "pattern": NAME_PATTERN}),
}

#: A model, and whether what is sent or what is answered is described.
_Use = tuple[type[BaseModel], JsonSchemaMode]


def make_document(endpoints: Mapping[str, Iterable[Endpoint]]) -> dict[str, Any]:
    """Return the document.

    Args:
        endpoints: By tag; a tag's description is its route modules' first line.
    """
    all_endpoints = [(tag, endpoint) for tag, group in endpoints.items() for endpoint in group]
    uses: dict[_Use, None] = {use: None for _, endpoint in all_endpoints for use in _uses(endpoint)}
    # Beside the agents that have it as `config`, where it is stored as its owner wrote it.
    uses |= {(ProblemDocument, "serialization"): None, (AgentConfig, "validation"): None}
    references: Mapping[Any, Any]
    references, definitions = models_json_schema(
        list(uses), ref_template=_REF, schema_generator=DescribedSchema
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for _, endpoint in all_endpoints:
        schemas |= _query_schema(endpoint).get("$defs", {})
    _describe_configs(schemas, references)
    paths: dict[str, dict[str, Any]] = {}
    for tag, endpoint in all_endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(tag, endpoint, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Agent Harness",
            "version": version("agent-harness"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": _about(group)} for tag, group in endpoints.items()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _about(endpoints: Iterable[Endpoint]) -> str:
    texts = dict.fromkeys(inspect.getdoc(inspect.getmodule(one.handler)) or "" for one in endpoints)
    return " ".join(text.partition("\n\n")[0] for text in texts)


def _uses(endpoint: Endpoint) -> Iterable[_Use]:
    if endpoint.body is not None:
        yield endpoint.body, "validation"
    for answer in endpoint.answers.values():
        for model in (answer.model, *answer.events):
            if model is not None:
                yield model, "serialization"


def _describe_configs(schemas: dict[str, Any], references: Mapping[Any, Any]) -> None:
    config = references[AgentConfig, "validation"]
    for schema in schemas.values():
        properties = schema.get("properties", {})
        if (
            schema.get("title") in (Agent.__name__, AgentDraft.__name__, "AgentUpdate")
            and "config" in properties
        ):
            about = "Schedule, limits, environment, image; kept as its owner wrote it."
            properties["config"] = {**config, "description": about}


def _operation(tag: str, endpoint: Endpoint, references: Mapping[Any, Any]) -> dict[str, Any]:
    text = " ".join(inspect.cleandoc(endpoint.handler.__doc__ or "").split())
    # Handlers say in a first sentence what they do, and then what else there is to know.
    summary, dot, description = text.partition(". ")
    operation: dict[str, Any] = {
        "tags": [tag],
        "operationId": endpoint.name,
        "summary": summary + dot.strip(),
        "parameters": [
            *_path_parameters(endpoint),
            *_query_parameters(endpoint),
            *_header_parameters(endpoint),
        ],
        "responses": {
            **{str(status): _response(answer, references) for status, answer in endpoint.answers.items()},
            **_problem_responses(endpoint, references),
        },
    }
    if description:
        operation["description"] = description
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": not endpoint.is_body_optional,
            "content": {JSON: {"schema": references[endpoint.body, "validation"]}},
        }
        if endpoint.example is not None:
            operation["requestBody"]["content"][JSON]["example"] = endpoint.example
    if endpoint.scope is not Scope.NONE:
        operation["security"] = [{"token": [endpoint.scope.name.lower()]}]
    return operation


def _path_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    for part in endpoint.path.split("/"):
        if part.startswith("{"):
            name = part.strip("{}")
            about, schema = _PATH_TEXTS.get(name) or (
                f"Id of the {name.removesuffix('_id')}.",
                {"type": "integer", "minimum": 1},
            )
            yield {"name": name, "in": "path", "description": about, "required": True, "schema": schema}


def _query_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    schema = _query_schema(endpoint)
    for name, inner in schema.get("properties", {}).items():
        value = _without_null(inner)
        about = {"description": value.pop("description")} if "description" in value else {}
        required = name in schema.get("required", ())
        yield {"name": name, "in": "query", **about, "required": required, "schema": value}


def _query_schema(endpoint: Endpoint) -> dict[str, Any]:
    return endpoint.query.model_json_schema(ref_template=_REF, schema_generator=DescribedSchema)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a query parameter may be: left out where it is None, since a query has no word for null."""
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default", "title")}
    if schema.get("default") is not None:
        rest["default"] = schema["default"]
    if len(options) == 1:
        return {**options[0], **rest}
    return {**rest, "anyOf": options} if options else rest


def _header_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    for name, description in endpoint.headers.items():
        yield {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _response(answer: Answer, references: Mapping[Any, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    content: dict[str, Any] = {}
    if answer.model is not None:
        content[answer.media_type] = references[answer.model, "serialization"]
    elif answer.media_type != JSON:
        content[answer.media_type] = {"type": "string"}
    if answer.events:
        content[EVENT_STREAM] = _event([references[model, "serialization"] for model in answer.events])
    content |= {media_type: {"type": "string"} for media_type in answer.also_text}
    if content:
        response["content"] = {media_type: {"schema": schema} for media_type, schema in content.items()}
    return response


def _event(models: list[Any]) -> dict[str, Any]:
    """Describe one event of a stream, with the fields of its lines, as later releases of OpenAPI do."""
    text = {"type": "string"}
    carried = models[0] if len(models) == 1 else {"anyOf": models}
    data = {**text, "contentMediaType": JSON, "contentSchema": carried}
    return {"type": "object", "properties": {"id": text, "event": text, "data": data}, "required": ["data"]}


def _problem_responses(endpoint: Endpoint, references: Mapping[Any, Any]) -> dict[str, Any]:
    errors: list[type[HarnessError]] = [*endpoint.errors, *_ANY_ERRORS, InvalidInputError]
    if endpoint.scope is not Scope.NONE:
        errors += _TOKEN_ERRORS
    if endpoint.body is not None:
        errors += _BODY_ERRORS
    by_status: dict[int, list[type[HarnessError]]] = {}
    for error in errors:
        by_status.setdefault(status_of_type(error), []).append(error)
    schema = references[ProblemDocument, "serialization"]
    return {
        str(status): {
            "description": " ".join(f"`{kind.code}`: {(kind.__doc__ or '').strip()}" for kind in kinds),
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status, kinds in sorted(by_status.items())
    }
