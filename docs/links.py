"""A hook of mkdocs: what pages link to outside of docs/ goes into the site, so that one link serves it and a code host.

`../benchmarks/results/x.png` of a page becomes `repository/benchmarks/results/x.png` of the site. Documents in Markdown
become pages there, and what they link to follows in turn; a link to a folder, which a site cannot show, becomes its
text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
#: A fenced block, in which nothing is a link; or what a link shows, its target and its anchor.
_LINK = re.compile(r"^```.*?^```$|(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", re.S | re.M)


def _targets(source: Path) -> Iterator[Path]:
    """The files outside of docs/ that a document links to."""
    for match in _LINK.finditer(source.read_text(encoding="utf-8")):
        found = (source.parent / (match[3] or "")).resolve()
        if match[3] and found.is_file() and not found.is_relative_to(ROOT / "docs") and found.is_relative_to(ROOT):
            yield found


def _uri(path: Path) -> str:
    """Where a file of the repository lies in the sources of the site."""
    inside = path.is_relative_to(ROOT / "docs")
    return path.relative_to(ROOT / "docs").as_posix() if inside else f"repository/{path.relative_to(ROOT).as_posix()}"


def on_files(files: Any, config: Any) -> Any:
    """Add what is linked to, and what that links to."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages()]
    while waiting:
        for target in _targets(waiting.pop()):
            if files.get_file_from_path(_uri(target)) is None:
                level = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, _uri(target), abs_src_path=str(target), inclusion=level))
                waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to where their files lie in the site."""
    source = Path(page.file.abs_src_path)
    folder = os.path.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        found = (source.parent / (target or "")).resolve()
        if target is None or not found.is_relative_to(ROOT) or not found.exists():
            return match[0]  # code; or mkdocs says that it leads nowhere
        if found.is_dir():
            return text
        return f"{image}[{text}]({os.path.relpath(_uri(found), folder)}{anchor or ''})"

    return _LINK.sub(moved, markdown)
