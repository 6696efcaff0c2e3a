"""Modules as users write them, for the hook of `nameko run` to read: of which it is certain that they are handed over, and others."""

from __future__ import annotations

from pathlib import Path

import mycelia_nameko_hook as hook

__all__ = ["CERTAIN", "FILES", "OURS", "write_sources"]

SERVICE = """
class Service:
    name = "service"

    @rpc
    def method(self): pass
"""
STOCK = f"from nameko.rpc import rpc\n{SERVICE}"
OURS = f"from mycelia import rpc\n{SERVICE}"

FILES = {
    "ours": OURS,
    "among_others": f'"""Doc."""\nimport os, other_package\nfrom mycelia import Config, rpc\nX = 1\n{SERVICE}',
    "renamed": "from mycelia import event_handler as on\n"
    + SERVICE.replace("@rpc", "@on('a', 'b')").replace("def", "async def"),
    "by_attribute": "import mycelia\n" + SERVICE.replace("@rpc", "@mycelia.rpc"),
    "by_other_attribute": "import mycelia as m\n" + SERVICE.replace("@rpc", "@m.timer(interval=1)"),
    "two_classes": f"from mycelia import timer\nfrom nameko.rpc import rpc\n{SERVICE}\n"
    + SERVICE.replace("Service", "Ours").replace("@rpc", "@timer(1)"),
    "with_branches": f"from mycelia import rpc\nif 1:\n    import x\ntry:\n    import y\nexcept OSError as e: pass\n{SERVICE}",
    "package/__init__.py": "from .services import Service\n",
    "package/services.py": OURS,
    "package/stock.py": STOCK,
    "package/again.py": "from package import services\nfrom package.services import Service as Other\n",
    "package/deep/__init__.py": "from ..services import Service\n",
    "plain/sub.py": OURS,  # a package without __init__
    "circle/__init__.py": "from .a import X\nfrom . import b\n",
    "circle/a.py": "from .b import X\nfrom circle import X\n",
    "circle/b.py": "from .a import X\n",
    "stock": STOCK,
    "stock_with_our_client": f"from mycelia import BlockingClient\n{STOCK}",
    "rebound": f"from mycelia import rpc\n{STOCK}",
    "rebound_by_star": f"from mycelia import rpc\nfrom somewhere import *\n{SERVICE}",
    "rebound_in_branch": f"from mycelia import rpc\nif 1:\n    from nameko.rpc import rpc\n{SERVICE}",
    "rebound_by_loop": f"from mycelia import rpc\nfor rpc in [1]: pass\n{SERVICE}",
    "rebound_by_walrus": f"from mycelia import rpc\nprint(rpc := 1)\n{SERVICE}",
    "rebound_by_function": f"from mycelia import rpc\ndef rpc(x): return x\n{SERVICE}",
    "rebound_by_except": f"from mycelia import rpc\ntry: pass\nexcept OSError as rpc: pass\n{SERVICE}",
    "rebound_in_class": f"from mycelia import rpc\n{SERVICE.replace('@rpc', 'from nameko.rpc import rpc' + chr(10) + '    @rpc')}",
    "rebound_attribute": "import mycelia\nmycelia.rpc = print\n"
    + SERVICE.replace("@rpc", "@mycelia.rpc"),
    "imported_late": f"{SERVICE}\nfrom mycelia import rpc\n",
    "in_branch": f"try:\n    from mycelia import rpc\nexcept ImportError:\n    rpc = print\n{SERVICE}",
    "of_a_relative": f"from .mycelia import rpc\n{SERVICE}",
    "colorsys": OURS,  # a name of the standard library
    "nothing": "",
    "broken": "from mycelia import rpc\nclass",
    "too_long": OURS + "#" * hook.MAX_BYTES,
}

CERTAIN = [
    "ours",
    "ours:Service",
    "among_others",
    "renamed",
    "by_attribute",
    "by_other_attribute",
    "two_classes",
    "two_classes:Ours",
    "with_branches",
    "package",
    "package:Service",
    "package.services",
    "package.again",
    "package.again:Other",
    "package.deep",
    "plain.sub",
    "stock ours",
]


def write_sources(folder: Path) -> Path:
    """Write all of `FILES`, and what they import of others'."""
    for name, text in {**FILES, "other_package": "", "x": "", "y": ""}.items():
        path = folder / (name if name.endswith(".py") else f"{name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
