"""Installing Debian or Ubuntu packages where that is allowed, without starting their system services.

Standard library only and nothing of Mycelia, so that it also runs before anything is installed:

    python3 -I platform/mycelia/broker/debian_packages.py rabbitmq-server
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Say", "install", "main", "may_install"]

Say = Callable[[str], object]
"""Takes a line for whoever waits."""

# Packages ask /usr/sbin/policy-rc.d whether they may start their service; 101 is "no". `disable` keeps a RabbitMQ that
# was not there before from coming up at the next boot. The package lists are fetched only when the install fails without.
_SCRIPT = """
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\\nexit 101\\n' >"$policy"
    chmod 755 "$policy"
fi
had_rabbitmq=$(dpkg-query --show --showformat '${db:Status-Status}' rabbitmq-server 2>/dev/null)
export DEBIAN_FRONTEND=noninteractive
apt-get install -y --no-install-recommends "$@" || {
    apt-get update && apt-get install -y --no-install-recommends "$@"
} || exit 1
if [ "$had_rabbitmq" != installed ] && command -v systemctl >/dev/null; then
    systemctl disable rabbitmq-server 2>/dev/null || true
fi
"""


def may_install() -> bool:
    """Whether packages can be installed here without asking anybody: apt-get, and root or sudo without a password."""
    return shutil.which("apt-get") is not None and _as_root() is not None


def _as_root() -> list[str] | None:
    """What to put before a command to run it as root; `None` when that is not to be had."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        return None
    allowed = subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0
    return [sudo, "-n"] if allowed else None


def install(packages: Sequence[str], log_file: Path, say: Say = print) -> bool:
    """Install packages; return whether that went well. What apt-get prints goes to the log file.

    Takes half a minute to some minutes. Call it only where `may_install()` is true.
    """
    say(f"installing {' '.join(packages)} with apt-get (log: {log_file}) …")
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        done = subprocess.run(
            [*(_as_root() or []), "/bin/sh", "-c", _SCRIPT, "install", *packages],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    return done.returncode == 0


def main(arguments: Sequence[str]) -> int:
    """Install what the arguments name; return the exit status."""
    if not arguments:
        print("usage: debian_packages.py PACKAGE …", file=sys.stderr)
        return 2
    if not may_install():
        print(
            f"cannot install {' '.join(arguments)} here: that takes apt-get, and root or sudo without a password",
            file=sys.stderr,
        )
        return 1
    log_file = Path(tempfile.gettempdir()) / f"mycelia-apt-{os.getuid()}.log"
    if install(arguments, log_file):
        return 0
    print(f"apt-get failed. The end of {log_file}:", file=sys.stderr)
    print(*log_file.read_text(errors="replace").splitlines()[-10:], sep="\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
