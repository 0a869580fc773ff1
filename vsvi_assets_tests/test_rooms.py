"""Imports run one way, and private names of Dagster and osmnx stay where they may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import vsvi_assets

PACKAGE = Path(vsvi_assets.__file__).parent
ROOMS = [
    *("proxies", "store", "bucket", "files", "settings", "progress", "threads"),
    *("city", "streets", "mapillary", "photographs", "selection"),
    *("database", "views", "dataset"),
    *("orchestration", "running", "definitions", "api", "cli", "__main__"),
]
"""Each may import those before it, and its own modules."""

KNOW_DAGSTER = {"orchestration", "running", "definitions", "cli"}

NAMEDTUPLES = {"_asdict", "_fields", "_replace"}
"""Their public methods, which begin with an underscore so that no field is called so."""


def _imports() -> Iterator[tuple[Path, str]]:
    """Yield each module of the package, and each module that it imports, wherever it does so."""
    yield from _imports_below(PACKAGE)


def _modules_below(folder: Path) -> Iterator[tuple[Path, list[ast.AST]]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder), list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def _imports_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each module with what it imports: `from a import b` as "a.b"."""
    for path, nodes in _modules_below(folder):
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                for name in node.names:
                    yield path, f"{node.module}.{name.name}"
            elif isinstance(node, ast.Import):
                for name in node.names:
                    yield path, name.name


def _room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def test_imports_run_one_way() -> None:
    wrong = [
        (str(path), module)
        for path, module in _imports()
        if module.startswith("vsvi_assets.")
        and (imported := module.split(".")[1]) in ROOMS
        and _room(path) != "sandbox"
        and ROOMS.index(imported) > ROOMS.index(_room(path))
    ]
    assert not wrong


def test_the_sandbox_and_the_pipeline_do_not_know_each_other() -> None:
    for path, module in _imports():
        is_of_sandbox = module.startswith("vsvi_assets.sandbox")
        if _room(path) == "sandbox":
            assert is_of_sandbox or not module.startswith("vsvi_assets"), (path, module)
        elif _room(path) != "cli":
            assert not is_of_sandbox, (path, module)


def test_the_domain_knows_no_dagster() -> None:
    for path, module in _imports():
        if module.split(".")[0] == "dagster":
            assert _room(path) in KNOW_DAGSTER, (path, module)


def test_private_names_are_isolated() -> None:
    """One module of the package has what it needs of them, and one what tests need."""
    project = PACKAGE.parent
    for folder in (PACKAGE, project / "vsvi_assets_tests", project / "benchmarks"):
        for path, module in _imports_below(folder):
            if path.name != "dagster_internals.py":
                assert not module.startswith(("dagster._", "osmnx._")), (folder, path, module)
            if path.parts != ("sandbox", "vector_tiles.py"):
                assert not module.startswith("mapbox_vector_tile."), (folder, path, module)


def test_private_attributes_are_those_of_the_same_module() -> None:
    """Those of Dagster, osmnx or requests are in the one module that may use them."""
    for path, nodes in _modules_below(PACKAGE):
        own = set(NAMEDTUPLES)
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
        for node in nodes:
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and path.name != "dagster_internals.py"
            ):
                assert node.attr in own, (path, node.lineno, ast.unparse(node))
