from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sandbox import images
from harness.sandbox.images import BASE_REPOSITORY, REGISTRY_BASE, REPOSITORY, image_sources, is_fixed


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the images' sources that a test may change."""
    copy = tmp_path / "images"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(image_sources(), copy, ignore=ignored)
    monkeypatch.setattr(images, "image_sources", lambda: copy)
    return copy


def test_the_sources_have_what_an_image_needs() -> None:
    assert {"Dockerfile", "supervisor.py", "handoff.py"} <= {
        path.name for path in (image_sources() / "python").iterdir()
    }
    assert (image_sources() / "base" / "build.sh").is_file()


def test_the_same_sources_on_the_same_base_have_the_same_name(sources: Path) -> None:
    before = images._tag(REGISTRY_BASE), images._debian_tag()
    for path in sources.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes())
            path.touch()
            path.chmod(0o600)

    assert (images._tag(REGISTRY_BASE), images._debian_tag()) == before
    assert before[0].startswith(REPOSITORY + ":")
    assert before[1].startswith(BASE_REPOSITORY + ":")


@pytest.mark.parametrize("name", ["Dockerfile", "supervisor.py", "handoff.py"])
def test_a_change_of_any_source_makes_another_name(sources: Path, name: str) -> None:
    before = images._tag(REGISTRY_BASE)
    path = sources / "python" / name

    path.write_bytes(path.read_bytes() + b"\n")

    assert images._tag(REGISTRY_BASE) != before


def test_a_change_of_the_bases_recipe_makes_another_base_and_another_image(sources: Path) -> None:
    base, image = images._debian_tag(), images._tag(images._debian_tag())
    path = sources / "base" / "build.sh"

    path.write_bytes(path.read_bytes() + b"\n")

    assert images._debian_tag() != base
    assert images._tag(images._debian_tag()) != image


def test_another_base_makes_another_name() -> None:
    assert images._tag(REGISTRY_BASE) != images._tag(images._debian_tag())


def test_a_file_more_or_renamed_makes_another_name(sources: Path) -> None:
    before = images._tag(REGISTRY_BASE)
    new = sources / "python" / "new.py"

    new.touch()
    with_new = images._tag(REGISTRY_BASE)
    new.rename(sources / "python" / "other.py")

    assert len({before, with_new, images._tag(REGISTRY_BASE)}) == 3


@pytest.mark.parametrize(
    ("name", "stands_for_one"),
    [
        (f"sha256:{'0a' * 32}", True),
        (f"ghcr.io/some/agent@sha256:{'0a' * 32}", True),
        (f"ghcr.io:443/some/agent:v1@sha256:{'0a' * 32}", True),
        (f"{REPOSITORY}:0a0a0a0a0a0a", True),
        ("sha256:latest", False),
        (f"sha256:{'0a' * 31}", False),
        ("ghcr.io/some/agent:v1", False),
        ("agent", False),
    ],
)
def test_digests_ids_and_our_own_hashes_stand_for_one_image_for_ever(name: str, stands_for_one: bool) -> None:
    assert is_fixed(name) is stands_for_one


def test_byte_code_that_lies_beside_the_sources_does_not_matter(sources: Path) -> None:
    before = images._tag(REGISTRY_BASE)
    cache = sources / "python" / "__pycache__"

    cache.mkdir()
    (cache / "supervisor.pyc").write_bytes(b"compiled")

    assert images._tag(REGISTRY_BASE) == before


@given(
    first=st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.binary(max_size=6)), max_size=3),
    second=st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.binary(max_size=6)), max_size=3),
)
def test_different_files_never_run_together_into_the_same_name(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, bytes]],
    second: list[tuple[str, bytes]],
) -> None:
    def digest(files: list[tuple[str, bytes]]) -> str:
        folder = tmp_path_factory.mktemp("sources")
        for name, content in files:
            (folder / name).write_bytes(content)
        return images._digest(images._source_files(folder), "base")

    assert (digest(first) == digest(second)) == (dict(first) == dict(second))
