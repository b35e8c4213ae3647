"""No test patches product code. Adapters are swapped where they are composed, and clocks are arguments."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
PRODUCT = ("api", "celeryconfig", "deploy", "ratelimit", "workers")
PATCHING = {"setattr", "setitem", "delattr", "delitem"}
"""Methods of pytest's monkeypatch. Its `setenv` and `chdir` change no code."""
LEFT = {
    "integration/test_broker.py": 3,
    "integration/test_channel.py": 4,
    "integration/test_database.py": 1,
    "integration/test_migrations.py": 2,
    "integration/test_reconciler.py": 5,
    "integration/test_recovery.py": 2,
    "integration/test_tracing.py": 1,
    "integration/test_transport.py": 1,
}
"""Patches from before this rule, by file. The numbers may only fall."""


def patches(tree: ast.Module) -> Iterator[int]:
    """The lines that patch something."""
    product = {"adapters", *imported(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=method)) if method in PATCHING:
                yield node.lineno
            case ast.Import() | ast.ImportFrom() if "mock" in ast.unparse(node).replace(".", " ").split():
                yield node.lineno
            case ast.Assign(targets=targets):
                yield from (node.lineno for target in targets if attribute_of(target) in product)


def imported(tree: ast.Module) -> Iterator[str]:
    """The names that product code has in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PRODUCT:
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names if alias.name in PRODUCT)


def attribute_of(target: ast.expr) -> str | None:
    """`a` of a target `a.b.c`; None if an attribute is not assigned to."""
    if not isinstance(target, ast.Attribute):
        return None
    while isinstance(target, ast.Attribute):
        target = target.value
    return target.id if isinstance(target, ast.Name) else None


def test_no_test_patches_product_code() -> None:
    found = Counter(
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if path.relative_to(TESTS).parts[0] != "bench"
        for _ in patches(ast.parse(path.read_text()))
    )
    assert not found - Counter(LEFT)


def test_a_patch_is_recognised() -> None:
    lines = [
        "from workers.store import lookups",
        "from unittest import mock",
        "lookups.find = None",
        "adapters.tokens.exchange = None",
        "monkeypatch.setattr(lookups, 'find', None)",
        "monkeypatch.setenv('PORT', '1')",
        "upstream.away = None",
    ]
    assert sorted(patches(ast.parse("\n".join(lines)))) == [2, 3, 4, 5]
