"""Imports point one way, from the harness and the tools down to the layers.

Imports inside functions count like others.
"""

import ast
import graphlib
import pathlib
import sys
from typing import NamedTuple

import pytest

import diffstride
from diffstride import registration

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "diffstride"

# Bottom first. A room is a module or a package. It may import rooms of the
# lines below its own, and no others.
LAYERS = (
    "arguments errors formatting internals numerics environment "
    "settings registration",
    "files startup masks optimization composite datasets",
    "fourier hosts static waves",
    "runs devices resampling data",
    "strided",
    "windows",
    "pooling profiling dynopool",
    "parts",
    "residual",
    "resizing resnet schedule surgery antialiasing cosine",
    "budget diagnostics audio_cnn tasks",
    "cost logger recalibration",
    "folding rounding",
    "hardening",
    "compute conversion",
    "compute_budget networks",
    "callbacks",
    "stage choosing",
    "ending",
    "train",
    "config",
    "counting main",
)
TOOLS = ("sweep", "report", "search")
# Each trial of a search is made as a run of a sweep is.
BUILT_ON = {"search": "sweep"}
LIGHT = set(
    "errors formatting settings files runs registration startup sweep".split()
)
LIBRARY = set(
    "arguments internals numerics masks optimization composite static "
    "fourier waves resampling strided pooling profiling parts resizing "
    "residual resnet schedule surgery antialiasing cosine dynopool windows "
    "budget diagnostics audio_cnn logger cost compute compute_budget "
    "folding rounding hardening networks formatting conversion recalibration "
    "tasks".split()
)
BACKENDS = {"tensorflow", "jax", "torch"}
RANK = {
    room: rank for rank, layer in enumerate(LAYERS) for room in layer.split()
}


class Import(NamedTuple):
    """`module` imports `name`, in a line, at its top or in a function."""

    module: str
    name: str
    line: int
    lazy: bool

    def __str__(self):
        path = self.module.replace(".", "/")
        return f"diffstride/{path}, line {self.line}, imports {self.name}"

    @property
    def importer(self):
        return self.module.partition(".")[0]

    @property
    def room(self):
        """Room that is imported, or `None` if it is not of this package."""
        top, _, rest = self.name.partition(".")
        return rest.partition(".")[0] if top == "diffstride" else None

    @property
    def top(self):
        return self.name.partition(".")[0]


def modules():
    """Name of each module, without `diffstride.`, and its path."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts:  # `diffstride` itself is lazy: what it names is looked up.
            names[".".join(parts)] = path
    return names


MODULES = modules()


def full_name(package, name):
    """What `from package import name` reaches."""
    if package == "diffstride" and name in diffstride._MODULES:
        return f"diffstride.{diffstride._MODULES[name]}"
    inner = f"{package}.{name}"
    known = inner.removeprefix("diffstride.") in MODULES
    return inner if known or package == "diffstride" else package


def imports_of(module, path):
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            names = [full_name(node.module, alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(module, name, node.lineno, id(node) not in top)


IMPORTS = [
    each
    for module, path in MODULES.items()
    for each in imports_of(module, path)
]


def refuse(wrong):
    if found := [str(each) for each in IMPORTS if wrong(each)]:
        pytest.fail("\n".join(found), pytrace=False)


def test_imports_in_functions_are_found(tmp_path):
    path = tmp_path / "late.py"
    path.write_text(
        "import keras\n"
        "def late():\n"
        "    from diffstride import DiffStride, config\n"
    )
    found = [(each.room, each.lazy) for each in imports_of("pooling", path)]
    assert found == [(None, False), ("pooling", True), ("config", True)]


def test_each_room_has_a_place():
    rooms = {module.partition(".")[0] for module in MODULES}
    assert not sorted(rooms - set(RANK) - set(TOOLS)), "not in LAYERS"


def test_no_import_points_upwards():
    def upwards(each):
        if each.importer in TOOLS or each.room in (None, each.importer):
            return False
        return RANK.get(each.room, len(LAYERS)) >= RANK[each.importer]

    refuse(upwards)


def test_tools_import_the_library_and_light_modules_only():
    def wrong(each):
        own = {each.importer, BUILT_ON.get(each.importer), None}
        allowed = LIBRARY | LIGHT - {*TOOLS} | own
        return each.importer in TOOLS and each.room not in allowed

    refuse(wrong)


def test_no_modules_import_each_other():
    graph = {
        module: {
            each.name.removeprefix("diffstride.")
            for each in IMPORTS
            if each.module == module and each.room
        }
        for module in MODULES
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_registration_knows_what_the_layers_import():
    """Where one of these imports keras, registering would go in a circle."""
    reached, new = set(), {*registration.LAYERS}
    while new:
        reached |= new
        found = {each.room for each in IMPORTS if each.module in new}
        new = found - reached - {None}
    assert registration._NEEDED == reached


def test_the_library_imports_keras_and_numpy_only():
    def wrong(each):
        allowed = {"keras", "numpy", "diffstride", *sys.stdlib_module_names}
        if each.lazy:
            allowed |= BACKENDS
        return each.importer in LIBRARY and each.top not in allowed

    refuse(wrong)


def test_what_the_sweep_imports_is_light():
    def wrong(each):
        allowed = {"diffstride", *sys.stdlib_module_names}
        if each.module == "sweep.cluster" and each.lazy:
            allowed |= {"dask", "distributed"}
        return each.importer in LIGHT and each.top not in allowed

    refuse(wrong)


def test_gin_is_known_to_config_and_main_only():
    refuse(
        lambda each: (
            each.top == "gin" and each.importer not in ("config", "main")
        )
    )


def test_private_keras_and_tensorflow_are_reached_through_internals():
    private = ("keras.src", "tensorflow.python")
    refuse(
        lambda each: (
            each.name.startswith(private) and each.importer != "internals"
        )
    )
