"""How the package speaks: its messages are short and say what is expected before what was got, its docstrings are
sentences, its core names no framework, and its documents are no longer than they must be.
"""

import ast
import re

import pytest
from support.paths import ROOT

WORDS, README_LINES, CODE_COLUMNS = 40, 200, 88
FILES = sorted((ROOT / "greedylr_fused").rglob("*.py"))
#: Rooms that are for frameworks, or look for them.
OF_FRAMEWORKS = ("greedylr_fused/integrations/", "greedylr_fused/commands/doctor.py")


def text(node):
    """A message as it is written, with one word for each value in it; None if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return None


def messages(tree):
    """`(line, text)` of what is raised, warned of and refused."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in ("warn", "refuse") or name.endswith("Error"):
                yield from ((node.lineno, said) for given in node.args if (said := text(given)))


def strings(tree):
    """`(line, text)` of every string but docstrings, wherever a message is made of it."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside -= {id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [(node.lineno, said) for node in ast.walk(tree) if id(node) not in inside and (said := text(node))]


def misordered(said):
    """Whether a message says what is allowed, or what was got before what is expected."""
    return bool(re.search(r"\ballowed (is|are)\b", said) or re.search(r"\bgot\b", said.partition("expected")[0]))


def docstrings(tree):
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(node.name, found) for node in nodes if (found := ast.get_docstring(node))]


def offences(tree):
    """What is wrong with the words of a file."""
    found = [f"line {line}: {len(said.split())} words" for line, said in messages(tree) if len(said.split()) > WORDS]
    found += [f"line {line}: {said[:40]}" for line, said in strings(tree) if misordered(said)]
    return found + [
        f"{name}: {said[:40]}" for name, said in docstrings(tree) if re.match(r"(What|Whether|By|Of|As)\b", said)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_are_short_and_docstrings_begin_with_what_they_are_about(path):
    assert not offences(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_integrations_speak_of_frameworks(path):
    if not str(path.relative_to(ROOT)).startswith(OF_FRAMEWORKS):
        said = [said for _, said in messages(ast.parse(path.read_text()))]
        assert not [line for line in said if re.search("Lightning|Trainer|Accelerate", line)]


@pytest.mark.parametrize(
    "wrong",
    [f'raise ValueError("{"word " * 41}")', f'warn(f"{{x}} {"word " * 40}")', 'def f():\n    """Whether it is."""']
    + [f"error({said})" for said in ('"x: got 1, allowed is 2"', 'f"{x}: got {x}, expected a 2"', '"allowed are 2"')],
)
def test_offences_are_found(wrong):
    assert len(offences(ast.parse(wrong))) == 1


def test_most_messages_say_what_is_expected_what_was_got_and_what_to_do():
    """Another order is an offence, which is thus looked for where there are messages."""
    said = [said for path in FILES for _, said in strings(ast.parse(path.read_text()))]
    assert len([line for line in said if re.search(r": expected .+ got .+; \w+", line)]) > 120


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_code_in_documents_shows_without_scrolling(path):
    blocks = re.findall(r"^```\w+\n(.*?)^```", path.read_text(), re.S | re.M)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > CODE_COLUMNS]
