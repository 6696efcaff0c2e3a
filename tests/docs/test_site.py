"""`make docs`: every document and every public name is in the site, no link is dead, nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.documents import ROOT
from tests.services.chromium import find_chromium
from tests.tools import not_run

import mycelia
from mycelia import errors, testing

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
]  # several builds, each some seconds of an idle machine


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)],
        cwd=source,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def pages_of(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_document_has_a_page_and_every_source_they_name_is_shown(site: Path) -> None:
    for page in (
        *("index", "concepts", "guarantees", "contracts/index", "CONTRIBUTING"),
        *("reference/services", "source/tests/promises/index"),
        "source/tests/promises/test_nothing_is_lost.py",
    ):
        assert (site / f"{page}.html").exists(), page


def test_a_test_named_as_proof_leads_to_its_line(site: Path) -> None:
    text = (site / "guarantees.html").read_text("utf-8")
    link = re.search(r'href="(source/[^"#]*)#([^"]*)">test_<wbr>expired_', text)
    assert link is not None

    line = re.search(
        rf'id="{link[2]}".*?(?=id="__codelineno)',
        (site / link[1]).read_text("utf-8"),
        re.DOTALL,
    )
    assert line is not None
    assert "test_expired_request_is_skipped_and_counted" in line[0]


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = "".join(page.read_text("utf-8") for page in (site / "reference").glob("*.html"))
    described = set(re.findall(r'id="mycelia\.((?:\w+\.)*\w+)"', text))
    members = {
        *(f"errors.{name}" for name in errors.__all__),
        *(f"testing.{name}" for name in testing.__all__),
    }
    constants = {"BROADCAST", "SERVICE_POOL", "SINGLETON"}  # told of with @event_handler

    own = set(mycelia.__all__) - set(errors.__all__)

    assert (own | members) - described == constants | {"errors"}


def test_each_error_is_described(site: Path) -> None:
    text = (site / "reference" / "errors.html").read_text("utf-8")

    described = errors.RpcTimeout.__doc__
    assert described
    assert described.split(".")[0].split("`")[0] in text


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="((?:https?:)?//[^"]*)"')
    found = {url for page in pages_of(site) for url in fetched.findall(page.read_text("utf-8"))}
    styles = "".join(file.read_text("utf-8") for file in site.rglob("*.css"))

    assert len(pages_of(site)) > 50
    assert found == set()
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*|@import[^;]*", styles) == []


def test_search_finds_documents_in_a_site_opened_from_a_folder(site: Path) -> None:
    chromium = find_chromium()
    if chromium is None:
        not_run("chromium is not installed")

    page = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=20000", f"{(site / 'index.html').as_uri()}?q=backpressure"),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    ).stdout

    assert re.search(r"\d+ matching document", page)


@pytest.mark.parametrize(
    ("file", "lines", "complaints"),
    [
        (
            "docs/concepts.md",
            "[a](nowhere.md) [b](../tests/test_gone.py) [c](guarantees.md#no-such-heading)",
            ("nowhere.md", "test_gone.py", "no-such-heading", "Aborted with 3 warnings"),
        ),
        ("docs/concepts.md", "[test_gone](../tests/test_layers.py)", ("has no test test_gone",)),
        (
            "platform/mycelia/__init__.py",
            "new_name = 1\n__all__ += ['new_name']",
            ("no page of the API reference has new_name",),
        ),
    ],
    ids=["links", "proof", "name"],
)
def test_dead_link_or_name_without_page_fails_the_build(
    tmp_path: Path, file: str, lines: str, complaints: tuple[str, ...]
) -> None:
    """With a copy of the repository that has one more line."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    with (source / file).open("a") as document:
        document.write(f"\n{lines}\n")

    done = build(source, tmp_path / "site")

    assert done.returncode == 1
    assert [
        complaint for complaint in complaints if complaint not in done.stdout + done.stderr
    ] == []
