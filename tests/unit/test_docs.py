"""Docs cannot drift: commands parse, targets exist, links lead somewhere, the config page is the one of the classes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from es_service.cli import build_parser
from es_service.config import preset_names

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def names(paths):
    return [path.name for path in paths]


CHOICES = next(action for action in build_parser()._actions if action.dest == "command").choices


def commands(page):
    """Every `es-service ...` line of a code block."""
    for block in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            if words[:1] == ["es-service"]:
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_line_in_the_docs_parses(page):
    for words in commands(page):
        try:
            build_parser().parse_args(words)
        except SystemExit as stop:
            pytest.fail(f"{page.name}: es-service {shlex.join(words)} ends with {stop.code}")


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_named_in_prose_exist(page):
    for command in re.findall(r"`es-service (?!corpus 1)([a-z-]+)[ `]", page.read_text()):
        assert command in CHOICES, page.name


def test_the_readme_names_every_command_of_its_first_day():
    text = (ROOT / "README.md").read_text()
    used = {words[0] for words in commands(ROOT / "README.md")}
    assert {"resume", "status", "replay", "sample", "export", "verify", "doctor", "train"} <= used
    assert "make train" in text
    assert "make test" in text


def test_every_command_is_in_the_cli_page():
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in CHOICES:
        assert (ROOT / "es_service" / "commands" / f"{command.replace('-', '_')}.py").is_file()
        assert f"es-service {command}" in page, command


def test_make_targets_in_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_config_page_is_that_of_the_classes():
    spec = importlib.util.spec_from_file_location("build_config_page", ROOT / "docs" / "build_config_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run `python docs/build_config_page.py`"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_prose_keeps_to_120_characters(page):
    """Tables do not, and code goes by its own rules."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert "@@" not in page.read_text(), page.name


def test_presets_in_the_docs_exist():
    for page in PAGES:
        for preset in re.findall(r"es-service train (egg-[a-z0-9-]+)", page.read_text()):
            assert preset in preset_names(), f"{page.name}: {preset}"


def test_shipped_vectors_are_the_golden_files():
    shipped, golden = ROOT / "workers" / "vectors", ROOT / "tests" / "golden"
    assert names(sorted(shipped.glob("*.npz"))) == names(sorted(golden.glob("*.npz")))
    for path in golden.glob("*.npz"):
        assert (shipped / path.name).read_bytes() == path.read_bytes()
