"""Files as text: compressed, and in base64."""

import base64
import json
import lzma
import pathlib

FOLDER = pathlib.Path(__file__).parent
_LINE = 96


def pack(folder, expected, path):
    """Writes the files of a folder, and what is expected of them, as JSON."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            data = base64.b64encode(lzma.compress(file.read_bytes())).decode()
            name = file.relative_to(folder).as_posix()
            files[name] = [data[i : i + _LINE] for i in range(0, len(data), _LINE)]
    with open(path, "w") as out:
        json.dump({"expected": expected, "files": files}, out, indent=0)
        out.write("\n")


def unpack(name, folder):
    """Writes the files of a packed folder, and returns what is expected of them.

    Args:
        name: Of the JSON file, without suffix.
        folder: Where to write.
    """
    content = json.loads((FOLDER / f"{name}.json").read_text())
    for name, lines in content["files"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.decompress(base64.b64decode("".join(lines))))
    return content["expected"]
