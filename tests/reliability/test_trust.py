"""What files of others cannot do: lead out of their folder, fill the memory, run; and umask."""

import os
import shutil
import stat
import zlib

import pytest

from tests.delta.conftest import published
from tests.delta.damage import varint
from tests.reliability.fuzzing import inspect
from tf_slipstream import StalenessPolicy, export, server
from tf_slipstream.analysis.open_log import open_log
from tf_slipstream.delta import tensor_index
from tf_slipstream.delta.apply import apply_delta
from tf_slipstream.delta.crc32c import crc32c, masked
from tf_slipstream.export.marks import unpack_bitmap

__all__ = ["published"]


@pytest.fixture
def base(published, tmp_path):
    shutil.copytree(published.base, tmp_path / "1")
    return tmp_path / "1"


@pytest.mark.parametrize("target", ["secret", "folder", "..", ".", "nothing", "/dev/zero"])
def test_a_link_that_leads_out_of_a_version_is_refused(target, base, published, tmp_path):
    """Of a folder that is linked into itself twice, 2^40 files would be read."""
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "folder").mkdir()
    for name in ("one", "two"):
        (base / "assets" / name).symlink_to(target if target in (".", "..") else tmp_path / target)
    with pytest.raises(export.ExportError, match="link that leads out"):
        apply_delta(base, published.delta, tmp_path / "2")
    with pytest.raises(export.ExportError, match="link that leads out"):
        inspect(base)
    assert not (tmp_path / "2").exists()


def test_a_version_that_is_a_link_and_links_within_it_are_read(base, published, tmp_path):
    data = base / "saved_model.pb"
    data.rename(base / "assets" / "graph")
    data.symlink_to("assets/graph")
    (tmp_path / "linked").symlink_to("1")
    applied = apply_delta(tmp_path / "linked", published.delta, tmp_path / "2")
    assert applied.unverified == ("assets/graph",)
    assert (tmp_path / "2" / "saved_model.pb").read_bytes() == data.read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "2").rglob("*"))


def test_what_is_no_file_is_refused(base, published, tmp_path):
    os.mkfifo(base / "assets" / "pipe")
    with pytest.raises(export.ExportError, match="neither a file nor a folder"):
        apply_delta(base, published.delta, tmp_path / "2")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_all_that_is_made_has_the_permissions_of_the_umask(mask, published, tmp_path):
    before = os.umask(mask)
    try:
        apply_delta(published.base, published.delta, tmp_path / "2")
    finally:
        os.umask(before)
    linked = [path for path in (tmp_path / "2").rglob("*") if path.stat().st_nlink > 1]
    for path in [tmp_path / "2", *(tmp_path / "2").rglob("*")]:
        if path.is_dir() or path not in linked:  # linked ones are the base's
            most = 0o777 if path.is_dir() else 0o666
            assert stat.S_IMODE(path.stat().st_mode) == most & ~mask, path


def test_a_small_mark_cannot_become_large():
    bomb = zlib.compress(bytes(1 << 26), 9)
    # One byte more than there should be: enough to be refused.
    assert unpack_bitmap(bomb, 128).size == 129


def test_a_small_index_cannot_hold_large_keys(tmp_path):
    """Keys share their beginning with the one before: 5 bytes may make another of a megabyte."""
    key = b"k" * 20_000
    entries = varint(0) + varint(len(key)) + varint(0) + key
    for number in range(20_000):
        entries += (
            varint(len(key))
            + varint(2)
            + varint(0)
            + b"%c%c"
            % (
                33 + number % 90,
                33 + number // 90 % 90,
            )
        )
    block = entries + bytes(4) + (1).to_bytes(4, "little")

    def stored(data):
        return data + b"\0" + masked(crc32c(data + b"\0")).to_bytes(4, "little")

    handle = varint(0) + varint(len(block))
    top = varint(0) + varint(1) + varint(len(handle)) + b"z" + handle
    top += bytes(4) + (1).to_bytes(4, "little")
    footer = varint(0) + varint(0) + varint(len(block) + 5) + varint(len(top))
    footer = footer.ljust(40, b"\0") + tensor_index._MAGIC.to_bytes(8, "little")
    (tmp_path / "v.index").write_bytes(stored(block) + stored(top) + footer)
    with pytest.raises(export.ExportError, match="keys are far larger"):
        tensor_index.TensorIndex(tmp_path / "v.index")


def test_quotes_that_end_nowhere_get_a_sentence(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b'label,user\n1,"a"\n0,b\rc\n')
    with pytest.raises(ValueError, match=r"log\.csv.*quoted cells cannot be read"):
        list(open_log(path).chunks())


@pytest.mark.parametrize(
    "field", ["threshold", "max_threshold", "min_drift", "skip_below", "popular_share"]
)
def test_a_number_beyond_every_float_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        StalenessPolicy(**{field: 10**400})


@pytest.mark.parametrize("field, most", [("max_age", 2**53), ("max_sleep", 2**31 - 1)])
def test_an_integer_that_the_library_cannot_count_in_is_refused_by_name(field, most):
    assert StalenessPolicy(**{field: most}).numbers(0.0)[field] == most
    with pytest.raises(ValueError, match=f"`{field}` must be at most {most}"):
        StalenessPolicy(**{field: most + 1})


def test_a_server_says_that_its_port_is_open_to_all():
    said = server.greeting("ps", 1, "10.0.0.3:4000")
    assert "ps:1 listens at 10.0.0.3:4000" in said
    assert "every address of this machine" in said and "no password" in said
