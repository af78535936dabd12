from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import InvalidInputError
from harness.jsontext import MAX_DEPTH, decode_document, encode_document

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
documents = st.dictionaries(
    st.text(),
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20),
)


def nested(depth: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(depth):
        document = {"a": document}
    return document


# A busy machine is no failure.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents)
def test_a_document_survives(document: dict[str, Any]) -> None:
    text = encode_document(document, what="state")

    assert decode_document(text, what="state") == document
    assert decode_document(text.encode(), what="state") == document
    assert encode_document(decode_document(text, what="state"), what="state") == text


def test_the_text_is_compact_and_keeps_the_order_of_keys() -> None:
    assert encode_document({"b": [1, 2.5, None], "a": "é", "": {"$x": True}}, what="state") == (
        '{"b":[1,2.5,null],"a":"é","":{"$x":true}}'
    )


def test_integers_beyond_64_bits_stay_exact() -> None:
    document = {"n": -(10**3000), "m": 2**64}

    assert decode_document(encode_document(document, what="state"), what="state") == document


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, r"state must be a JSON object \(a dict\), got NoneType"),
        ([1], "got list"),
        ({"a": {"b": [1, {2}]}}, r"state\.a\.b\[1\] is a set"),
        ({"a": b"x"}, r"state\.a is a bytes"),
        ({"a": {1: 2}}, r"state\.a has the key 1 \(int\); JSON keys are strings, use '1'"),
        ({"a": [float("inf")]}, r"state\.a\[0\] is inf"),
        ({"a": float("nan")}, "is nan"),
        ({"a": 10**4000}, r"state\.a is an integer of 13,288 bits"),
        ({"a": "\ud800"}, r"state\.a holds the lone surrogate '\\ud800'"),
        ({"a": {"\udfff": 1}}, r"a key in state\.a holds the lone surrogate"),
        (nested(MAX_DEPTH + 1), "nested deeper than 64 levels"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_its_path(value: Any, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        encode_document(value, what="state")


def test_a_document_that_contains_itself_is_refused() -> None:
    document: dict[str, Any] = {}
    document["a"] = [document]

    with pytest.raises(InvalidInputError, match="deeper"):
        encode_document(document, what="state")


def test_the_deepest_document_accepted_is_accepted_both_ways() -> None:
    document = nested(MAX_DEPTH)

    assert decode_document(encode_document(document, what="state"), what="state") == document


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not valid JSON"),
        ("[1]", "must be a JSON object, got list"),
        ("{'a': 1}", "not valid JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', r"state\.a is inf"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"\\udc00": 1}', "lone surrogate"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "the key 'b' is given twice"),
        ('{"a":' * 100_000, "deeper than 64"),
        ('{"a":' * 100 + "1" + "}" * 100, "deeper than 64"),
        (b'\xff{"a": 1}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        ('{"a": "\ud800"}', "lone surrogate"),
    ],
)
def test_text_from_a_stranger_is_refused_and_never_a_crash(text: str | bytes, complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        decode_document(text, what="state")


def test_the_bound_counts_bytes_of_utf_8() -> None:
    document = {"a": "é"}
    assert len('{"a":"é"}'.encode()) == 10

    text = encode_document(document, what="state", max_bytes=10)

    assert decode_document(text, what="state", max_bytes=10) == document
    with pytest.raises(InvalidInputError, match="state is 10 bytes of JSON, more than the limit of 9 bytes"):
        encode_document(document, what="state", max_bytes=9)
    with pytest.raises(InvalidInputError, match="more than the limit of 9 bytes"):
        decode_document(text, what="state", max_bytes=9)


def test_a_long_key_over_many_values_costs_no_more_memory_than_they_do() -> None:
    text = '{"' + "k" * 32_000 + '":[' + ",".join(["0"] * 16_000) + "]}"
    tracemalloc.start()
    try:
        decode_document(text, what="state", max_bytes=64 * 1024)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 20_000_000


def test_a_long_key_over_many_keys_costs_no_more_time_than_they_do() -> None:
    # Repeating the long key for each of the others would be 400 GB of text.
    document = {"k" * 2_000_000: {str(number): 0 for number in range(200_000)}}

    encode_document(document, what="state")


def test_messages_quote_long_paths_only_in_part() -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_document({"k" * 10_000: {("x" * 10_000,): 1}}, what="state")

    assert len(caught.value.message) < 500
