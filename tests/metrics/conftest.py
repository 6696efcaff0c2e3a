"""Services that are measured, and what their processes answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests import ports


@dataclass(frozen=True)
class Scrape:
    """What came of a request: blocking, for a thread where it asks this process."""

    status: int
    content_type: str
    body: str

    @classmethod
    def of(cls, port: int, path: str, headers: Mapping[str, str] | None = None) -> Scrape:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers=dict(headers or {})
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return cls(
                    response.status, response.headers["Content-Type"], response.read().decode()
                )
        except urllib.error.HTTPError as refused:
            with refused:
                return cls(refused.code, refused.headers["Content-Type"], refused.read().decode())

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        return [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(self.body)
            for sample in family.samples
        ]

    def sum(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of a name that have these labels; fails where there is none."""
        found = [
            value
            for sample, its, value in self.samples()
            if sample == name and labels.items() <= its.items()
        ]
        assert found, f"no {name} with {labels} in:\n{self.body}"
        return sum(found)


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
