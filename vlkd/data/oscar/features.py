"""Files of region features: which of their forms a file has, and one picture's features out of it.

n regions, D numbers of the detector, followed by the six of the box's geometry: x1/W, y1/H, x2/W, y2/H, w/W, h/H.

=============================== ======================================================================================
``*.feature.tsv``               key ⇥ JSON ``{"num_boxes": n, "features": base64}``
``features.tsv``, pre-training  key ⇥ n ⇥ base64
VinVL's extractor               key ⇥ JSON ``{"objects": [{"rect", "class", "conf", "feature": base64}], "image_w", "image_h"}``,
                                D numbers each, to which the geometry is appended here
LXMERT                          img_id ⇥ img_h ⇥ img_w ⇥ objects_id ⇥ objects_conf ⇥ attrs_id ⇥ attrs_conf ⇥ num_boxes ⇥ boxes ⇥
                                features: base64, D numbers each, to which the geometry is appended here
bottom-up attention             image_id ⇥ image_w ⇥ image_h ⇥ num_boxes ⇥ boxes ⇥ features, likewise
``.pt .pth .safetensors .npz``  key -> [n, D + 6]
=============================== ======================================================================================

base64 holds float32; ``stored_as`` says otherwise.
"""

from __future__ import annotations

from pathlib import Path

from vlkd.data.containers import require_file
from vlkd.data.oscar.arrays import SUFFIXES, ArrayFile
from vlkd.data.oscar.encoded import StoredAs
from vlkd.data.oscar.found import FeatureFile
from vlkd.data.oscar.rows import RowFile
from vlkd.errors import VlkdError

_NO_FORM = {
    ".npy": "holds one array without keys: give an .npz of key -> [n, D + 6]",
    ".pkl": "is a pickle, and no pickle is ever loaded, for it may run code: write an .npz, .safetensors or .pt of key -> [n, D + 6]",
    ".h5": "is HDF5, which is not read: write an .npz or .safetensors of key -> [n, D + 6]",
    ".parquet": "is Parquet, which is not read: write an .npz or .safetensors of key -> [n, D + 6]",
}
_NO_FORM |= {".pickle": _NO_FORM[".pkl"], ".hdf5": _NO_FORM[".h5"]}


def open_features(path: Path, stored_as: StoredAs = "float32", classes: tuple[str, ...] = ()) -> FeatureFile:
    """Open a file of features, of whichever form.

    Args:
        path: of the file.
        stored_as: what base64 holds.
        classes: the names of LXMERT's class numbers.

    Raises:
        VlkdError: there is no such file, or it has no known form.
    """
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in _NO_FORM:
        raise VlkdError(f"'{path}' {_NO_FORM[suffix]}.")
    return ArrayFile(path) if suffix in SUFFIXES else RowFile(path, stored_as, classes)
