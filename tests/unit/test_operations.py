"""docs/operations.md: every message in its table is one that the code can print."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def texts():
    """Every string of the program, with {} for what is filled in."""
    for package in ("es_service", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
    yield (ROOT / "cluster" / "setup.sh").read_text()


def test_every_message_is_one_of_the_program():
    table = PAGE.split("| message |")[1].split("\n\n")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) > 12
    known = list(texts())
    for message in messages:
        assert any(message.replace("'NAME'", "{}") in text for text in known), message


def test_every_file_and_script_that_it_names_exists():
    for name in re.findall(r"`((?:cluster|tests)/[\w./-]+)`", PAGE):
        assert (ROOT / name).exists(), name
