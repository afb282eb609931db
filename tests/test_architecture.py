"""Checks that imports and includes point one way, and that each folder says what belongs in it."""

import ast
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "tf_slipstream"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
OPTIONAL_PACKAGES = ("pandas", "pyarrow", "matplotlib", "prometheus_client", "tqdm")

# From the bottom up: a module imports from its own layer and from those below.
LAYERS = (
    {"file_errors"},
    {"_compat", "combiner", "delta", "policy"},
    {"state"},
    {"ops", "update_rules"},
    {"row_wise_adagrad"},
    {"engine"},
    {"_keras_hooks"},
    {"ids", "initial_rows", "stored_rows"},
    {"table_layer"},
    {"field_layout"},
    {"collection", "embedding", "optimizer"},
    {"model_tables", "swapping"},
    {"analysis", "callbacks", "cli", "comparison", "copying", "data", "distribute", "export"}
    | {"resizing", "selection", "server", "vocabulary"},
    {PACKAGE},
)

# What the folders below may import beside themselves and the standard library: folders of ours, and
# libraries.
ALLOWED_IMPORTS = {
    "analysis": ({"file_errors"}, {"numpy", "pyarrow", "tensorflow"}),
    "comparison": ({"analysis"}, {"numpy"}),
    "data": ({"file_errors"}, {"numpy", "pyarrow", "tensorflow"}),
    "delta": ({"file_errors"}, {"numpy"}),
    "state": ({"policy"}, {"numpy", "tensorflow"}),
    "ops": ({"state"}, {"numpy", "tensorflow"}),
    "update_rules": (set(), {"numpy", "tensorflow"}),
}


def tree_of(module):
    return ast.parse(MODULES[module].read_text())


def imports_of(module):
    """Returns full names of what a module imports, anywhere in it: modules, or things in them."""
    names = set()
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*(parts if node.level else []), *filter(None, [node.module])]
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def own_imports_of(module):
    """Returns the modules of the package that a module imports."""
    found = set()
    for name in imports_of(module):
        if name.split(".")[0] == PACKAGE:
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found - {module}


def part_of(module):
    """Returns the file or folder of the package that a module is in, without suffix."""
    return module.split(".")[1] if "." in module else module


def layer_of(module):
    (layer,) = [i for i, parts in enumerate(LAYERS) if part_of(module) in parts]
    return layer


def test_the_modules_are_found():
    assert {f"{PACKAGE}.ops._library", f"{PACKAGE}.optimizer", PACKAGE} <= set(MODULES)
    # `from tf_slipstream.ops import _library`, and `from tf_slipstream.ops.live_slices import ...`.
    assert own_imports_of(f"{PACKAGE}.ops.apply_rows") == {
        f"{PACKAGE}.ops._checks",
        f"{PACKAGE}.ops._library",
        f"{PACKAGE}.ops._tables",
        f"{PACKAGE}.ops.bags",
        f"{PACKAGE}.ops.live_slices",
        f"{PACKAGE}.ops.row_updates",
        f"{PACKAGE}.state.schema",
    }


def test_every_module_is_in_one_layer():
    parts = [part for layer in LAYERS for part in layer]
    assert sorted(parts) == sorted({part_of(module) for module in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_layer_above_its_own(module):
    above = {m for m in own_imports_of(module) if layer_of(m) > layer_of(module)}
    assert not above


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: own_imports_of(module) for module in MODULES}
    # Raises CycleError, with the circle in it.
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(MODULES)


@pytest.mark.parametrize("folder", ALLOWED_IMPORTS)
def test_a_lower_folder_imports_only_itself_and_what_it_may(folder):
    folders, libraries = ALLOWED_IMPORTS[folder]
    modules = [module for module in MODULES if part_of(module) == folder]
    assert modules
    for module in modules:
        own = {part_of(imported) for imported in own_imports_of(module)}
        others = {name.split(".")[0] for name in imports_of(module)} - {PACKAGE}
        assert own <= folders | {folder}, module
        assert others <= libraries | set(sys.stdlib_module_names), module


def test_only_the_library_module_loads_a_library():
    loaders = {"load_op_library", "load_library", "CDLL", "cdll", "LoadLibrary", "ctypes", "cffi"}
    found = {module for module in MODULES if loaders & _words_of(module)}
    assert found == {f"{PACKAGE}.ops._library"}


def test_only_the_compat_folder_knows_which_keras_is_in_use():
    for module in MODULES:
        kerases = {"keras", "tf_keras"} & {name.split(".")[0] for name in imports_of(module)}
        asks = "TF_USE_LEGACY_KERAS" in _words_of(module)
        through_tensorflow = any(
            isinstance(node, ast.Attribute)
            and node.attr == "keras"
            and isinstance(node.value, ast.Name)
            and node.value.id in ("tf", "tensorflow")
            for node in ast.walk(tree_of(module))
        )
        knows = part_of(module) == "_compat"
        assert knows or not (kerases or asks), module
        assert not through_tensorflow, module


def _words_of(module):
    """Returns names, attributes, imports and whole strings of a module: no prose."""
    words = {part for name in imports_of(module) for part in name.split(".")}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Constant):
            words.add(node.value)
    return words


def _includes(folder):
    """Yields, for each C++ or CUDA source of a folder, its path and what it includes."""
    sources = [
        path
        for path in sorted((ROOT / "custom_ops" / folder).iterdir())
        if path.suffix in (".h", ".cc", ".cpp", ".cu", ".cuh")
    ]
    assert sources
    for path in sources:
        for mark, header in re.findall(
            r'^\s*#\s*include\s*([<"])(.*?)[>"]', path.read_text(), re.M
        ):
            yield path, mark, header


def test_kernels_include_only_their_own_and_system_headers():
    for path, mark, header in _includes("kernels"):
        if mark == '"':
            assert "/" not in header and (path.parent / header).exists(), (path, header)
        else:
            libraries = ("tensorflow", "tsl", "xla", "absl", "Eigen", "eigen3", "unsupported")
            assert header.split("/")[0] not in libraries, (path, header)


def test_the_harness_includes_kernels_and_cuda_alone():
    for path, mark, header in _includes("harness"):
        if mark == '"' and not (path.parent / header).exists():
            assert header.startswith("../kernels/") or header == "../tests/test_support.h"
        elif mark == "<":
            assert "/" not in header, (path, header)


def test_the_glue_includes_no_more_than_kernels_and_tensorflow():
    for path, mark, header in _includes("tf"):
        if mark == '"' and not (path.parent / header).exists():
            assert header.split("/")[0] in ("tensorflow", "absl", "xla"), (path, header)
        elif "/" in header:
            assert header.startswith("../kernels/"), (path, header)


FOLDERS = sorted({path.parent for path in MODULES.values()}) + [
    ROOT / "custom_ops" / "harness",
    ROOT / "custom_ops" / "kernels",
    ROOT / "custom_ops" / "tf",
]


@pytest.mark.parametrize("folder", [str(path.relative_to(ROOT)) for path in FOLDERS])
def test_a_folder_says_what_belongs_in_it_and_how_to_add_to_it(folder):
    folder = ROOT / folder
    if (folder / "README.md").exists():
        text = (folder / "README.md").read_text()
    else:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert len(text.splitlines()) >= 3
    assert re.search(r"\b[Tt]o\s+add\b", text)


def test_importing_needs_none_of_the_optional_packages():
    """Not even where one is installed: `None` in `sys.modules` makes importing it an error."""
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL_PACKAGES})); import {PACKAGE}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert result.returncode == 0, result.stderr


PAGE = (ROOT / "docs" / "inside" / "architecture.md").read_text()


def test_the_page_names_the_folders_that_there_are():
    named = re.findall(r"^\| `((?:tf_slipstream|custom_ops)/[a-z_/]*)` \|", PAGE, re.M)
    package = {path.parent.relative_to(ROOT) for path in MODULES.values()}
    sources = {path.parent for path in (ROOT / "custom_ops").glob("*/*.cc")}
    there = package | {path.relative_to(ROOT) for path in sources}
    assert sorted(named) == sorted(f"{folder.as_posix()}/" for folder in there)


def test_the_page_names_the_layers_that_imports_are_held_to():
    (block,) = re.findall(r"```layers\n(.*?)```", PAGE, re.S)
    assert [set(line.split()) for line in block.splitlines()[::-1]] == list(LAYERS)


def test_every_file_that_the_page_names_exists():
    folders = ("", "docs", "tf_slipstream", "custom_ops/kernels", "custom_ops/tf")
    names = re.findall(r"`([\w/]+\.(?:py|cc|h|md))`", PAGE)
    assert len(names) > 30
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in folders), name


def test_who_uses_the_registry_is_who_the_page_says():
    registry = f"{PACKAGE}.engine.registry"
    users = {m for m in MODULES if registry in own_imports_of(m) | imports_of(m)}
    (table,) = re.findall(r"asks or tells the registry \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.S)
    named = re.findall(r"^\| `([\w/]+)\.py`", table, re.M)
    assert users == {f"{PACKAGE}.{name.replace('/', '.')}" for name in named}


def test_a_field_of_a_policy_is_four_edits_in_three_files():
    """Counted for `min_drift`, which has a range, a default and one effect."""
    field = "min_drift"
    named = {}
    for path in [*MODULES.values(), *(ROOT / "custom_ops").glob("[kt]*/*.[hc]*")]:
        # The forecast states the state machine once more, as the tests' oracle does.
        if path.parent.name == "tests" or path.name == "popularity.py":
            continue
        if path.suffix == ".py":
            nodes = ast.walk(ast.parse(path.read_text()))
            words = [getattr(n, "id", getattr(n, "attr", getattr(n, "value", None))) for n in nodes]
            count = words.count(field)
        else:
            code = re.sub(r"//.*", "", path.read_text())
            count = len(re.findall(rf"\b{field}\b", code))
        if count:
            named[path.relative_to(ROOT).as_posix()] = count
    assert named == {
        "tf_slipstream/policy.py": 2,
        "custom_ops/kernels/schema.h": 1,
        "custom_ops/kernels/staleness.h": 1,
    }
    (table,) = re.findall(r"\| edit \| file \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.S)
    assert sorted(re.findall(r"`([\w/]+\.\w+)` \|$", table, re.M)) == sorted(
        path for path, count in named.items() for _ in range(count)
    )


def test_the_optimizer_is_a_surface():
    assert len(MODULES[f"{PACKAGE}.optimizer"].read_text().splitlines()) < 250
