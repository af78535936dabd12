"""The OpenAPI document: valid, complete, and told in words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel

from harness_server.endpoint import Endpoint, Scope
from harness_server.openapi import make_document
from harness_server.routes import ENDPOINTS
from harness_server.schemas import field_comments

DOCUMENT = make_document(ENDPOINTS)
SCHEMAS = DOCUMENT["components"]["schemas"]
ALL = [endpoint for endpoints in ENDPOINTS.values() for endpoint in endpoints]


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    validate(json.loads(json.dumps(DOCUMENT)))


def test_it_says_which_release_it_describes() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", DOCUMENT["info"]["version"])


def test_every_endpoint_is_described_once() -> None:
    names = [operation["operationId"] for _, operation in operations()]

    assert sorted(names) == sorted(endpoint.name for endpoint in ALL)
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", name) for name in names)


def test_everything_is_told_in_words() -> None:
    silent = [
        *(f"tag {tag['name']}" for tag in DOCUMENT["tags"] if not tag.get("description")),
        *(f"schema {name}" for name, schema in SCHEMAS.items() if not schema.get("description")),
        *(
            f"field {name}.{field}"
            for name, schema in SCHEMAS.items()
            for field, inner in schema.get("properties", {}).items()
            if not inner.get("description")
        ),
        *(
            f"{where} {parameter['name']}"
            for where, operation in operations()
            for parameter in operation["parameters"]
            if not parameter.get("description")
        ),
    ]

    assert silent == []


def test_summaries_fit_a_line() -> None:
    summaries = [operation["summary"] for _, operation in operations()]

    assert all(10 < len(summary) <= 110 and summary.endswith(".") for summary in summaries)


def test_every_schema_is_referred_to_and_every_reference_leads_to_one() -> None:
    assert set(references(DOCUMENT)) == {f"#/components/schemas/{name}" for name in SCHEMAS}


def test_every_endpoint_tells_its_errors_as_problem_documents() -> None:
    for where, operation in operations():
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {"422", "429", "503"} <= errors.keys(), where
        assert all(list(answer["content"]) == ["application/problem+json"] for answer in errors.values()), (
            where
        )


def test_every_endpoint_says_which_scope_it_asks_for() -> None:
    for endpoint in ALL:
        operation = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
        wanted = [] if endpoint.scope is Scope.NONE else [{"token": [endpoint.scope.name.lower()]}]
        assert operation.get("security", []) == wanted


@pytest.mark.parametrize(
    "endpoint",
    [endpoint for endpoint in ALL if endpoint.body is not None],
    ids=lambda endpoint: endpoint.name,
)
def test_every_body_has_an_example_that_is_valid(endpoint: Endpoint) -> None:
    assert endpoint.body is not None
    assert endpoint.example is not None
    endpoint.body.model_validate_json(json.dumps(endpoint.example), strict=True)


class Base(BaseModel):
    """A model with comments."""

    #: Of the base.
    first: int
    #: Of the base, but for who
    #: changes it.
    second: int = 1
    plain: int = 2


class Derived(Base):
    #: Of the one that changes it.
    second: int = 2

    # No comment of this kind.
    third: int = 3


def test_the_comments_of_fields_are_found_through_bases() -> None:
    assert field_comments(Base) == {"first": "Of the base.", "second": "Of the base, but for who changes it."}
    assert field_comments(Derived) == {"first": "Of the base.", "second": "Of the one that changes it."}


def test_a_model_without_source_has_no_comments() -> None:
    made: type[BaseModel] = type("Made", (BaseModel,), {"__annotations__": {"first": int}})

    assert field_comments(made) == {}
