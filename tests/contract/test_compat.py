"""The two halves of `_compat` are alike, and what is private to Keras is there and tested."""

import ast
import pathlib
import re

import pytest

from tf_slipstream import _compat

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "tf_slipstream"
HALVES = [PACKAGE / "_compat" / f"{name}.py" for name in ("keras3", "tf_keras")]


def definitions_of(path):
    """Returns the arguments of a module's functions, and of the methods of its classes, by name."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found[node.name] = {part.name: ast.unparse(part.args) for part in methods}
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node.args)
    return found


def private_names_of(path, with_own=True):
    """Returns private names that a module uses, with or without what it makes of `self`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    of_self = [node for node in attributes if is_of_self(node)]
    made = {node.attr for node in of_self if isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names = {node.attr for node in attributes if not is_of_self(node)}
    names |= {node.attr for node in of_self if with_own or node.attr not in made}
    # As for `getattr`.
    names |= {node.value for node in nodes if isinstance(node, ast.Constant)}
    return {name for name in names if re.fullmatch(r"_[a-z]\w*", str(name))}


def is_of_self(attribute):
    return isinstance(attribute.value, ast.Name) and attribute.value.id == "self"


def test_both_halves_have_the_same_functions():
    one, other = map(definitions_of, HALVES)
    # Keras 3's optimizer has `get_config` with a learning rate by itself.
    del other["BaseOptimizer"]["get_config"]
    assert one == other
    assert set(one) < set(_compat.__all__)


@pytest.mark.parametrize("path", HALVES, ids=lambda path: path.stem)
def test_a_private_name_of_keras_has_its_test(path):
    common = [PACKAGE / "_compat" / f"{name}.py" for name in ("common", "wrapping")]
    names = set().union(*(private_names_of(one) for one in (path, *common)))
    tests = (ROOT / "tests" / "contract" / f"test_{path.stem}.py").read_text()
    # What a subclass of `WrappingOptimizer` defines, and TensorFlow's strategies.
    not_of_keras = {"_build", "_apply", "_step", "_variable_partitioner"}
    assert {name for name in names - not_of_keras if f"`{name}" not in tests} == set()


def test_no_other_module_uses_a_private_name_of_keras():
    tested = "".join(
        (ROOT / "tests" / "contract" / f"test_{path.stem}.py").read_text() for path in HALVES
    )
    of_keras = set(re.findall(r"`(_[a-z]\w*)", tested)) - {"_trackable_children"}
    assert "_learning_rate" in of_keras
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name != "_compat":
            assert not private_names_of(path, with_own=False) & of_keras, path
