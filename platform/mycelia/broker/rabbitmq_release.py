"""RabbitMQ of another release than the installed one, in a folder of its own: what `make test-rabbit RABBITMQ=4.3` runs.

    python -m mycelia.broker.rabbitmq_release 4.3       prints the folder of scripts for MYCELIA_RABBITMQ_SCRIPTS

`debootstrap` makes a small Debian of the suite that has the release, from the mirror that this machine's apt uses, and
the scripts run RabbitMQ inside it (chroot). What is mounted for a process is mounted for that process alone: /proc,
/dev, an empty /tmp and the node's own directory, named by `HOME`. So nothing is left mounted, and nothing else of the
machine is seen. It takes a minute and 300 MB, once:

    .mycelia/rabbitmq/4.3/root/        the Debian
    .mycelia/rabbitmq/4.3/scripts/     rabbitmq-server, rabbitmqctl, epmd, version
    .mycelia/rabbitmq/4.3.log          what debootstrap said
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mycelia.broker import debian_packages
from mycelia.broker.debian_packages import Say
from mycelia.broker.node import VERSION_FILE, find_rabbitmq
from mycelia.broker.private_files import STATE_DIRECTORY, private_directory
from mycelia.errors import ConfigError

__all__ = ["SUITES", "main", "scripts_of_release"]

SUITES = {"3.10": "bookworm", "4.0": "trixie", "4.3": "sid"}
"""Which Debian has which release. sid moves on: what came is checked, and told."""

_PROGRAMS = {
    "rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "rabbitmqctl": "/usr/lib/rabbitmq/bin/rabbitmqctl",
    "epmd": "/usr/bin/epmd",
}

# `exec` all along, so that the process id and the words of the command line are the node's from the start.
_SCRIPT = """#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root
exec unshare --mount --propagation private /bin/sh -c '
root=$1; shift
mount --rbind /proc "$root/proc" && mount --rbind /dev "$root/dev" && mount -t tmpfs none "$root/tmp" &&
mkdir -p "$root$HOME" && mount --bind "$HOME" "$root$HOME" &&
exec chroot "$root" /usr/bin/env -C "$HOME" "$@"' sh "$root" {program} "$@"
"""

_NEEDLESS = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)


def scripts_of_release(
    release: str, directory: Path = STATE_DIRECTORY / "rabbitmq", *, say: Say = print
) -> Path:
    """Return the folder of scripts of a release such as `4.3`: the installed one's if it is that, else one made here.

    Blocks; the first time takes a minute or two, and says so in a line.

    Raises:
        ConfigError: The release is not known, or cannot be installed here; the message says why.
    """
    installed = find_rabbitmq()
    if installed is not None and installed.version.startswith(f"{release}."):
        return installed.scripts
    suite = SUITES.get(release)
    if suite is None:
        raise ConfigError(
            f"RabbitMQ {release}: no Debian is known that has it. Known are {', '.join(SUITES)}; for another, set "
            "MYCELIA_RABBITMQ_SCRIPTS to the folder of its rabbitmq-server and rabbitmqctl."
        )
    private_directory(directory)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = directory.resolve() / release
        if not (folder / "scripts" / VERSION_FILE).exists():
            _install(release, suite, folder, say)
        return folder / "scripts"


def _install(release: str, suite: str, folder: Path, say: Say) -> None:
    _check_machine(release, folder.with_suffix(".apt.log"), say)
    log_file = folder.with_name(f"{release}.log")
    partial = folder.with_name(f"{release}.part")
    shutil.rmtree(partial, ignore_errors=True)
    root = partial / "root"
    root.mkdir(parents=True)
    say(f"installing RabbitMQ {release} from Debian {suite} into {folder} (log: {log_file}) …")
    command = ["debootstrap", "--variant=minbase", "--include=rabbitmq-server", suite, str(root)]
    with log_file.open("wb") as log:
        done = subprocess.run(
            [*command, _mirror(release)],
            env=os.environ | _apt_proxies(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode != 0:
        last = log_file.read_text(errors="replace").strip().splitlines()[-3:]
        raise ConfigError(
            f"RabbitMQ {release}: debootstrap failed (all it said is in {log_file}):\n  "
            + "\n  ".join(last)
        )
    version = _version_in(root)
    if not version.startswith(f"{release}."):
        shutil.rmtree(partial)
        raise ConfigError(
            f"RabbitMQ {release}: Debian {suite} has {version or 'none'} by now. Correct SUITES in {Path(__file__).name}."
        )
    for needless in _NEEDLESS:
        shutil.rmtree(root / needless, ignore_errors=True)
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    scripts = partial / "scripts"
    scripts.mkdir()
    for name, program in _PROGRAMS.items():
        (scripts / name).write_text(_SCRIPT.replace("{program}", program))
        (scripts / name).chmod(0o755)
    _try_out(release, scripts)
    (scripts / VERSION_FILE).write_text(f"{version}\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    say(f"RabbitMQ {version} is installed in {folder}")


def _check_machine(release: str, apt_log: Path, say: Say) -> None:
    if sys.platform != "linux" or platform.freedesktop_os_release().get("ID") != "debian":
        raise ConfigError(
            f"RabbitMQ {release}: installing it beside another takes a Debian system."
        )
    if os.geteuid() != 0:
        raise ConfigError(f"RabbitMQ {release}: installing it beside another takes root (chroot).")
    if shutil.which("debootstrap") is None and not (
        debian_packages.may_install() and debian_packages.install(["debootstrap"], apt_log, say)
    ):
        raise ConfigError(
            f"RabbitMQ {release}: debootstrap is not installed, and cannot be from here."
        )


def _mirror(release: str) -> str:
    """Where this machine's apt takes Debian from."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    releases = {codename, "oldstable", "stable", "testing", "unstable", "sid"}
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        uri, _, rest = line.partition(" ")
        suite, _, component = rest.partition(" ")
        if component == "main" and suite in releases:
            return uri
    raise ConfigError(
        f"RabbitMQ {release}: apt names no mirror of Debian {codename} to take it from."
    )


def _apt_proxies() -> dict[str, str]:
    """apt's proxies for debootstrap, which asks the environment only."""
    found = {}
    for scheme in ("http", "https"):
        asked = subprocess.run(
            ["apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        proxy = asked.removeprefix("proxy=").strip("'")
        if proxy and proxy != "DIRECT":
            found[f"{scheme}_proxy"] = proxy
    return found


def _version_in(root: Path) -> str:
    for folder in (root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"):
        return folder.name.removeprefix("rabbitmq_server-")
    return ""


def _try_out(release: str, scripts: Path) -> None:
    """See that programs can be run in there at all: a container may allow root neither mounts nor chroot."""
    with tempfile.TemporaryDirectory() as home:
        tried = subprocess.run(
            [scripts / "epmd", "-port", "1", "-names"],
            env={**os.environ, "HOME": home},
            capture_output=True,
            text=True,
            check=False,
        )
    if "cannot connect" not in (said := tried.stdout + tried.stderr).lower():
        raise ConfigError(
            f"RabbitMQ {release} is installed, but cannot be run inside its folder (mount, chroot): {said.strip()}"
        )


def main(arguments: Sequence[str]) -> int:
    """Print the folder of scripts of the release that the argument names; return the exit status."""
    if len(arguments) != 1:
        print(
            f"usage: python -m mycelia.broker.rabbitmq_release {'|'.join(SUITES)}", file=sys.stderr
        )
        return 2
    try:
        scripts = scripts_of_release(arguments[0], say=lambda line: print(line, file=sys.stderr))
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(scripts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
