"""Make golden/gsi: files that every decoder must read, the checksums of their symbols, and their pictures.

Run `python tests/golden/make_gsi.py` only where a change of the format is meant; say why in the commit.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "kernels")]  # what is installed comes first


def main() -> None:
    from support.gsi_cases import cases

    from splatexp.image.codec.decode import decode
    from splatexp.image.codec.gsi import dump, load

    folder = Path(__file__).parent / "gsi"
    folder.mkdir(exist_ok=True)
    symbols, pictures = {}, {}
    for name, (header, layers) in cases().items():
        data = dump(header, layers, metadata=b"made by tests/golden/make_gsi.py" if name == "rgb" else b"")
        (folder / f"{name}.gsi").write_bytes(data)
        found = hashlib.sha256()
        for made in load(data).layers:
            for values in (made.precision, made.shape, made.cell, made.place, made.color):
                found.update(values.astype("<i4").tobytes())
        symbols[name], pictures[name] = found.hexdigest(), decode(data)
    (folder / "symbols.json").write_text(json.dumps(symbols, indent=2) + "\n")
    np.savez_compressed(folder / "images.npz", **pictures)


if __name__ == "__main__":
    main()
