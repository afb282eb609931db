"""What is sealed and makes no sense is refused with a clear error, never with another exception."""

import contextlib
import copy
import functools
import json
import shutil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.delta.damage import header_of, sealed
from tests.export.processes import run_cli
from tf_slipstream import export
from tf_slipstream.delta.apply import apply_delta
from tf_slipstream.delta.delta_file import DeltaFile, VersionId, write_delta
from tf_slipstream.delta.inspection import inspect
from tf_slipstream.delta.version_record import RECORD, Tensor, read_record

TENSORS = (
    Tensor("k/0", "table", "float32", (5, 2), "table"),
    Tensor("k/1", "bias", "float64", (3,), None),
    Tensor("k/2", "kept", "int64", (4, 1), None),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns header and sections of a small delta of every kind of change."""
    path = tmp_path_factory.mktemp("written") / "delta"
    changes = [
        (TENSORS[0], np.array([1, 4]), [np.ones([2, 2], "float32")]),
        (TENSORS[1], None, [np.zeros(3)]),
        (TENSORS[2], None, None),
    ]
    with write_delta(path, VersionId("0" * 16, 1), VersionId("1" * 16, 2), changes):
        pass
    DeltaFile(path).verify()
    return header_of(path.read_bytes())


def with_change(**fields):
    """Returns a function that alters the first tensor of a header."""
    return lambda header: header["tensors"][0].update(fields)


def with_section(**fields):
    return lambda header: header["sections"][0].update(fields)


MALFORMED = {
    "no kind": (lambda h: h.pop("kind"), "no field 'kind'"),
    "no format": (lambda h: h.pop("format"), "no field 'format'"),
    "no sections": (lambda h: h.pop("sections"), "no field 'sections'"),
    "no base": (lambda h: h.pop("base"), "no field 'base'"),
    "no tensors": (lambda h: h.pop("tensors"), "no field 'tensors'"),
    "unknown field": (lambda h: h.update(extra=1), '"extra", which is not known'),
    "unknown field of a version": (lambda h: h["base"].update(extra=1), "its base has a field"),
    "unknown field of a tensor": (with_change(extra=1), "a tensor has a field"),
    "unknown field of a section": (with_section(extra=1), "a section has a field"),
    "unknown change": (with_change(change="some"), "has \"some\" as 'change' where one of none"),
    "version as a text": (lambda h: h["result"].update(version="2"), "'version' where an integer"),
    "version that is true": (lambda h: h["result"].update(version=True), "true as 'version'"),
    "id of other letters": (lambda h: h["base"].update(id="x" * 16), "16 hexadecimal digits"),
    "repeated tensor": (lambda h: h["tensors"].append(h["tensors"][0]), "the same key"),
    "repeated name": (lambda h: h["tensors"][1].update(name="table"), "the same name"),
    "repeated section": (lambda h: h["sections"].append(h["sections"][0]), "two sections '0.ids'"),
    "section of negative size": (with_section(size=-8), "-8 as 'size'"),
    "section too large": (with_section(size=1 << 62), "do not add up"),
    "section of another name": (with_section(name="9.ids"), "not those of its changes"),
    "shape of texts": (with_change(shape=["5", 2]), "'shape' where a list of integers"),
    "negative shape": (with_change(shape=[-5, 2]), "'shape' where a list of integers"),
    "shape without rows": (with_change(shape=[]), "2 rows changed, of 0"),
    "rows of no bytes": (with_change(shape=[5, 0]), "rows of no bytes"),
    "huge shape": (with_change(shape=[1 << 62, 1 << 62]), "not those of its changes"),
    "more rows than there are": (with_change(shape=[1, 2]), "2 rows changed, of 1"),
    "rows of a whole tensor": (lambda h: h["tensors"][1].update(num_rows=1), "1 rows changed, of"),
    "rows of strings": (with_change(dtype="string"), "is string, which a delta cannot change"),
    "rows of another size": (with_change(dtype="float64"), "not those of its changes"),
    "no object": (lambda h: b"[1, 2]", "a list where an object belongs"),
    "no JSON": (lambda h: b"{", "no JSON"),
    "no UTF-8": (lambda h: b'{"kind": "\xff"}', "no JSON"),
    "not a number": (lambda h: b'{"format": NaN}', "as 'format'"),
    "huge number": (lambda h: b'{"format": ' + b"9" * 9999 + b"}", "no JSON"),
    "repeated field": (lambda h: b'{"kind": "delta", "kind": "delta"}', "repeats a name"),
    "nested deeply": (lambda h: b'{"kind": ' + b"[" * 100_000, "nested too deeply"),
    "nested deeply in a field": (
        lambda h: h.update(base=functools.reduce(lambda inner, _: [inner], range(500), [])),
        "a list (as 'base' )?where an object",
    ),
    "another format": (lambda h: h.update(format=7), "has format 7, .* reads format 1"),
    "another kind": (lambda h: h.update(kind="mark"), "it is a mark"),
}


@pytest.mark.parametrize("alter, expected", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_delta_is_refused_and_why(alter, expected, written, tmp_path):
    header, sections = copy.deepcopy(written[0]), written[1]
    altered = alter(header)
    (tmp_path / "delta").write_bytes(
        sealed(altered if isinstance(altered, bytes) else header, sections)
    )
    with pytest.raises(export.ExportError, match=expected) as error:
        inspect(tmp_path / "delta")
    assert len(str(error.value)) < 500 and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("ids", [[-1, 4], [4, 1], [1, 1], [1, 5], [2**31 - 1, -(2**31)]])
def test_ids_that_make_no_sense_are_refused(ids, tmp_path):
    changes = [(TENSORS[0], np.array(ids), [np.ones([2, 2], "float32")])]
    with write_delta(tmp_path / "d", VersionId("0" * 16, 1), VersionId("1" * 16, 2), changes):
        pass
    with pytest.raises(export.ExportError, match="ids of 'table' make no sense"):
        inspect(tmp_path / "d")


def test_the_program_says_so_in_one_line(written, tmp_path):
    header = copy.deepcopy(written[0])
    header["tensors"][0]["change"] = "\x1b[2J\nsome"
    (tmp_path / "delta").write_bytes(sealed(header, written[1]))
    result = run_cli("inspect", tmp_path / "delta")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("tf-slipstream inspect: error: ") and "\x1b" not in line


def test_names_do_not_control_the_terminal(written, tmp_path):
    header = copy.deepcopy(written[0])
    header["tensors"][0]["name"] = "\x1b[2J\ud800 Größe"
    (tmp_path / "delta").write_bytes(sealed(header, written[1]))
    result = run_cli("inspect", tmp_path / "delta")
    assert result.returncode == 0, result.stderr
    assert r"\x1b[2J\ud800 Größe" in result.stdout


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places_of(value, way=()):
    """Yields the way to each part of a JSON value, and to the whole."""
    yield way
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places_of(value[key], (*way, key))


@st.composite
def alterations(draw):
    """Returns a function that alters a JSON value somewhere, drawn by Hypothesis."""
    number, what, new = draw(st.integers(0, 999)), draw(st.sampled_from("xdrc")), draw(JSON)

    def alter(value):
        ways = list(places_of(value))
        *way, last = ways[number % len(ways)] or (None,)
        if last is None:
            return new
        within = value
        for key in way:
            within = within[key]
        if what == "d":
            del within[last]
        elif what == "c" and isinstance(within, list):
            within.append(copy.deepcopy(within[last]))
        elif what == "c":
            within[str(new)] = within[last]
        else:
            within[last] = new
        return value

    return alter


@contextlib.contextmanager
def only_export_errors():
    with contextlib.suppress(export.ExportError):
        yield


def check_delta(path, base, out):
    """Reads and applies a delta that may make sense or not."""
    with only_export_errors():
        inspect(path)
    with only_export_errors():
        apply_delta(base, path, out)
    # Whether it was made or not, nothing else was.
    assert {each.name for each in out.parent.iterdir()} <= {"delta", out.name}
    shutil.rmtree(out, ignore_errors=True)


@pytest.fixture(scope="module")
def of_base(published):
    """Returns header and sections of a delta that fits the published base."""
    return header_of(published.delta.read_bytes())


@settings(max_examples=300)
@given(st.lists(alterations(), min_size=1, max_size=3))
def test_no_header_raises_anything_else(published, of_base, tmp_path_factory, alter_all):
    header, folder = copy.deepcopy(of_base[0]), tmp_path_factory.mktemp("fuzz")
    for alter in alter_all:
        header = alter(header)
    (folder / "delta").write_bytes(sealed(header, of_base[1]))
    check_delta(folder / "delta", published.base, folder / "2")


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 7)), min_size=1, max_size=3))
def test_no_flipped_bits_of_a_sealed_header_raise_anything_else(
    published, of_base, tmp_path_factory, flips
):
    text, folder = bytearray(json.dumps(of_base[0]).encode()), tmp_path_factory.mktemp("fuzz")
    for place, bit in flips:
        text[place % len(text)] ^= 1 << bit
    (folder / "delta").write_bytes(sealed(bytes(text), of_base[1]))
    check_delta(folder / "delta", published.base, folder / "2")


@settings(max_examples=100)
@given(JSON)
def test_no_json_raises_anything_else(written, tmp_path_factory, header):
    path = tmp_path_factory.mktemp("fuzz") / "delta"
    path.write_bytes(sealed(header, written[1]))
    with pytest.raises(export.ExportError, match="not an intact delta"):
        inspect(path)


@settings(max_examples=150)
@given(alterations(), st.booleans())
def test_no_record_raises_anything_else(published, tmp_path_factory, alter, is_of_format_1):
    folder = tmp_path_factory.mktemp("fuzz")
    value = json.loads((published.base / RECORD).read_text())
    if is_of_format_1:
        del value["files"], value["sha256"]
        value["format"] = 1
    before = copy.deepcopy(value)
    value = alter(value)
    assume(value != before)
    (folder / RECORD).parent.mkdir()
    (folder / RECORD).write_text(json.dumps(value))
    if not is_of_format_1:
        with pytest.raises(export.ExportError, match="cannot be read"):
            read_record(folder)
        return
    with only_export_errors():
        read_record(folder)
