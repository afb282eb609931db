"""`fingerprint.pb`, with which TensorFlow tells SavedModels apart.

Besides hashes of the graph, which a delta leaves alone, it has one of the checkpoint's index and a
number that is unlike that of any other SavedModel. Hashes are FarmHash's Fingerprint64.
"""

from tf_slipstream.delta import wire

# Fields of FingerprintDef.
_CHECKPOINT_HASH, _UUID = 5, 7

_MASK = (1 << 64) - 1
_K0, _K1, _K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def updated_fingerprint(fingerprint, index, uuid):
    """Returns `fingerprint.pb` for a changed checkpoint.

    Args:
        fingerprint: Bytes of the base's file.
        index: Bytes of the new `variables.index`.
        uuid: An int of 128 bits, unlike any other version's.
    """
    new = {
        _CHECKPOINT_HASH: (wire.VARINT, farm_fingerprint(index)),
        _UUID: (wire.BYTES, str(uuid).encode()),
    }
    fields = wire.read_fields(fingerprint)
    return wire.write_fields((f.number, *new.get(f.number, (f.kind, f.value))) for f in fields)


def farm_fingerprint(data):
    """Returns FarmHash's Fingerprint64 of bytes (farmhashna::Hash64)."""
    size = len(data)
    if size <= 64:
        return _of_short(data)
    x = 81
    y = (81 * _K1 + 113) & _MASK
    z = (_shift_mix((y * _K2 + 113) & _MASK) * _K2) & _MASK
    v, w = (0, 0), (0, 0)
    x = (x * _K2 + _word(data, 0)) & _MASK
    last = (size - 1) // 64 * 64
    for at in range(0, last, 64):
        x = (_rotated(x + y + v[0] + _word(data, at + 8), 37) * _K1) & _MASK
        y = (_rotated(y + v[1] + _word(data, at + 48), 42) * _K1) & _MASK
        x ^= w[1]
        y = (y + v[0] + _word(data, at + 40)) & _MASK
        z = (_rotated(z + w[0], 33) * _K1) & _MASK
        v = _weak_hash(data, at, v[1] * _K1, x + w[0])
        w = _weak_hash(data, at + 32, z + w[1], y + _word(data, at + 16))
        z, x = x, z
    return _of_last_block(data, size, x, y, z, v, w)


def _of_last_block(data, size, x, y, z, v, w):
    at = size - 64
    mul = (_K1 + ((z & 0xFF) << 1)) & _MASK
    w = ((w[0] + ((size - 1) & 63)) & _MASK, w[1])
    v = ((v[0] + w[0]) & _MASK, v[1])
    w = ((w[0] + v[0]) & _MASK, w[1])
    x = (_rotated(x + y + v[0] + _word(data, at + 8), 37) * mul) & _MASK
    y = (_rotated(y + v[1] + _word(data, at + 48), 42) * mul) & _MASK
    x ^= (w[1] * 9) & _MASK
    y = (y + v[0] * 9 + _word(data, at + 40)) & _MASK
    z = (_rotated(z + w[0], 33) * mul) & _MASK
    v = _weak_hash(data, at, v[1] * mul, x + w[0])
    w = _weak_hash(data, at + 32, z + w[1], y + _word(data, at + 16))
    z, x = x, z
    return _hash_16(
        _hash_16(v[0], w[0], mul) + _shift_mix(y) * _K0 + z, _hash_16(v[1], w[1], mul) + x, mul
    )


def _of_short(data):
    size = len(data)
    mul = (_K2 + size * 2) & _MASK
    if size > 32:
        a, b = _word(data, 0) * _K2, _word(data, 8)
        c, d = _word(data, size - 8) * mul, _word(data, size - 16) * _K2
        y = (_rotated(a + b, 43) + _rotated(c, 30) + d) & _MASK
        z = _hash_16(y, a + _rotated(b + _K2, 18) + c, mul)
        e, f = _word(data, 16) * mul, _word(data, 24)
        g, h = (y + _word(data, size - 32)) * mul, (z + _word(data, size - 24)) * mul
        return _hash_16(_rotated(e + f, 43) + _rotated(g, 30) + h, e + _rotated(f + a, 18) + g, mul)
    if size > 16:
        a, b = _word(data, 0) * _K1, _word(data, 8)
        c, d = _word(data, size - 8) * mul, _word(data, size - 16) * _K2
        return _hash_16(
            _rotated(a + b, 43) + _rotated(c, 30) + d, a + _rotated(b + _K2, 18) + c, mul
        )
    if size >= 8:
        a, b = _word(data, 0) + _K2, _word(data, size - 8)
        c = _rotated(b, 37) * mul + a
        return _hash_16(c, (_rotated(a, 25) + b) * mul, mul)
    if size >= 4:
        return _hash_16(size + (_word(data, 0, 4) << 3), _word(data, size - 4, 4), mul)
    if size > 0:
        y = data[0] + (data[size >> 1] << 8)
        z = size + (data[-1] << 2)
        return (_shift_mix((y * _K2 ^ z * _K0) & _MASK) * _K2) & _MASK
    return _K2


def _word(data, at, size=8):
    return int.from_bytes(data[at : at + size], "little")


def _rotated(value, by):
    value &= _MASK
    return (value >> by | value << (64 - by)) & _MASK


def _shift_mix(value):
    value &= _MASK
    return value ^ value >> 47


def _hash_16(u, v, mul):
    u, v = u & _MASK, v & _MASK
    a = _shift_mix((u ^ v) * mul)
    return (_shift_mix((v ^ a) * mul) * mul) & _MASK


def _weak_hash(data, at, a, b):
    w, x, y, z = (_word(data, at + i) for i in (0, 8, 16, 24))
    a = (a + w) & _MASK
    b = _rotated(b + a + z, 21)
    c = a
    a = (a + x + y) & _MASK
    b = (b + _rotated(a, 44)) & _MASK
    return (a + z) & _MASK, (b + c) & _MASK
