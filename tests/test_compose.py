"""The compose file names what exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from services.fleet import SERVICES

from mycelia.runtime import Settings, parse_config

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())


def test_every_service_has_its_container_beside_the_broker() -> None:
    optional = {name for name, one in COMPOSE["services"].items() if one.get("profiles")}
    assert set(COMPOSE["services"]) - optional == {"broker", *SERVICES}


@pytest.mark.parametrize("service", SERVICES)
def test_container_traces_to_jaeger_where_it_is_told_to_and_does_not_wait_for_it(
    service: str,
) -> None:
    given = COMPOSE["services"][service]
    setting = "${OTEL_EXPORTER_OTLP_ENDPOINT:-}"
    dockerfile = (ROOT / "compose" / "Dockerfile").read_text()

    assert given["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == setting
    assert "jaeger" not in given["depends_on"]
    assert re.search(r"'\.\[[^]]*\btracing\b", dockerfile), "the image has no OpenTelemetry"


@pytest.mark.parametrize("service", SERVICES)
def test_container_runs_its_service_by_nameko_run(service: str) -> None:
    *command, config, module = COMPOSE["services"][service]["command"]

    assert command == ["nameko", "run", "--config"]
    assert (ROOT / Path(config).relative_to("/app")).is_file()
    assert module == f"services.flights.{service}"


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "board"])
def test_health_check_calls_a_method_that_exists(service: str) -> None:
    test = COMPOSE["services"][service]["healthcheck"]["test"]
    target, method = test[test.index("call") + 1].split(".")
    module = importlib.import_module(f"services.flights.{service}")
    [cls] = [each for each in vars(module).values() if getattr(each, "name", None) == service]

    assert target == service
    assert callable(getattr(cls, method))


def test_monitoring_scrapes_every_service_where_it_answers() -> None:
    folder = ROOT / "compose"
    added = yaml.safe_load((folder / "monitoring.yaml").read_text())["services"]
    scraped = yaml.safe_load((folder / "monitoring" / "prometheus.yml").read_text())
    (targets,) = (one["targets"] for one in scraped["scrape_configs"][0]["static_configs"])
    text = (ROOT / "services" / "config.yaml").read_text()
    measured = {name: each for name, each in added.items() if name in SERVICES}
    ports = set()
    for name, each in measured.items():
        config = parse_config(text, environ=each["environment"])
        assert config["mycelia"]["metrics"], name
        ports.add(Settings.from_config(config).mycelia.metrics.port)

    assert set(measured) == set(SERVICES)
    assert ports == {9000}
    assert set(targets) == {f"{name}:9000" for name in SERVICES}
    for each in added.values():
        for volume in each.get("volumes", ()):
            assert (folder / volume.split(":")[0]).exists()
