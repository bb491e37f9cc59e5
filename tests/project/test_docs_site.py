"""The documentation site: it is built without a warning, whole, from pages whose every example runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from support.paths import ROOT
from test_readme import PAGES

DOCS = ROOT / "docs"
LANGUAGES = {"python", "sh", "text", "json", "toml"}


def pages(nav):
    """The pages that a nav of mkdocs leads to, in order."""
    for entry in nav:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else pages(target)


def config():
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def test_the_nav_leads_to_every_page_once():
    assert sorted(pages(config()["nav"])) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_page_is_among_those_whose_blocks_run():
    """docs/distributed.md runs on several ranks, in a test of its own."""
    assert {DOCS / page for page in pages(config()["nav"])} <= {*PAGES, DOCS / "distributed.md"}


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_blocks_are_written_so_that_they_are_found(path):
    """At the beginning of a line, by three backticks, in a language: what else is a block would not be run."""
    fences = re.findall(r"^[ >]*(?:`{3,}|~{3,}).*$", path.read_text(), re.M)
    assert len(fences) % 2 == 0
    assert {fence.removeprefix("```") for fence in fences[::2]} <= LANGUAGES
    assert set(fences[1::2]) <= {"```"}


class Links(HTMLParser):
    """What a page links to, what it loads, and which anchors it has."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag in ("a", "area") and found.get("href"):
            self.links.append(found["href"])
        elif tag != "a":
            rel = found.get("rel") or ""
            self.loaded += [found["src"]] if found.get("src") else []
            self.loaded += [found["href"]] if found.get("href") and "canonical" not in rel else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site):
    """What each page of the site links to; the page of errors is for servers, and links by absolute paths."""
    return {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_and_figure_is_in_the_site(site):
    built = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    assert {page.removesuffix(".md") + ".html" for page in pages(config()["nav"])} <= built
    assert {path.relative_to(DOCS).as_posix() for path in (DOCS / "figures").iterdir()} <= built
    assert not [name for name in built if name.endswith(".py")]


def test_links_lead_to_pages_anchors_and_files_of_the_site(built):
    lost = []
    for page, found in built.items():
        for target in found.links + found.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            file = file / "index.html" if file.is_dir() else file
            anchors = built[file].anchors if file in built else set()
            if not file.exists() or (parts.fragment and unquote(parts.fragment) not in anchors | {"__top"}):
                lost.append((page.name, target))
    assert not lost


def test_nothing_is_loaded_from_elsewhere(built):
    """No fonts, scripts or styles: the site also opens without a network."""
    for page, found in built.items():
        assert not [target for target in found.loaded if urlsplit(target).scheme or urlsplit(target).netloc], page
