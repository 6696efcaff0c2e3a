"""Whether a command line is that of `nameko run`."""

import pytest

from mycelia.errors import RuntimeStateError
from mycelia.runtime.handover import hand_over, is_nameko_run


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/nameko", "run", "services.echo"], True),
        (["nameko", "run", "--config", "c.yaml", "services.echo"], True),
        (["/env/lib/nameko/cli/main.py", "run", "x"], True),
        (["nameko.exe", "run", "x"], True),
        (["nameko", "shell"], False),
        (["nameko"], False),
        (["pytest", "run"], False),
        (["python", "-m", "nameko"], False),
    ],
)
def test_nameko_run_is_recognised(argv: list[str], expected: bool) -> None:
    assert is_nameko_run(argv) is expected


def test_outside_nameko_run_the_error_names_what_to_use_instead() -> None:
    with pytest.raises(RuntimeStateError, match=r"Rpc of service 'x'.*mycelia\.testing"):
        hand_over("Rpc of service 'x'")
