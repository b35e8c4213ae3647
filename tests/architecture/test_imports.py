"""Holds the house of design.md: who may import whom, which library lives in which room, who builds adapters.

Everything is read from the source, so an import inside a function or under TYPE_CHECKING counts like any other.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# deploy → api → workers → ratelimit. Inside workers: engine → services → domain, and store, channels → domain.
# A room may import itself and what stands after it here; a name longer than a module is that one name of it.
MAY_IMPORT = {
    "deploy": "api workers ratelimit",
    "api": "workers.bootstrap workers.settings workers.environment workers.services workers.domain workers.telemetry"
    " workers.encoding ratelimit workers.channels.registry workers.channels.fields workers.channels.base"
    # The type of an account, which services return as the store has it: a value, without any statement.
    " workers.store.accounts.Account",
    # what runs the services; its modules each know only their own part
    "workers.engine": "",
    "workers.engine.processes": "workers",
    "workers.engine.tasks": "workers.engine.celery_app workers.services workers.wakeups.PUBLICATION workers.domain"
    " workers.telemetry ratelimit",
    "workers.engine.pacer": "workers.services workers.wakeups workers.domain workers.telemetry workers.clock ratelimit",
    "workers.engine.reconciler": "workers.bootstrap workers.services workers.store workers.domain workers.telemetry"
    " workers.clock ratelimit",
    "workers.engine.presence": "workers.store.session workers.store.glance workers.wakeups workers.telemetry ratelimit",
    "workers.engine.celery_app": "celeryconfig",
    "workers.engine.consumer": "",
    "celeryconfig": "",
    # the composition root
    "workers.bootstrap": "workers.services workers.store workers.channels workers.wakeups workers.domain"
    " workers.settings workers.credentials workers.telemetry ratelimit",
    # what happens
    "workers.services": "workers.store workers.channels.base workers.wakeups workers.domain workers.credentials"
    " workers.telemetry workers.clock ratelimit",
    # the outside, each room knowing only its own part of it
    "workers.store": "workers.domain workers.encoding ratelimit",
    "workers.encoding": "",
    "workers.channels": "workers.channels.http workers.domain workers.clock workers.environment",
    "workers.channels.http": "workers.clock workers.domain.remarks",
    "workers.wakeups": "workers.telemetry ratelimit",
    # what knows nobody
    "workers.settings": "workers.environment workers.channels.registry workers.domain workers.credentials ratelimit",
    "workers.environment": "",
    "workers.credentials": "workers.domain",
    "workers.telemetry": "workers.domain workers.clock",
    "workers.telemetry.traces": "workers.environment",
    "workers.clock": "",
    "workers.domain": "",
    "ratelimit": "",
}

LIVES_IN = {
    "celery": "workers.engine",
    "kombu": "workers.engine deploy",
    "redis": "ratelimit workers.wakeups workers.bootstrap deploy",
    "psycopg": "workers.store workers.engine.presence deploy",
    "sqlalchemy": "workers.store deploy",
    "alembic": "workers.store.migrations",
    "orjson": "workers.encoding",
    "httptools": "workers.channels",
    "cryptography": "workers.credentials api.auth",
    "opentelemetry": "workers.telemetry.traces",
    "flask": "api deploy",
    "flask_jwt_extended": "api",
    "marshmallow": "api workers.channels",
    "apispec": "api",
    "granian": "deploy",
    "click": "deploy",
    "rich": "deploy",
}

PURE = {"abc", "collections", "dataclasses", "datetime", "decimal", "enum", "functools", "itertools", "math", "random"}
PURE |= {"html", "re", "types", "typing", "unicodedata"}
"""All that the domain may use of the standard library: no clock, no socket, no file."""

ADAPTERS = {"Database", "Tokens", "Wakeups"}
COMPOSITION_ROOT = "workers.bootstrap"

PACKAGES = ("api", "deploy", "ratelimit", "workers")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "celeryconfig.py", *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))]
}
every_module = pytest.mark.parametrize("module", sorted(MODULES))


@every_module
def test_imports_point_one_way(module: str) -> None:
    assert list(wrong_imports(module, tree_of(module))) == []


@every_module
def test_libraries_stay_in_their_rooms(module: str) -> None:
    assert list(misplaced_libraries(module, tree_of(module))) == []


@every_module
def test_adapters_are_built_in_one_place(module: str) -> None:
    assert list(adapters_built(module, tree_of(module))) == []


@pytest.mark.parametrize("module", [module for module in sorted(MODULES) if module.split(".")[0] == "api"])
def test_api_speaks_no_sql_and_no_redis(module: str) -> None:
    assert list(commands_of_others(tree_of(module))) == []


def test_nothing_imports_itself_in_a_circle() -> None:
    graph = {module: {home(name) for name in imports(module, tree_of(module))} - {module} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_ratelimit_could_be_published_by_itself() -> None:
    """Whoever builds a `Tokens` says under which names its keys are kept."""
    words = {path.name: path.read_text().lower() for path in (ROOT / "ratelimit").iterdir() if path.is_file()}
    assert words
    assert [name for name, text in words.items() if "paceline" in text] == []


def test_composition_root_builds_every_adapter() -> None:
    """So that one that is renamed does not drop out of the test above."""
    assert {name for name, _ in calls(tree_of(COMPOSITION_ROOT))} >= ADAPTERS


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ratelimit.tokens", "from workers.domain import state"),
        ("workers.domain.decisions", "from ratelimit import Limits"),
        ("workers.domain.decisions", "from workers import store"),
        ("workers.domain.decisions", "import workers.store.claims"),
        ("workers.store.claims", "def claim():\n    from workers.services import dispatch"),
        ("workers.services.dispatch", "from workers.channels.onlyfans import OnlyFans"),
        ("workers.services.dispatch", "from .. import bootstrap"),
        ("workers.engine.tasks", "from workers.store import claims"),
        ("workers.engine.pacer", "if TYPE_CHECKING:\n    from api.app import create_app"),
        ("api.messaging", "from workers.store.session import Database"),
        ("api.operations", "from workers.store import queries"),
        ("api.messaging", "from workers.engine import tasks"),
        ("api.messaging", "from importlib import import_module\nimport_module('workers.engine.tasks')"),
        ("workers.settings", "import deploy"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert list(wrong_imports(module, ast.parse(source)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("api.messaging", "import redis"),
        ("api.messaging", "def list():\n    import sqlalchemy as sa"),
        ("api.messaging", "from celery import current_app"),
        ("workers.services.dispatch", "from psycopg import sql"),
        ("workers.domain.decisions", "import time"),
        ("workers.domain.decisions", "import structlog"),
    ],
)
def test_a_misplaced_library_is_found(module: str, source: str) -> None:
    assert list(misplaced_libraries(module, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "adapters.db.one('…')",
        "adapters.redis.get(key)",
        "sql = 'SELECT id FROM messages'",
        "sql = f'update messages set state = {state}'",
        "drain.apply_async()",
    ],
)
def test_a_command_in_the_api_is_found(source: str) -> None:
    assert list(commands_of_others(ast.parse(source)))


def test_an_adapter_built_elsewhere_is_found() -> None:
    source = "from workers.store import session\n\ndb = session.Database(url)"
    assert list(adapters_built("deploy.check", ast.parse(source))) == [
        "line 3: Database(…) belongs to workers.bootstrap"
    ]


# How it is read


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def room_of(module: str) -> str:
    rooms = [room for room in MAY_IMPORT if within(module, room)]
    assert rooms or module == "workers", f"{module} has no room yet: give it a line in MAY_IMPORT"
    return max(rooms, key=len, default=module)


def home(name: str) -> str:
    """The module that a dotted name comes from: workers.store.queries.messages → workers.store.queries."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Names of ours that the source imports, wherever it does, as far as they are spelled out."""
    for name, _ in all_imports(module, tree):
        if name.split(".")[0] in (*PACKAGES, "celeryconfig"):
            yield name


def all_imports(module: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    path = MODULES.get(module)
    package = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom():
                above = package[: len(package) - node.level + 1] if node.level else []
                origin = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if _called(node) in ("import_module", "__import__"):
                yield name, node.lineno


def wrong_imports(module: str, tree: ast.Module) -> Iterator[str]:
    room = room_of(module)
    allowed = [room, *MAY_IMPORT.get(room, "").split()]
    for name in imports(module, tree):
        if not any(within(name, other) for other in allowed):
            yield f"{module} imports {name}; {room} may import {', '.join(allowed)}"


def misplaced_libraries(module: str, tree: ast.Module) -> Iterator[str]:
    for name, line in all_imports(module, tree):
        library = name.split(".")[0]
        rooms = LIVES_IN.get(library)
        if rooms is not None and not any(within(module, room) for room in rooms.split()):
            yield f"line {line}: {library} lives in {rooms}"
        if within(module, "workers.domain") and library not in PURE | {"workers", "__future__"}:
            yield f"line {line}: the domain is pure, {library} is not"


def adapters_built(module: str, tree: ast.Module) -> Iterator[str]:
    if module != COMPOSITION_ROOT:
        yield from (
            f"line {line}: {name}(…) belongs to {COMPOSITION_ROOT}" for name, line in calls(tree) if name in ADAPTERS
        )


def commands_of_others(tree: ast.Module) -> Iterator[str]:
    """SQL, Redis commands and Celery calls, by how they look."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Attribute(attr="db") | ast.Name(id="db"), attr=what):
                yield f"line {node.lineno}: db.{what}"
            case ast.Attribute(attr="redis"):
                yield f"line {node.lineno}: Redis"
            case ast.Attribute(attr="delay" | "apply_async" | "send_task" as what):
                yield f"line {node.lineno}: {what}"
            case ast.Constant(value=str(text)) if _looks_like_sql(text):
                yield f"line {node.lineno}: {text[:40]!r}"


def calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield _called(node), node.lineno


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def _looks_like_sql(text: str) -> bool:
    words = text.upper().split()
    pairs = {"SELECT": "FROM", "INSERT": "INTO", "UPDATE": "SET", "DELETE": "FROM"}
    return bool(words) and words[0] in pairs and pairs[words[0]] in words
