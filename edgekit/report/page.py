"""Rendering pages: one self-contained HTML file each, from the templates beside this module."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.report.svg import tick_text
from edgekit.require import require

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = "templates"


def _environment() -> Environment:
    require("jinja2", "Writing an HTML page")
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("edgekit.report", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        version=__version__,
        style=Markup(_resource("style.css")),
        script=Markup(_resource("sort.js")),
        tick_text=tick_text,
    )
    return environment


def _resource(name: str) -> str:
    return (resources.files("edgekit.report") / _FOLDER / name).read_text(encoding="utf-8")


def render_page(template: str, **values: Any) -> str:
    """The page `template` with `values`; everything that is not Markup is escaped."""
    return _environment().get_template(template).render(**values)
