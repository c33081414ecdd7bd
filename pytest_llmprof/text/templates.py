"""Jinja templates that lie beside the code that fills them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2


def render_template(path: Path, **values: object) -> str:
    """Fill the template *path*. In a template of SVG or HTML values are escaped; elsewhere they must be already."""
    return _template(path).render(**values)


@cache
def _template(path: Path) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=path.name.endswith((".svg.j2", ".html.j2")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(path.name)
