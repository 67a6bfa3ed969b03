"""Writes docs/config.md from the config classes: `python docs/build_config_page.py`. A test compares the two."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from es_service.config import RunConfig

PAGE = Path(__file__).with_name("config.md")
INTRODUCTION = """# Config

A run is a TOML file, or the name of a preset (`es-service presets`), with changes by `--set field=value`; a field in a
table is written with dots: `--set deployment.worker.threads=4`. Everything outside `deployment` is the **spec**: it
stands in the journal's header and identifies the run. `deployment` may change at every resume.

```toml
population = 4096
seed = 7

[model]
kind = "egg"
width = 128

[data]
kind = "files"
paths = ["notes", "book.txt"]

[feeding]
kind = "members_per_sequence"
members = 8

[deployment]
generations = 300
```

This page is written by `docs/build_config_page.py` from the classes.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_tables(RunConfig, "", "Fields of a run"), ""])


def _tables(model: type[BaseModel], prefix: str, title: str) -> Iterator[str]:
    """A table of the model's own fields, then one for each variant of each field that is a table itself."""
    yield f"## {title}\n"
    if model.__doc__:
        yield textwrap.fill(" ".join(model.__doc__.split()), 120, break_on_hyphens=False) + "\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    nested = []
    for name, field in model.model_fields.items():
        variants = list(_models(field.annotation))
        nested += [(name, variant) for variant in variants]
        kind = "table" if variants else _type(field)
        yield f"| `{prefix}{name}` | {kind} | {_default(field, bool(variants))} | {_meaning(field)} |"
    yield ""
    for name, variant in nested:
        kind = variant.model_fields.get("kind")
        suffix = f' with `kind = "{kind.default}"`' if kind else ""
        yield from _tables(variant, f"{prefix}{name}.", f"`{prefix}{name}`{suffix}")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _models(argument)


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    bounds = [
        f"{text} {getattr(rule, name)}" for rule in field.metadata for name, text in _BOUNDS if hasattr(rule, name)
    ]
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in get_args(annotation))
    if "Annotated" in str(annotation):  # a pattern; the meaning says which
        return "str or None" if "Optional" in str(annotation) or "None" in str(annotation) else "str"
    name = getattr(annotation, "__name__", str(annotation)) if not get_args(annotation) else str(annotation)
    name = name.replace("pathlib._local.", "").replace("pathlib.", "").replace("|", "or")
    return ", ".join([name, *bounds])


_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"), ("multiple_of", "a multiple of"))


def _default(field: FieldInfo, table: bool) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return "as below" if table else f"`{field.default}`"


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
