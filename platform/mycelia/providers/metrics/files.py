"""The files through which the processes of one command are one: `mycelia run --processes N`.

The first process makes a folder, which goes when it ends. In it, for process `N`:

| file | content |
|---|---|
| `N.cells`, `N.series` | what it counts (`Cells`); kept when it dies, counted on in when it is started again |
| `N.ready` | its `Health` as JSON; its time of modification is the last sign of life, on the monotonic clock of the machine |
| `users/*_N.db` | metrics that its services have by `prometheus_client`, in that library's own format |
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import msgspec

from mycelia.providers.metrics.health import Health

__all__ = ["FILES_VARIABLE", "MemberFiles", "make_folder", "take_files"]

FILES_VARIABLE = "MYCELIA_METRICS_FILES"
"""`folder:number`, for one process and not for its children."""

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where `prometheus_client` keeps its values when it is imported."""

PREFIX = "mycelia-metrics-"


class MemberFiles:
    """The files of one of several processes.

    Args:
        folder: of all of them.
        number: which process, from 1 on.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.path = folder / str(number)
        self.users = folder / "users"
        self._ready = folder / f"{number}.ready"
        self._said: Health | None = None

    def environment(self, *, counts: bool) -> dict[str, str]:
        """Variables that make a process this one; `counts`: whether it has metrics, too."""
        variables = {FILES_VARIABLE: f"{self.path.parent}:{self.number}"}
        return variables | ({MULTIPROCESS_VARIABLE: str(self.users)} if counts else {})

    # --- in the process itself ----------------------------------------------------------------

    def say(self, health: Health) -> None:
        """Give a sign of life, and say how it is."""
        if health != self._said:
            new = self._ready.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(health))
            new.replace(self._ready)
            self._said = health
        now = time.monotonic()
        os.utime(self._ready, (now, now))

    # --- in the first process -----------------------------------------------------------------

    def health(self) -> tuple[Health, float] | None:
        """How it is, and seconds since its last sign of life; `None` before the first."""
        try:
            said = msgspec.json.decode(self._ready.read_bytes(), type=Health)
            return said, max(0.0, time.monotonic() - self._ready.stat().st_mtime)
        except (OSError, msgspec.DecodeError):
            return None

    def ended(self) -> None:
        """The process has ended: it is not ready any more, and its gauges are nobody's."""
        self._ready.unlink(missing_ok=True)
        for gauge in self.users.glob(f"gauge_live*_{self.number}.db"):
            gauge.unlink(missing_ok=True)


def take_files() -> MemberFiles | None:
    """The files of this process, if it is one of several that are measured. Asked once: its own children are not."""
    text = os.environ.pop(FILES_VARIABLE, None)
    if text is None:
        return None
    folder, _, number = text.rpartition(":")
    return MemberFiles(Path(folder), int(number))


def make_folder() -> Path:
    """A folder for the files, in memory where there is such a place; what killed processes have left is removed.

    Raises:
        OSError: there is no place for it.
    """
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    error: OSError | None = None
    for place in places:
        _remove_left(place)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))
        except OSError as exc:
            error = exc
            continue
        (folder / "users").mkdir()
        return folder
    assert error is not None
    raise error


def _remove_left(place: Path) -> None:
    for folder in place.glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            with contextlib.suppress(OSError):
                if folder.stat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
