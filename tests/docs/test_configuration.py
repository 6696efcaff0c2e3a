"""The tables in docs/configuration.md are those of the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from tests.docs.documents import ROOT, blocks_of, table_rows

from mycelia.cli import call_and_publish
from mycelia.cli.main import main
from mycelia.errors import BrokerUnavailable
from mycelia.runtime.config_file import parse_config
from mycelia.runtime.settings import DEFAULT_BROKER, MyceliaSection, Settings

DOCUMENT = ROOT / "docs" / "configuration.md"

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
UNION_WORDS = {
    bool: "true",
    str: "text",
    int: "whole number",
    float: "number",
    dict: "map",
    list: "list",
}


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """Key to type and default, from the table under a heading."""
    section = DOCUMENT.read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = list(table_rows(section))[1:]
    return {row[0].strip("`"): (row[1], row[2].strip("`")) for row in rows}


def told(value: Any) -> str:
    """A default as the tables write it."""
    if value is None:
        return "null"
    if value == ():
        return "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def type_in_words(hint: Any) -> str:
    """`text or null`, as the tables say it; a number counts as such however it is written."""
    members = [member for member in get_args(hint) if not hasattr(hint, "__origin__")]
    if not members:
        return WORDS.get(
            hint, "list" if getattr(hint, "__origin__", hint) in (list, tuple) else "map"
        )
    words = []
    for member in members:
        if member is type(None):
            continue
        plain = getattr(member, "__origin__", member)
        words.append(
            "true, false" if members == [bool, type(None)] else UNION_WORDS.get(plain, "map")
        )
    return " or ".join(([", ".join(words)] if words else []) + ["null"])


def in_code(struct: type[msgspec.Struct]) -> dict[str, tuple[str, str]]:
    hints = get_type_hints(struct)
    return {
        field.name: (type_in_words(hints[field.name]), told(field.default))
        for field in msgspec.structs.fields(struct)
        if field.name != "mycelia"
    }


@pytest.mark.parametrize(
    ("heading", "struct"),
    [("Nameko's keys", Settings), ("The section `mycelia:`", MyceliaSection)],
)
def test_tables_have_every_key_with_its_type_and_default(
    heading: str, struct: type[msgspec.Struct]
) -> None:
    assert documented(heading) == in_code(struct)


def test_file_without_a_broker_means_the_default_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def client(uri: str, **_: object) -> None:
        asked.append(uri)
        raise BrokerUnavailable("none here")

    monkeypatch.setattr(call_and_publish, "Client", client)
    file = tmp_path / "config.yaml"
    file.write_text("ACCEPT: [json]\n")

    assert main(["call", "--config", str(file), "delays.worst"]) == 1
    assert asked == [DEFAULT_BROKER]


def test_typo_is_told_as_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = [b.text for b in blocks_of(DOCUMENT, "console") if "typo.yaml" in b.text]
    file = tmp_path / "typo.yaml"
    file.write_text("mycelia: {rpc_timout: 3}\n")

    assert main(["run", "--config", str(file), "hello"]) == 1
    assert capsys.readouterr().err == shown.partition("\n")[2]


def test_example_is_a_configuration() -> None:
    (example,) = blocks_of(DOCUMENT, "yaml")
    config = parse_config(example.text, environ={"LOG_LEVEL": "DEBUG"})

    settings = Settings.from_config(config)
    assert settings.max_workers == 50
    assert settings.mycelia.log_level == "DEBUG"
    assert config["feed"] == {"speed": 3600}
