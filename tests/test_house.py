"""
The house rules that a machine can check: who imports whom, purity, privacy, size, exports.

They read gwt/ as text (its AST), so that an import inside a function counts too. A new module
takes its place in FLOORS; an exception to a rule stands here with its reason, or does not exist.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gwt"

# Imports run only downward, or stay on their floor where no rule below forbids it. The longest
# prefix counts.
FLOORS = {
    "gwt.errors": 0,
    "gwt.config": 0,
    "gwt.config_common": 0,
    "gwt.observe": 0,
    "gwt.options": 0,
    "gwt.version": 0,
    "gwt._version": 0,
    "gwt.protocol": 1,
    "gwt.net": 2,
    "gwt.manager": 2,
    "gwt.budget": 3,
    "gwt.connection": 3,
    "gwt.lifetime": 3,
    "gwt.messages": 3,
    "gwt.session": 3,
    "gwt.session_outlets": 3,
    "gwt.session_streams": 3,
    "gwt.states": 3,
    "gwt.stream": 3,
    "gwt.stream_common": 3,
    "gwt.stream_receive": 3,
    "gwt.stream_send": 3,
    "gwt.tracing": 3,
    "gwt.tunnel": 3,
    "gwt.request": 3,
    "gwt.websocket": 3,
    "gwt.websocket_common": 3,
    "gwt.websocket_driver": 3,
    "gwt.websocket_lazy": 3,
    "gwt.websocket_offer": 3,
    "gwt.certificates": 3,
    "gwt.server": 4,
    "gwt.client": 4,
    "gwt.integrations": 5,
    "gwt.cli": 5,
    "gwt.__main__": 5,
    # The public names: what a user imports, and so do those on top, but nobody below.
    "gwt": 5,
}

# Rooms that may never know each other, in either direction.
STRANGERS = [("gwt.protocol", "gwt.net"), ("gwt.server", "gwt.client"), ("gwt.net", "gwt.manager")]

# Managers know what they manage by its attributes only, and these few tools. The one that serves
# UDP has its socket from net/datagrams.py, which knows nothing of what is in a datagram.
MANAGERS_TOOLS = (
    "gwt.errors",
    "gwt.config",
    "gwt.observe",
    "gwt.net.waiting",
    "gwt.net.timers",
    "gwt.net.aioloop",
    "gwt.net.datagrams",
)
STRANGERS_EXCEPT = {("gwt.manager", "gwt.net"): MANAGERS_TOOLS}

# What would let the outside world into the protocols.
IMPURE = {
    "asyncio",
    "gevent",
    "greenlet",
    "logging",
    "select",
    "selectors",
    "socket",
    "threading",
    "time",
}

# The files in which private attributes of another library are touched, each behind one seam.
PRIVATE_ALLOWED = {
    "protocol/quic.py",
    "protocol/quicend.py",
    "protocol/quiccrypto.py",
    "protocol/quicguard.py",
    "protocol/quicreceive.py",
    "protocol/quicsend.py",
    "protocol/quicpath.py",
    "protocol/h3.py",
    "protocol/websocket.py",
    "protocol/wsshort.py",
}

# Underscored, but public: the methods of named tuples, and what asyncio exports (in `__all__`) to
# those who write event loops.
PUBLIC_UNDERSCORES = {"_asdict", "_fields", "_make", "_replace", "_set_running_loop"}

MAX_LINES = 500


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}

EACH_MODULE = pytest.mark.parametrize("module", list(SOURCES))


def _imports(module: str) -> Iterator[tuple[int, str, str | None]]:
    """Yield the line, the module, and the name taken from it, of every import in a module."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                # "from .net import timers" takes a module, "from .net.timers import Timer" a name.
                inner = f"{base}.{alias.name}"
                yield (
                    (node.lineno, inner, None)
                    if inner in SOURCES
                    else (
                        node.lineno,
                        base,
                        alias.name,
                    )
                )


def _within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def _floor(module: str) -> int | None:
    # "gwt" itself is the front door, not the room that holds all others.
    rooms = [room for room in FLOORS if _within(module, room) and (room != "gwt" or module == room)]
    return FLOORS[max(rooms, key=len)] if rooms else None


def _offence(module: str, target: str) -> str | None:
    """Say why a module may not import another one of gwt, or None."""
    if not _within(target, "gwt"):
        return None
    ours, theirs = _floor(module), _floor(target)
    if ours is None or theirs is None:
        return f"{module if ours is None else target} has no floor: add it to FLOORS"
    if theirs > ours:
        return f"floor {ours} imports {target} of floor {theirs}"
    for one, other in STRANGERS:
        for here, there in ((one, other), (other, one)):
            if _within(module, here) and _within(target, there):
                allowed = STRANGERS_EXCEPT.get((here, there), ())
                if not any(_within(target, room) for room in allowed):
                    return f"{here} and {there} do not know each other: {target}"
    if _within(module, "gwt.manager") and not any(
        _within(target, room) for room in ("gwt.manager", *MANAGERS_TOOLS)
    ):
        return f"managers have no use for {target}"
    return None


@pytest.mark.parametrize(
    ("module", "target", "fine"),
    [
        ("gwt.session", "gwt.stream", True),
        ("gwt.session", "gwt.server.app", False),
        ("gwt.session", "gwt", False),
        ("gwt.cli.serve", "gwt", True),
        ("gwt.errors", "gwt.config", True),
        ("gwt.errors", "gwt.protocol.codes", False),
        ("gwt.protocol.quic", "gwt.net.udp", False),
        ("gwt.net.udp", "gwt.protocol.packets", False),
        ("gwt.net.udp", "gwt.manager.rooms", False),
        ("gwt.server.server", "gwt.client.client", False),
        ("gwt.client.client", "gwt.server", False),
        ("gwt.manager.rooms", "gwt.net.waiting", True),
        ("gwt.manager.rooms", "gwt.net.udp", False),
        ("gwt.manager.rooms", "gwt.net", False),
        ("gwt.manager.rooms", "gwt.protocol.events", False),
        ("gwt.manager.rooms", "gwt.manager.registry", True),
        ("gwt.utils", "gwt.errors", False),
        ("gwt.session", "gevent.event", True),
    ],
)
def test_the_rule_of_imports_itself(module, target, fine):
    assert (_offence(module, target) is None) is fine


@EACH_MODULE
def test_imports_run_downward(module):
    offences = {
        f"{SOURCES[module].relative_to(ROOT)}:{line}: {offence}"
        for line, target, _ in _imports(module)
        if (offence := _offence(module, target))
    }
    assert not offences


@EACH_MODULE
def test_no_module_imports_a_private_name_of_another(module):
    private = [
        f"{SOURCES[module].relative_to(ROOT)}:{line}: {name} of {target}"
        for line, target, name in _imports(module)
        if name and name.startswith("_") and not name.startswith("__")
    ]
    assert not private


@pytest.mark.parametrize("module", [each for each in SOURCES if _within(each, "gwt.protocol")])
def test_protocol_imports_nothing_impure(module):
    imported = {target.partition(".")[0] for _, target, _ in _imports(module)}
    assert not imported & IMPURE


def _run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_protocols_does_not_import_gevent():
    modules = [each for each in SOURCES if _within(each, "gwt.protocol")]
    assert modules
    loaded = _run(
        f"import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in sys.modules if name.partition('.')[0] in ('gevent', 'greenlet')])"
    )
    assert loaded == "[]"


def _private_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    # A class of the module itself, named where super() would reach one of several bases only.
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if node.attr.startswith("__") and node.attr.endswith("__"):
            continue
        if node.attr in PUBLIC_UNDERSCORES:
            continue
        match node.value:
            case ast.Name(id=name) if name in ("self", "cls") or name in own:
                continue
            case ast.Call(func=ast.Name(id="super")):
                continue
        yield node.lineno, ast.unparse(node)


def test_the_rule_of_private_attributes_itself():
    code = (
        "class Own: pass\n"
        "self._a, cls._b, super()._c, x.__name__, t._replace(a=1), Own._h(self)\n"
        "quic._d, self.quic._e, f()._g"
    )
    found = [text for _, text in _private_uses(ast.parse(code))]
    assert sorted(found) == ["f()._g", "quic._d", "self.quic._e"]


@EACH_MODULE
def test_private_attributes_are_touched_by_their_owner_only(module):
    path = SOURCES[module].relative_to(PACKAGE)
    if path.as_posix() in PRIVATE_ALLOWED:
        return
    uses = [f"{path}:{line}: {text}" for line, text in _private_uses(TREES[module])]
    assert not uses


@EACH_MODULE
def test_module_has_a_docstring_and_says_what_it_exports(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), "no docstring"
    if SOURCES[module].name == "__main__.py":
        return
    names = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in names, "no __all__"


@EACH_MODULE
def test_file_is_short(module):
    lines = SOURCES[module].read_text(encoding="utf-8").count("\n")
    assert lines < MAX_LINES


def _labelled(handler: ast.ExceptHandler, lines: list[str]) -> bool:
    # It stands in the handler, or in the comment right above it, and says which of the three
    # places this is: a safety net (root of a greenlet, reader), or a boundary to user code.
    first = handler.lineno - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    text = "\n".join(lines[first : handler.end_lineno]).lower()
    return "safety net" in text or "boundary to user code" in text


def _swallows_everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(kind is None or ast.unparse(kind).endswith("BaseException") for kind in kinds)
    return broad and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


@EACH_MODULE
def test_nothing_swallows_greenlet_exit_or_timeout(module):
    # GreenletExit and gevent.Timeout are no Exceptions: who catches them must pass them on.
    lines = [
        node.lineno
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.ExceptHandler) and _swallows_everything(node)
    ]
    assert not lines


@EACH_MODULE
def test_except_exception_says_why_it_stands_there(module):
    text = SOURCES[module].read_text(encoding="utf-8").splitlines()
    unlabelled = []
    for node in ast.walk(TREES[module]):
        if not isinstance(node, ast.ExceptHandler) or node.type is None:
            continue
        if ast.unparse(node.type) != "Exception":
            continue
        if not _labelled(node, text):
            unlabelled.append(node.lineno)
    assert not unlabelled


class TestFrontDoor:
    """``import gwt``: the public names, and nothing else."""

    @pytest.fixture
    def names(self) -> list[str]:
        import gwt

        # A name is taken as promised only, as long as the module it comes from is not there.
        homes = {name: home for _, home, name in _imports("gwt")}
        return [name for name in gwt.__all__ if homes.get(name, "gwt") in SOURCES]

    def test_public_names_exist_and_are_documented(self, names):
        import gwt

        assert len(names) == len(set(names))
        undocumented = []
        for name in names:
            value = getattr(gwt, name)
            if (inspect.isclass(value) or callable(value)) and not inspect.getdoc(value):
                undocumented.append(name)
        assert not undocumented

    def test_public_names_can_be_seen(self):
        import gwt

        assert set(gwt.__all__) <= set(dir(gwt))

    def test_every_error_is_a_public_name(self):
        import gwt
        from gwt import errors

        assert set(errors.__all__) <= set(gwt.__all__)
        assert all(getattr(gwt, name) is getattr(errors, name) for name in errors.__all__)

    def test_importing_is_light_and_patches_nothing(self):
        heavy = ("aioquic", "cryptography", "gevent", "greenlet", "werkzeug", "wsproto")
        loaded = _run(
            f"import socket, threading, sys\n"
            f"before = socket.socket, threading.Thread.start\n"
            f"import gwt\n"
            f"assert (socket.socket, threading.Thread.start) == before\n"
            f"print([name for name in {heavy!r} if name in sys.modules])"
        )
        assert loaded == "[]"

    def test_using_every_public_name_patches_nothing(self, names):
        patched = _run(
            "import socket, gwt\n"
            "before = socket.socket\n"
            f"for name in {names!r}: getattr(gwt, name)\n"
            "import gevent.monkey\n"
            "print(socket.socket is before and not gevent.monkey.saved)"
        )
        assert patched == "True"

    def test_version_is_the_one_of_the_project(self):
        import gwt

        with open(ROOT / "pyproject.toml", "rb") as file:
            assert gwt.__version__ == tomllib.load(file)["project"]["version"]
