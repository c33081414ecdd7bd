"""The rooms of the package (its folders, and `errors.py`): which imports which, and where a stage's name may stand.

`python tests/test_rooms.py` prints the graph.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import pytest_llmprof
from pytest_llmprof.stages import packaged_stages

PACKAGE = Path(pytest_llmprof.__file__).parent
NAME = PACKAGE.name

ORDER = (
    *("errors", "text", "records"),
    *("config", "analysis", "compare", "report", "measure", "datasets"),
    "models",
    *("quality", "outputs"),
    *("stages", "run", "plugin", "cli"),
)
"""Each room imports only rooms before it."""
LAYERS = 10
"""At most so many rooms on the longest way down through imports."""
EDGES = 74
"""At most so many pairs (room, room that it imports)."""
REGISTRY = "stages/__init__.py"
"""The one file outside a stage's own folder that names the stage."""

Graph = Mapping[str, set[str]]


def sources() -> dict[str, ast.Module]:
    """The package's modules, by path relative to the package."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def docstrings(tree: ast.Module) -> set[ast.AST]:
    """Strings that stand alone: docstrings, those of attributes too."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def imported(path: str, tree: ast.Module) -> Iterator[str]:
    """The names of the package's modules (or what they hold) that a module imports anywhere: in functions, for types
    alone, or by a string."""
    package = [NAME, *Path(path).parts[:-1]]
    comments = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in comments:
            yield from re.findall(rf"^{NAME}\.[\w.]+$", node.value)


def room(name: str) -> str | None:
    """The room of "pytest_llmprof.text.names" or of "text/names.py"."""
    parts = name.removeprefix(f"{NAME}.").removesuffix(".py").replace("/", ".").split(".")
    return parts[0] if parts[0] in ORDER else None


def room_graph() -> Graph:
    """Each room with the rooms that it imports."""
    graph: dict[str, set[str]] = {name: set() for name in ORDER}
    for path, tree in sources().items():
        if own := room(path):
            names = [name for name in imported(path, tree) if name.startswith(f"{NAME}.")]
            graph[own] |= {found for name in names if (found := room(name)) and found != own}
    return graph


def module_graph(folder: str) -> Graph:
    """Each module of one room with those of the same room that it imports."""
    trees = {path: tree for path, tree in sources().items() if path.startswith(f"{folder}/")}
    names = {f"{NAME}.{path.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}": path for path in trees}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for found in imported(path, trees[path]):
            target = found if found in names else found.rpartition(".")[0]
            if target in names and target != name:
                graph[name].add(target)
    return graph


def circles(graph: Graph) -> set[tuple[str, ...]]:
    """Groups of names that import one another, each sorted."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return {group for group in groups if group}


def layers(graph: Graph) -> list[list[str]]:
    """The names in layers: each in the lowest one above all that it imports. Names in a circle share a layer."""
    member = {name: group for group in circles(graph) for name in group}
    depth: dict[str, int] = {}

    def layer(name: str) -> int:
        if name not in depth:
            group = member.get(name, (name,))
            below = {other for one in group for other in graph[one]} - set(group)
            value = 1 + max((layer(other) for other in below), default=0)
            depth.update(dict.fromkeys(group, value))
        return depth[name]

    for name in graph:
        layer(name)
    return [[name for name in graph if depth[name] == level] for level in range(1, max(depth.values()) + 1)]


def picture(graph: Graph) -> str:
    """The graph as text, the lowest layer first."""
    found = layers(graph)
    lines = [f"{len(graph)} rooms, {len(found)} layers, {sum(map(len, graph.values()))} edges"]
    for level, names in enumerate(found, 1):
        for name in names:
            below = [other for other in ORDER if other in graph[name]]
            lines.append(f"{level:>3} {name:<9} <- {', '.join(below) or '-'}")
    return "\n".join(lines)


def test_every_folder_is_a_room():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(ORDER)


def test_the_packages_own_file_imports_no_room():
    path = "__init__.py"
    assert not [name for name in imported(path, sources()[path]) if name.startswith(NAME)]


def test_rooms_import_only_rooms_before_them():
    graph = room_graph()
    print(picture(graph))
    wrong = [
        f"{name} imports {other}"
        for place, name in enumerate(ORDER)
        for other in ORDER[place:]
        if other in graph[name] and other != name
    ]
    assert not wrong
    assert not circles(graph)


@pytest.mark.parametrize(
    ("counted", "most"),
    [(lambda graph: len(layers(graph)), LAYERS), (lambda graph: sum(map(len, graph.values())), EDGES)],
    ids=["layers", "edges"],
)
def test_the_graph_stays_small(counted, most):
    graph = room_graph()
    print(picture(graph))
    assert counted(graph) <= most


def test_no_circle_between_the_plugins_modules():
    assert not circles(module_graph("plugin"))


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each identifier and string of a module but for docstrings, with its line."""
    comments = docstrings(tree)
    for node in ast.walk(tree):
        if node in comments:
            continue
        line = getattr(node, "lineno", 0)
        for _, value in ast.iter_fields(node):
            if isinstance(value, str):
                yield line, value


def test_a_stage_is_named_only_in_its_own_folder():
    names = [stage.name for stage in packaged_stages()]
    pattern = re.compile(rf"(?<![a-z0-9])({'|'.join(names)})(?![a-z0-9])")
    found = []

    def look(path: str, line: int, text: str) -> None:
        # NsysOptions names the stage as nsys_options does.
        match = pattern.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower())
        if match and path != REGISTRY and not path.startswith((f"stages/{match[1]}/", f"stages/{match[1]}.py")):
            found.append(f"{path}:{line}: {match[1]} in {text.strip()[:80]!r}")

    for path, tree in sources().items():
        for line, text in words(tree):
            look(path, line, text)
    for template in PACKAGE.rglob("*.j2"):
        for line, text in enumerate(template.read_text(encoding="utf-8").splitlines(), 1):
            look(template.relative_to(PACKAGE).as_posix(), line, text)
    assert not found, "\n".join(found)


if __name__ == "__main__":
    print(picture(room_graph()))
