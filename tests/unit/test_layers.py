"""Imports point down only, and files are written through `write_atomic` only (DESIGN §2 and §6)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
FLOORS = {
    **{"core": 0, "formats": 1, "physics": 2, "data": 2, "ops": 2, "train": 3, "learn": 4, "jobs": 5, "centres": 6, "portal": 7},
    "roof": 8,  # __init__ and cli: the only modules that may know every room
}
SIDEWAYS = {("physics/seismic", "physics/fields"), ("physics/ocean", "physics/fields")}
EVERYWHERE = {"gewu.__version__"}  # a fact, not a room
WRITERS = {"gewu.core.files", "gewu.core.growing"}  # the modules that may open a file for writing
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
NUMPY_WRITERS = {"save", "savez", "savez_compressed", "savetxt"}
METHOD_WRITERS = {"write_text", "write_bytes", "tofile"}


def room_of(module: str) -> str:
    """Return the room of a dotted module name: `core`, `physics/dft`, ... or `roof` for `gewu`, `gewu.cli`."""
    parts = module.split(".")[1:]
    if parts[:1] == ["physics"] and len(parts) > 1:
        return f"physics/{parts[1]}"
    return parts[0] if parts and parts[0] in FLOORS else "roof"


def floor_of(room: str) -> int:
    return FLOORS[room.split("/")[0]]


def allowed(room: str, target: str) -> bool:
    return room == target or floor_of(target) < floor_of(room) or (room, target) in SIDEWAYS


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything imported anywhere in `tree`, relative imports resolved."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            # `from gewu.physics import dft` imports the room, `from gewu.core import units` a module: the name decides
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem in ("gewu", "gewu.physics") else [stem]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _writes(node: ast.Call) -> bool:
    name, receiver = _called(node), getattr(getattr(node.func, "value", None), "id", "")
    if name in METHOD_WRITERS or (name in NUMPY_WRITERS and receiver in {"np", "numpy", "xp"}):
        return True
    if name not in {"open", "fdopen"} or receiver == "webbrowser":
        return False
    if receiver == "os":  # modes are flags there, so any call is refused; reading goes through `core.files` too
        return ast.unparse(node.args[0]) != "os.devnull"
    is_method = isinstance(node.func, ast.Attribute) and receiver not in {"io", "gzip", "bz2", "lzma"}
    modes = [*node.args[0 if is_method else 1 :][:1], *(k.value for k in node.keywords if k.arg == "mode")]
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)


def breaches(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return what `source`, as the module `module`, does against the rules."""
    tree, found = ast.parse(source), []
    for line, name in imported(tree, module, is_package):
        if name.split(".")[0] == "gewu" and name not in EVERYWHERE and not allowed(room_of(module), room_of(name)):
            found.append(f"{module}:{line} imports {name}: {room_of(module)} must not lean on {room_of(name)}")
        if name.split(".")[0] in PICKLES:
            found.append(f"{module}:{line} imports {name}: no pickle")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    # marshal may make a digest of code (dumps), never read one back
    found += [
        f"{module}:{node.lineno} unmarshals" for node in calls if ast.unparse(node.func) in {"marshal.load", "marshal.loads"}
    ]
    if module not in WRITERS:
        found += [f"{module}:{node.lineno} writes a file itself: use core.files" for node in calls if _writes(node)]
    return found


def modules() -> list[tuple[Path, str, bool]]:
    paths = sorted((SRC / "gewu").rglob("*.py"))
    names = [".".join(path.relative_to(SRC).with_suffix("").parts) for path in paths]
    return [(p, n.removesuffix(".__init__"), n.endswith(".__init__")) for p, n in zip(paths, names, strict=True)]


@pytest.mark.parametrize(("path", "module", "is_package"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down_and_only_core_files_writes(path: Path, module: str, is_package: bool) -> None:
    assert breaches(path.read_text(), module, is_package) == []


def test_every_folder_is_a_room_of_the_plan() -> None:
    folders = {p.name for p in (SRC / "gewu").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders <= set(FLOORS), "a new room needs a floor in DESIGN §2 and in FLOORS"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gewu.core.units", "from gewu.formats import cif"),
        ("gewu.core.units", "def f():\n    import gewu.jobs.run"),
        ("gewu.core.units", "from ..physics.dft import scf"),
        ("gewu.formats.cif", "from gewu import run"),
        ("gewu.formats.cif", "import importlib\nimportlib.import_module('gewu.jobs')"),
        ("gewu.physics.dft.scf", "from gewu.physics.md import forces"),
        ("gewu.physics.dft.scf", "from gewu.physics import md"),
        ("gewu.physics.fields.grid", "from gewu.physics.ocean import state"),
        ("gewu.physics.dft.scf", "from gewu.data import loader"),
        ("gewu.train.layers", "from gewu.learn import potential"),
        ("gewu.jobs.run", "from gewu.cli import main"),
        ("gewu.portal.app", "import gewu.cli"),
        ("gewu.core.machine", "import pickle"),
        ("gewu.core.machine", "def f():\n    from pickle import dumps"),
        ("gewu.core.machine", "marshal.loads(data)"),
        ("gewu.jobs.run", "open('x', 'w')"),
        ("gewu.jobs.run", "open('x', mode='ab')"),
        ("gewu.jobs.run", "path.open('r+')"),
        ("gewu.jobs.run", "open('x', mode)"),
        ("gewu.jobs.run", "io.open('x', 'x')"),
        ("gewu.jobs.run", "os.open('x', flags)"),
        ("gewu.jobs.run", "path.write_text('x')"),
        ("gewu.physics.dft.scf", "np.save('rho.npy', rho)"),
        ("gewu.physics.dft.scf", "rho.tofile('rho.bin')"),
    ],
)
def test_a_planted_breach_is_caught(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gewu.physics.dft.scf", "from gewu.core import units\nfrom gewu.formats.upf import read_upf\nfrom . import basis"),
        ("gewu.physics.ocean.state", "from gewu.physics import fields"),
        ("gewu.jobs.run", "from gewu.physics.dft import engine\nopen('x')\npath.open('rb')\nctx.save('rho', rho)"),
        ("gewu.jobs.run", "from gewu import __version__"),
        ("gewu.cli", "import gewu.portal.app\nfrom gewu.jobs import run"),
        ("gewu.cli", "webbrowser.open(url)\nos.open(os.devnull, os.O_WRONLY)"),
        ("gewu.core.files", "import os\nos.open('x', os.O_CREAT)"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert breaches(source, module) == []
