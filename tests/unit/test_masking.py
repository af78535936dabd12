from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.secrets.masking import Masker

PLAIN = "sk-live-4f9aK2m8QzX0"
#: Has something for every way of escaping.
ODD = 'p@ss "wörd"/&<it\'s>\\😀%20+'
KEY = "-----BEGIN KEY-----\nMIIBOgIBAAJBAKj34Gkx\nab\nFhD90vcNLYLInFEX6\n-----END KEY-----\n"
#: Overlap with each other, and with themselves.
TWISTED = ["abcabcabd", "abdxyzabc", "abcabcab", "zabcabcabcq"]

SECRETS = [PLAIN, ODD, KEY, *TWISTED]


def masked(secrets: Iterable[str], *pieces: bytes) -> bytes:
    stream = Masker(secrets).stream()
    return b"".join([*map(stream.feed, pieces), stream.finish()])


#: How a text may be written, and what is left of it when all of it is masked, quotes aside.
SPELLINGS: dict[str, tuple[Callable[[str], str], str]] = {
    "as it is": (str, "***"),
    "JSON": (json.dumps, "***"),
    "JSON, not ASCII": (lambda value: json.dumps(value, ensure_ascii=False), "***"),
    "JSON in JSON": (lambda value: json.dumps({"b": json.dumps({"t": value})}), r'{"b": "{\"t\": \"***\"}"}'),
    "repr": (repr, "***"),
    "repr of a longer text": (lambda value: repr(f"it's {value}"), "it's ***"),
    "repr with quotes": (lambda value: repr(f"\"' {value}"), r"\' ***"),
    "repr of bytes": (lambda value: repr(value.encode())[1:], "***"),
    "ascii": (ascii, "***"),
    "HTML": (html.escape, "***"),
    "HTML by others": (lambda value: html.escape(value).replace("&#x27;", "&#39;"), "***"),
    "HTML, quotes left": (lambda value: html.escape(value, quote=False), "***"),
    "URL path": (quote, "***"),
    "URL part": (lambda value: quote(value, safe=""), "***"),
    "URL query": (lambda value: urlencode({"t": value}), "t=***"),
    "URL in small letters": (
        lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")),
        "***",
    ),
    "hex": (lambda value: value.encode().hex(), "***"),
    "HEX": (lambda value: value.encode().hex().upper(), "***"),
}


@pytest.mark.parametrize("secret", [PLAIN, ODD, KEY.strip()], ids=["plain", "odd", "key"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_secret_is_masked_in_every_spelling(name: str, secret: str) -> None:
    spell, left = SPELLINGS[name]

    text = Masker([secret]).text(spell(secret))

    assert text.replace(r"\'", "'").strip("\"'") == left.replace(r"\'", "'").strip("\"'")


@pytest.mark.parametrize("secret", [PLAIN, ODD, KEY.strip()], ids=["plain", "odd", "key"])
@pytest.mark.parametrize("before", ["", "a:", "me:", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_is_masked_in_base64_whatever_is_beside_it(
    encode: Callable[[bytes], bytes], before: str, secret: str
) -> None:
    header = f"Basic {encode(f'{before}{secret}'.encode()).decode()}"

    text = Masker([secret]).text(header)

    assert re.fullmatch(rf"Basic .{{{len(before) * 8 // 6},{len(before) * 8 // 6 + 1}}}\*\*\*.?=*", text), (
        text
    )


def test_a_secret_of_several_lines_is_masked_line_by_line() -> None:
    masker = Masker([KEY])

    assert masker.text("".join(f"    | {line}\r\n" for line in KEY.splitlines())) == (
        "    | ***\r\n    | ***\r\n    | ab\r\n    | ***\r\n    | ***\r\n"
    )
    assert masker.text("|".join(KEY.splitlines())) == "***|***|ab|***|***"


def test_ordinary_output_stays_as_it_is() -> None:
    data = bytes(range(256)) * 40 + "Grüße 😀 sk-live\n".encode()

    assert masked(SECRETS, data) == data
    assert masked(SECRETS, *(data[at : at + 1] for at in range(len(data)))) == data


def test_output_that_begins_no_secret_is_passed_on_at_once() -> None:
    stream = Masker([PLAIN]).stream()

    assert stream.feed(b"hello\n") == b"hello\n"
    assert stream.feed(b"progress") == b"progres"
    assert stream.feed(b" 10 %") == b"s 10 %"
    assert stream.feed(f"{PLAIN[:-1]}".encode()) == b""
    assert stream.feed(b"!\n") == f"{PLAIN[:-1]}!\n".encode()
    assert stream.feed(PLAIN.encode()) == b"***"


def test_overlapping_secrets_become_one_mask() -> None:
    assert masked(["abcdefgh", "efghijkl"], b"<abcdefghijkl>") == b"<***>"
    assert masked(["abcdefgh", "efghijkl"], b"<abcdefgh", b"ij", b"kl>") == b"<***>"
    assert masked(["abcdefgh", "efghijkl"], b"<abcdefgh", b"ij>") == b"<***ij>"
    assert masked(["abcdefgh"], b"abcdefghabcdefgh") == b"******"
    assert masked(["abcdefgh", "abcdefghijkl"], b"abcdefghij", b"kl abcdefghij ") == b"*** ***ij "


def test_half_a_secret_at_the_end_is_masked_where_something_may_have_cut_it() -> None:
    assert masked([PLAIN], f"cut: {PLAIN[:12]}".encode()) == b"cut: ***"
    assert masked([PLAIN], b"cut: sk-live") == b"cut: sk-live"
    assert Masker([PLAIN]).text(f"ValueError: {PLAIN}"[:25], is_cut=True) == "ValueError: ***"
    assert Masker([PLAIN]).text(f"whole: {PLAIN[:12]}") == f"whole: {PLAIN[:12]}"


def test_the_first_words_of_an_address_are_no_secret() -> None:
    secret = "postgres://user:5cT8pLw7@db.example/main"

    assert masked([secret], b"the driver is postgres") == b"the driver is postgres"
    assert masked([secret, "postgres-12"], b"it is postgres-12") == b"it is ***"
    assert Masker([secret]).json({"driver": "postgres", "url": secret}) == {
        "driver": "postgres",
        "url": "***",
    }


def test_blanks_around_a_secret_hold_nothing_back() -> None:
    stream = Masker(["\n  correct horse battery \n\n"]).stream()

    assert stream.feed(b"\n") == b"\n"
    assert stream.feed(b"correct horse battery\n") == b"***\n"


def test_a_mask_never_completes_another_secret() -> None:
    secrets = ["12345678", "ab***cdx"]

    assert b"ab***cdx" not in masked(secrets, b"ab12345678cdx ab***cdx")


def test_json_is_masked_in_texts_keys_and_numbers() -> None:
    masker = Masker([PLAIN, "20261231"])
    state = {
        "plain": f"the token is {PLAIN}",
        f"key {PLAIN}": [1, {"deep": [PLAIN]}, None, True],
        "pin": 20261231,
        "near": 2026.1231,
        "price": 1220261231.5,
    }

    assert masker.json(state) == {
        "plain": "the token is ***",
        "key ***": [1, {"deep": ["***"]}, None, True],
        "pin": "***",
        "near": 2026.1231,
        "price": "***",
    }


def test_keys_that_become_alike_stay_apart() -> None:
    masker = Masker([PLAIN, "another one"])

    assert masker.json({PLAIN: 1, "***": 2, "another one": 3}) == {"***2": 1, "***": 2, "***3": 3}


def test_without_secrets_nothing_is_masked() -> None:
    masker = Masker()

    assert not masker
    assert masker.text("anything") == "anything"
    assert masked([], b"any", b"thing") == b"anything"


#: Texts full of secrets, halves of secrets, and what stands between.
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(SECRETS),
        st.builds(lambda secret, size: secret[:size], st.sampled_from(SECRETS), st.integers(0, 20)),
        st.builds(lambda secret, size: secret[-size:], st.sampled_from(SECRETS), st.integers(1, 20)),
        st.builds(lambda secret, name: SPELLINGS[name][0](secret), st.sampled_from(SECRETS), st.sampled_from(list(SPELLINGS))),
        st.text(alphabet="abcdxyz*-\n ö😀", max_size=12),
    ),
    max_size=12,
).map(lambda parts: "".join(parts).encode())  # fmt: skip


@given(data=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=30))
def test_any_cuts_give_what_the_whole_gives(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]

    assert masked(SECRETS, *(data[start:end] for start, end in pairwise(edges))) == masked(SECRETS, data)


@given(data=TEXTS)
def test_no_secret_gets_through(data: bytes) -> None:
    shown = masked(SECRETS, data)

    for secret in SECRETS:
        for spell, _ in SPELLINGS.values():
            if (written := spell(secret).strip("\"'")) in data.decode():
                assert written.encode() not in shown


@given(data=TEXTS, size=st.integers(1, 5))
def test_no_more_is_held_back_than_a_secret_is_long(data: bytes, size: int) -> None:
    secrets = [PLAIN, *TWISTED]
    longest = max(len(secret.encode().hex()) for secret in secrets)
    stream = Masker(secrets).stream()
    shown = b""
    for start in range(0, len(data), size):
        shown += stream.feed(data[start : start + size])
        # Masks are shorter than secrets, so only where nothing was masked the lengths can be compared.
        if b"***" not in shown and b"###" not in shown:
            assert start + size - len(shown) < longest + size
