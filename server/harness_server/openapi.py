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
    HarnessError,
    InvalidInputError,
    PermissionDeniedError,
    RateLimitedError,
    StoreUnavailableError,
    UnsupportedMediaError,
)
from harness.models import Agent, AgentDraft
from harness.secrets.rules import NAME_PATTERN
from harness_server.endpoint import JSON, Answer, Endpoint, Scope
from harness_server.problems import PROBLEM_JSON, ProblemDocument, status_of_type

_REF = "#/components/schemas/{model}"

#: Errors of every endpoint, and of those that ask for a token, and of those that take a body.
_ANY_ERRORS = (RateLimitedError, StoreUnavailableError)
_TOKEN_ERRORS = (AuthenticationError, PermissionDeniedError)
_BODY_ERRORS = (BodyTooLargeError, UnsupportedMediaError)

_DESCRIPTION = """\
Runs autonomous agents around the clock, each run in a throwaway Docker container.

Errors are problem documents (RFC 9457) with a stable `code`. Instants are RFC 3339 in UTC. Lists come in pages."""

#: What in a path is no id.
_PATH_TEXTS: Mapping[str, dict[str, Any]] = {"secret_name": {"type": "string", "pattern": NAME_PATTERN}}

#: A model, and whether what is sent or what is answered is described.
_Use = tuple[type[BaseModel], JsonSchemaMode]


def make_document(endpoints: Mapping[str, Iterable[Endpoint]]) -> dict[str, Any]:
    """Return the document.

    Args:
        endpoints: By tag.
    """
    all_endpoints = [(tag, endpoint) for tag, group in endpoints.items() for endpoint in group]
    uses: dict[_Use, None] = {use: None for _, endpoint in all_endpoints for use in _uses(endpoint)}
    # Beside the agents that have it as `config`, where it is stored as its owner wrote it.
    uses |= {(ProblemDocument, "serialization"): None, (AgentConfig, "validation"): None}
    references: Mapping[Any, Any]
    references, definitions = models_json_schema(list(uses), ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
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
        "tags": [{"name": tag} for tag in endpoints],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _uses(endpoint: Endpoint) -> Iterable[_Use]:
    if endpoint.body is not None:
        yield endpoint.body, "validation"
    yield endpoint.query, "validation"
    for answer in endpoint.answers.values():
        if answer.model is not None:
            yield answer.model, "serialization"


def _describe_configs(schemas: dict[str, Any], references: Mapping[Any, Any]) -> None:
    config = references[AgentConfig, "validation"]
    for schema in schemas.values():
        properties = schema.get("properties", {})
        if (
            schema.get("title") in (Agent.__name__, AgentDraft.__name__, "AgentUpdate")
            and "config" in properties
        ):
            properties["config"] = config


def _operation(tag: str, endpoint: Endpoint, references: Mapping[Any, Any]) -> dict[str, Any]:
    summary, _, description = inspect.cleandoc(endpoint.handler.__doc__ or "").partition("\n\n")
    operation: dict[str, Any] = {
        "tags": [tag],
        "operationId": endpoint.name,
        "summary": summary.replace("\n", " "),
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
    if endpoint.scope is not Scope.NONE:
        operation["security"] = [{"token": [endpoint.scope.name.lower()]}]
    return operation


def _path_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    for part in endpoint.path.split("/"):
        if part.startswith("{"):
            name = part.strip("{}")
            schema = _PATH_TEXTS.get(name, {"type": "integer", "minimum": 1})
            yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(endpoint: Endpoint) -> Iterable[dict[str, Any]]:
    # Each by itself, so its definitions must not point at components of the whole model.
    schema = endpoint.query.model_json_schema(ref_template=_REF)
    for name, inner in schema.get("properties", {}).items():
        required = name in schema.get("required", ())
        yield {"name": name, "in": "query", "required": required, "schema": _without_null(inner)}


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
    if answer.model is not None:
        response["content"] = {answer.media_type: {"schema": references[answer.model, "serialization"]}}
    elif answer.media_type != JSON:
        response["content"] = {answer.media_type: {"schema": {"type": "string"}}}
    return response


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
