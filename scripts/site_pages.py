"""MkDocs hook: what the documentation site has beside the files of docs/.

The documents are written for the repository: they link to each other, to tests and to other files by their paths there. Here
those paths become pages: documents outside docs/ keep their place, any other file is shown whole, a folder as a list, and a
link named after a test leads to its line. A path that leads nowhere is left as it is, and fails the build.

The API reference is made from the public names of the package; one that no page has fails the build, too.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[1]))  # mkdocs loads a hook by its path
from scripts.public_names import ELSEWHERE, REFERENCE

ROOT = Path(__file__).resolve().parents[1]

LANGUAGES = {
    ".py": "python",
    ".go": "go",
    ".json": "json",
    ".yaml": "yaml",
}
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


class Site:
    """Which file of the repository is which page.

    Attributes:
        pages: the page of each file or folder that has one, by its path in the repository.
        homes: the folder in the repository from which a page's links are meant.
    """

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.homes: dict[str, Path] = {}
        self.made: dict[str, str] = {}

    def add_document(self, path: Path, page: str) -> None:
        name = str(path.relative_to(ROOT))
        if name in self.pages:
            return
        self.pages[name] = page
        self.homes[page] = path.parent
        text = path.read_text("utf-8")
        if page not in self.made and not name.startswith("docs/"):
            self.made[page] = (
                f"---\nhide: [navigation]\n---\n{text}" if page == "index.md" else text
            )
        for _, target in _links_of(text):
            self.add_linked((path.parent / target.partition("#")[0]).resolve())

    def add_linked(self, path: Path) -> None:
        """Make a page of what a document links to, unless there is one."""
        if not path.is_relative_to(ROOT) or not path.exists():
            return
        name = str(path.relative_to(ROOT))
        if name in self.pages:
            return
        if path.is_dir() and (path / "README.md").exists():
            self.add_linked(path / "README.md")
            self.pages[name] = self.pages[str((path / "README.md").relative_to(ROOT))]
        elif path.is_dir():
            self._add_folder(path, name)
        elif path.suffix == ".md":
            self.add_document(path, name.removeprefix("docs/"))
        else:
            self._add_source(path, name)

    def _add_folder(self, path: Path, name: str) -> None:
        page = self.pages[name] = f"source/{name}/index.md"
        self.homes[page] = path
        found = sorted(file.name for file in path.iterdir() if file.is_file())
        shown = [file for file in found if not file.startswith((".", "__"))]
        for file in shown:
            self.add_linked(path / file)
        lines = "\n".join(f"- [{file}]({file}){_first_sentence(path / file)}" for file in shown)
        self.made[page] = _unsearched(f"`{name}/`", lines)

    def _add_source(self, path: Path, name: str) -> None:
        page = self.pages[name] = f"source/{name}.md"
        self.homes[page] = path.parent
        text = path.read_text("utf-8")
        if len(text) > 200_000:
            text = text[:2_000] + "\n…"
        language = LANGUAGES.get(path.suffix, "text")
        self.made[page] = _unsearched(
            f"`{name}`", f'````{language} linenums="1"\n{text.rstrip()}\n````'
        )

    def rewrite(self, markdown: str, page: str) -> str:
        """The text of a page with links to pages instead of paths in the repository."""

        def link(match: re.Match[str]) -> str:
            text, target = match[1], match[2]
            path, hash_sign, anchor = target.partition("#")
            if not path or re.match(r"[a-z]+:", target):
                return match[0]
            file = (self.homes[page] / path).resolve()
            name = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else ""
            to = self.pages.get(name)
            if to is None:
                return match[0]
            relative = os.path.relpath(to, Path(page).parent)
            line = _line_of(file, text)
            if line:
                html = relative.removesuffix(".md") + ".html"
                shown = escape(text).replace("_", "_<wbr>")
                return f'<a href="{escape(html)}#__codelineno-0-{line}">{shown}</a>'
            return f"[{text}]({relative}{hash_sign}{anchor})"

        return _outside_fences(markdown, lambda prose: _LINK.sub(link, prose))


def _links_of(text: str) -> list[tuple[str, str]]:
    found = _LINK.findall(_FENCE.sub("", text))
    return [(name, target) for name, target in found if not re.match(r"[a-z]+:", target)]


def _outside_fences(text: str, change: Any) -> str:
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join((*parts, change(text[end:])))


def _line_of(file: Path, name: str) -> int:
    """Where the test `name` begins in a file; 0 for anything else."""
    if not re.fullmatch(r"test_\w+", name) or file.suffix != ".py":
        return 0
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if re.match(rf"\s*(async )?def {re.escape(name)}\(", line):
            return number
    raise PluginError(f"{file.relative_to(ROOT)} has no test {name}")


def _first_sentence(file: Path) -> str:
    match = re.match(r'"""(.+?)[.:]?("""|\n)', file.read_text("utf-8", "replace"))
    return f": {match[1]}" if match and file.suffix == ".py" else ""


def _unsearched(title: str, body: str) -> str:
    return f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {title}\n\n{body}\n"


# --- the API reference -----------------------------------------------------------------------------


def reference_pages() -> dict[str, str]:
    """The pages of the API reference, by name."""
    sys.path.insert(0, str(ROOT / "platform"))
    import mycelia
    from mycelia import errors, flow, testing

    pages, places = {}, dict(ELSEWHERE)
    for page, (title, about, names) in REFERENCE.items():
        places |= dict.fromkeys(names, page)
        parts = [f"# {title}", about]
        for name in names:
            value = getattr(mycelia, name)
            parts.append(_decorator(name, value) if _is_decorator(value) else f"::: mycelia.{name}")
        pages[page] = "\n\n".join(parts)
    missing = set(mycelia.__all__) - set(places)
    if missing:
        raise PluginError(f"no page of the API reference has {', '.join(sorted(missing))}")
    tree = [line[4:] for line in (errors.__doc__ or "").splitlines() if "─" in line]
    in_order = [match[0] for line in tree if (match := re.search(r"\w+", line))]
    pages["errors"] = (
        "# Errors\n\nOne tree, `mycelia.errors`. What they mean to a caller: "
        "[concepts](../concepts.md#errors).\n\n```text\nMyceliaError\n"
        + "\n".join(tree)
        + "\n```\n\n::: mycelia.register_remote_error\n\n"
        + "\n\n".join(f"::: mycelia.errors.{name}" for name in ("MyceliaError", *in_order))
    )
    pages["testing"] = (
        "# Tests\n\n`mycelia.testing`; how they are used: [testing](../testing.md).\n\n"
        + "\n\n".join(f"::: mycelia.testing.{name}" for name in testing.__all__)
    )
    pages["flows"] = (
        "# Flows\n\n`mycelia.flow`; how they are written: [flows](../flows.md).\n\n"
        + "\n\n".join(
            _decorator(name, value, "mycelia.flow")
            if _is_decorator(value := getattr(flow, name))
            else f"::: mycelia.flow.{name}"
            for name in flow.__all__
        )
    )
    groups = [
        f"## [{title}]({page}.md)\n\n{' · '.join(_to(name, page) for name in names)}"
        for page, (title, _, names) in REFERENCE.items()
    ]
    pages["index"] = (
        "# API\n\nAll public names come from `mycelia`; [errors](errors.md) from `mycelia.errors`, "
        "[flows](flows.md) from `mycelia.flow`, [what tests use](testing.md) from `mycelia.testing`. Which is for what: "
        "[concepts](../concepts.md#the-public-names).\n\n" + "\n\n".join(groups) + "\n"
    )
    return pages


def _to(name: str, page: str) -> str:
    import mycelia

    if _is_decorator(getattr(mycelia, name)):
        return f"[`@{name}`]({page}.md#mycelia.{name})"
    return f"[`{name}`][mycelia.{name}]"


def _is_decorator(value: object) -> bool:
    return inspect.isfunction(value) and hasattr(value, "__signature__")


def _decorator(name: str, value: Any, module: str = "mycelia") -> str:
    """A decorator is made at run time from its entrypoint's class; so is what is said of it."""
    parameters = "".join(f"    {one},\n" for one in inspect.signature(value).parameters.values())
    about, _, options = (inspect.getdoc(value) or "").partition("\n\n")
    cells = [cell.cell_contents for cell in value.__closure__]
    entrypoint = next(content for content in cells if inspect.isclass(content))
    described = (inspect.getdoc(entrypoint) or "").partition("\n\n")[2]
    return (
        f"## @{name} {{#{module}.{name}}}\n\n```python\n@{name}(\n{parameters})\n```\n\n"
        f"{about}\n\n{re.split(r'^Args:', described, flags=re.MULTILINE)[0]}\n\n{_options(options)}"
    )


def _options(text: str) -> str:
    """`name: what it is`, as `help()` has them, as a list."""
    lines: list[str] = []
    for line in text.splitlines():
        match = re.match(r"\s{4}(\w+): (.*)", line)
        if match:
            lines.append(f"- `{match[1]}`: {match[2]}")
        elif lines and line.startswith("        "):
            lines[-1] += f" {line.strip()}"
    return "\n".join(lines)


# --- what MkDocs calls -----------------------------------------------------------------------------

_site = Site()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    global _site
    _site = Site()
    _site.add_document(ROOT / "README.md", "index.md")
    for file in sorted((ROOT / "docs").rglob("*.md")):
        _site.add_document(file, str(file.relative_to(ROOT / "docs")))
    for page, text in _site.made.items():
        files.append(File.generated(config, page, content=text))
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_nav(nav: Navigation, files: Files, **_: Any) -> Navigation:
    """A guide that nobody finds is none."""
    placed = {page.file.src_uri for page in nav.pages}
    lost = {path.name for path in (ROOT / "docs").glob("*.md")} - placed
    if lost:
        raise PluginError(f"the nav of mkdocs.yml has no place for {', '.join(sorted(lost))}")
    return nav


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    return _site.rewrite(markdown, name) if name in _site.homes else markdown


SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would fetch for searching in pages that were opened from a folder."""


def on_post_page(output: str, page: Page, **_: Any) -> str:
    depth = page.file.dest_uri.count("/")
    return output.replace(SHIM, "../" * depth + "assets/search-in-folder.js")


def on_post_template(output: str, **_: Any) -> str:
    return output.replace(SHIM, "assets/search-in-folder.js")
