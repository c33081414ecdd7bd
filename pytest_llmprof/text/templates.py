"""Jinja templates that lie beside the code that fills them."""

from __future__ import annotations

from pathlib import Path


def render_template(path: Path, **values: object) -> str:
    """Fill the template *path*. In a template of SVG or HTML values are escaped; elsewhere they must be already."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=path.name.endswith((".svg.j2", ".html.j2")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(path.name).render(**values)
