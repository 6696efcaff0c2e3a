"""What of a process the native one is started with."""

import sys

import pytest

from mycelia.errors import RuntimeStateError
from mycelia.handover import PATH_VARIABLE, hand_over, interpreter_flags, take_over_path


@pytest.mark.parametrize(
    ("orig_argv", "flags"),
    [
        (["python", "/usr/bin/nameko", "run", "-X"], []),
        (["python"], []),
        (["python", "-u", "-O", "-X", "utf8", "nameko", "run"], ["-u", "-O", "-X", "utf8"]),
        (["python", "-uO", "-Xutf8", "-Wignore", "nameko"], ["-uO", "-Xutf8", "-Wignore"]),
        (["python", "-uW", "error", "nameko"], ["-uW", "error"]),
        (["python", "-W", "ignore::UserWarning", "-m", "nameko"], ["-W", "ignore::UserWarning"]),
        (["python", "-OOm", "nameko", "run", "-u"], ["-OO"]),
        (["python", "-I", "-c", "main()", "run"], ["-I"]),
        (["python", "-ux", "start.py"], ["-u"]),
        (["python", "-x", "start.py"], []),
        (
            ["python", "--check-hash-based-pycs", "always", "-B", "nameko"],
            ["--check-hash-based-pycs", "always", "-B"],
        ),
        (["python", "-u", "--", "start.py", "-O"], ["-u"]),
    ],
)
def test_flags_of_the_interpreter_are_kept_and_nothing_else(
    orig_argv: list[str], flags: list[str]
) -> None:
    assert interpreter_flags(orig_argv) == flags


def test_outside_nameko_run_the_error_names_what_to_use_instead() -> None:
    with pytest.raises(RuntimeStateError, match=r"Rpc of service 'x'.*mycelia\.testing"):
        hand_over("Rpc of service 'x'")


def test_import_path_is_taken_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/native"])
    monkeypatch.setenv(PATH_VARIABLE, "/script:.")

    take_over_path()
    take_over_path()

    assert sys.path == ["/script", "."]
