"""What the documents say of the repository is so: code compiles, links lead somewhere, names exist."""

from __future__ import annotations

import builtins
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.documents import (
    DOCUMENTS,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    links_of,
    prose_of,
)

import mycelia
from mycelia import errors, nameko, providers, testing
from mycelia.amqp.delays import ORPHANS
from mycelia.clients import RpcReply
from mycelia.runtime.settings import MyceliaSection

PYTHON = [block for document in DOCUMENTS for block in blocks_of(document, "python")]

OTHERS = {"QueueConsumer", "ReplyListener", "RpcConsumer", "ServiceContainer", "GreenPool"} | {
    *("ServiceRpc", "ClusterRpc", "ContainerProvider", "ServiceState"),  # Nameko 3, nameko-chassis
    *(
        "Router",
        "Route",
        "Mount",
        "Request",
        "Response",
        "StreamingResponse",
    ),
    *("HTTPException", "ExceptionMiddleware", "RequestBodyLimitMiddleware", "Server", "Allow"),
    *("ClusterRpcProxy", "Semaphore", "Timeout", "Decimal", "Infinity", "NaN"),
    *("Session", "AsyncSession", "AsyncEngine"),  # SQLAlchemy
    *(
        "EncodeError",
        "WebServer",
        "ClusterRpc",
        "ServiceRpc",
        "MockDependencyProvider",
        "MagicMock",
    ),
}
"""Names of other people's classes that the documents mention: Nameko's, eventlet's, Starlette's, the standard library's."""

INNER = {
    name
    for module in (ROOT / "platform" / "mycelia").rglob("*.py")
    for name in re.findall(r"^class (\w+)\b", module.read_text("utf-8"), re.MULTILINE)
}
"""Classes inside the platform, which the documents for contributors mention."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(document: Path) -> None:
    dead = []
    for target in links_of(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        exists = file.is_file() or (file.is_dir() and any(file.iterdir()))
        if not exists or (anchor and anchor not in anchors_of(file)):
            dead.append(target)
    assert not dead


def _resolves(dotted: str) -> bool:
    """Whether `mycelia.a.b.C` is a module, or something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_dotted_names_exist(document: Path) -> None:
    named = re.findall(r"`(mycelia\.[A-Za-z_.]+)(?:\([^`]*\))?`", prose_of(document))
    keys = {f"mycelia.{key}" for key in MyceliaSection.__struct_fields__} | {ORPHANS}

    assert [name for name in named if name not in keys and not _resolves(name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_class_names_exist(document: Path) -> None:
    named = set(
        re.findall(r"`@?([A-Z][a-z]+[A-Za-z]*)(?:\.\w+)*(?:\([^`]*\))?`", prose_of(document))
    )
    modules = (mycelia, errors, testing, providers, nameko)
    public = {RpcReply.__name__}.union(*(module.__all__ for module in modules))
    unknown = {name for name in named - public - OTHERS - INNER if not hasattr(builtins, name)}

    assert unknown == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_methods_of_public_classes_exist(document: Path) -> None:
    homes = (mycelia, errors, testing)
    missing = []
    for owner, member in re.findall(r"`([A-Z]\w+)\.([a-z]\w*)\b", prose_of(document)):
        cls = next((getattr(home, owner) for home in homes if hasattr(home, owner)), None)
        if cls is None:
            continue
        slots = {*getattr(cls, "__slots__", ()), *getattr(cls, "__annotations__", ())}
        if not hasattr(cls, member) and member not in slots:
            missing.append(f"{owner}.{member}")
    assert missing == []


def test_tests_named_as_proof_exist() -> None:
    guarantees = ROOT / "docs" / "guarantees.md"
    proofs = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", guarantees.read_text("utf-8"))

    missing = [
        f"{file}: {name}"
        for name, file in proofs
        if f"def {name}(" not in (guarantees.parent / file).read_text("utf-8")
    ]
    assert len(proofs) > 20
    assert missing == []


def test_error_tree_is_the_one_in_the_code() -> None:
    source = errors.__doc__ or ""
    tree = [line.strip() for line in source.splitlines() if "──" in line]
    blocks = blocks_of(ROOT / "docs" / "concepts.md", "text")

    shown = [line.strip() for block in blocks for line in block.text.splitlines() if "──" in line]
    assert shown == tree


def test_named_files_of_the_platform_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    files = set(
        re.findall(
            r"`((?:amqp|broker|wire|call|runtime|entrypoints|clients|nameko|cli)/(?:\w+/)?\w+\.py)`",
            text,
        )
    )

    assert len(files) > 15
    assert [file for file in files if not (ROOT / "platform" / "mycelia" / file).exists()] == []


def test_every_document_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    while ahead:
        document = ahead.pop()
        reached.add(document)
        for target in links_of(document):
            file = (document.parent / target.partition("#")[0]).resolve()
            file = file / "README.md" if file.is_dir() else file
            if file.suffix == ".md" and file.exists() and file not in reached:
                ahead.append(file)

    guides = set((ROOT / "docs").glob("*.md")) | set((ROOT / "contracts").rglob("*.md"))
    assert {relative(document) for document in guides - reached} == set()


@pytest.mark.long
@pytest.mark.timeout(300)  # a whole collection, in another process, beside other tests
def test_tests_named_as_proof_are_marked_where_they_run_against_a_rabbitmq() -> None:
    guarantees = ROOT / "docs" / "guarantees.md"
    proofs = re.findall(r"\[(test_\w+)\]\(([^)]+)\)( R)?", guarantees.read_text("utf-8"))
    files = sorted({relative((guarantees.parent / file).resolve()) for _, file, _ in proofs})

    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "rabbit", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    ).stdout
    on_rabbitmq = set(re.findall(r"::(test_\w+)", collected))

    assert len(on_rabbitmq) > 20
    assert [name for name, _, mark in proofs if name in on_rabbitmq and not mark] == []
