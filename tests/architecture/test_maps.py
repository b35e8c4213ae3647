"""Holds the maps: a package's docstring names every module of it, and its `__init__` holds nothing else but names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    str(path.parent.relative_to(ROOT)): path
    for name in ("api", "deploy", "ratelimit", "workers")
    for path in sorted((ROOT / name).rglob("__init__.py"))
    if path.parent.name != "versions"  # migrations, named by their numbers
}

CODE_IN_INIT = {
    "deploy/check": "the rules run in one order, which `run` and `findings` tell",
    "deploy/servers": "`Servers` and its lock wait for a module of their own",
    "workers/store/migrations": "it is Alembic's folder of scripts, and its functions run them",
}
"""Packages whose `__init__` has code, and why."""

_ENTRY = re.compile(r"^ {0,4}([\w./]+(?:, [\w./]+)*) {2,}\S")
"""A line of a map: one name or several, two spaces or more, what is there."""

every_package = pytest.mark.parametrize("package", sorted(PACKAGES))


def modules_of(package: str) -> set[str]:
    folder = PACKAGES[package].parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def mapped(docstring: str, modules: set[str]) -> tuple[set[str], set[str]]:
    """The modules that the docstring names, and names between them that are no module of the package."""
    named: set[str] = set()
    unknown: set[str] = set()
    for paragraph in docstring.split("\n\n"):
        entries = [entry[1].split(", ") for line in paragraph.splitlines() if (entry := _ENTRY.match(line))]
        names = {name.removesuffix("/").removesuffix(".py") for several in entries for name in several}
        if names & modules:
            named |= names & modules
            unknown |= names - modules
    return named, unknown


@every_package
def test_a_package_names_its_modules_and_no_others(package: str) -> None:
    modules = modules_of(package)
    docstring = ast.get_docstring(ast.parse(PACKAGES[package].read_text())) or ""
    named, unknown = mapped(docstring, modules)
    assert (sorted(modules - named), sorted(unknown)) == ([], [])


@every_package
def test_an_init_holds_a_docstring_and_names(package: str) -> None:
    code = [node for node in ast.parse(PACKAGES[package].read_text()).body if not is_name_or_docstring(node)]
    assert bool(code) == (package in CODE_IN_INIT), f"{package}/__init__.py has code, or has none any more"


def is_name_or_docstring(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("A house.\n\none  the first\ntwo  the second", ({"one", "two"}, set())),
        ("A house.\n\none, two/  both", ({"one", "two"}, set())),
        ("A house.\n\none.py  the first\nthree  gone", ({"one"}, {"three"})),
        ("A house with one, and two.", (set(), set())),
    ],
)
def test_a_map_is_read(docstring: str, found: tuple[set[str], set[str]]) -> None:
    assert mapped(docstring, {"one", "two"}) == found
