"""Pages of the documentation that no file in docs/ is: the reference, and what lies at the top.

A hook of MkDocs; see mkdocs.yml. Pages of the reference name modules, whose docstrings mkdocstrings
fills in without importing them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

AT_THE_TOP = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "zoo/README.md": "zoo.md",
}
"""Files of the repository, and the pages that they become."""

ROOMS = (
    "attacks",
    "networks",
    "pruning",
    "training",
    "data",
    "robustness",
    "runs",
    "reports",
    "sweeps",
)
"""Packages, each a page of the reference."""

GROUND = ("noise", "optimizers", "pixels", "schedules", "statistics", "errors")
"""Modules at the root of the package, all on one page."""

LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for source, place in AT_THE_TOP.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, place, content=text))
    for name, text in reference().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages; a link to a file that is no page is an error of the build."""
    origin = next((s for s, p in AT_THE_TOP.items() if p == page.file.src_uri), None)
    source = PurePosixPath(origin or f"docs/{page.file.src_uri}")

    def lead(found: re.Match[str]) -> str:
        target = (ROOT / source.parent / found["target"]).resolve().relative_to(ROOT).as_posix()
        place = AT_THE_TOP.get(target, target.removeprefix("docs/"))
        depth = page.file.src_uri.count("/")
        return f"]({'../' * depth}{place}{found['anchor'] or ''})"

    if page.file.src_uri.startswith("api/"):
        return markdown
    return LINK.sub(lead, markdown)


def reference() -> dict[str, str]:
    """The pages of the reference: their names, and modules to be filled in."""
    face = (
        "# prunerob\n\nThe library's face, as in `from prunerob import PGD, evaluate`:\n\n"
        + "".join(f"- [`{name}`][{home}.{name}]: {about}\n" for name, home, about in names())
    )
    pages = {"prunerob": face}
    for room in ROOMS:
        title, about = summary(ROOT / "prunerob" / room / "__init__.py")
        files = sorted((ROOT / "prunerob" / room).rglob("[!_]*.py"))
        modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
        named = "".join(f"::: {module}\n\n" for module in modules)
        pages[room] = f"# {title}\n\n{about}\n\n{named}"
    named = "".join(f"::: prunerob.{name}\n\n" for name in GROUND)
    pages["ground"] = f"# Ground\n\nWhat all rooms stand on.\n\n{named}"
    return pages


def names() -> list[tuple[str, str, str]]:
    """The names of the library's face, the modules that define them, and what they are."""
    found = []
    for name, home in _imports(ROOT / "prunerob" / "__init__.py").items():
        while (file := ROOT.joinpath(*home.split("."), "__init__.py")).is_file():
            home = _imports(file)[name]  # a package passes on what a module of its defines
        body = ast.parse(file.parent.with_suffix(".py").read_text("utf-8")).body
        about = next(
            ast.get_docstring(node)
            for node in body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        )
        found.append((name, home, str(about).partition("\n")[0]))
    return found


def _imports(file: Path) -> dict[str, str]:
    return {
        alias.name: str(node.module)
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("prunerob.")
        for alias in node.names
    }


def summary(file: Path) -> tuple[str, str]:
    """A package's title, and what it says of itself after the colon."""
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    title, _, about = text.partition(": ")
    return title, about[:1].upper() + about[1:]
