"""Checkpoints: a folder with `config.json` and safetensors, under the released tensor names.

`load` reads the released layout and what transformers' `save_pretrained` writes; `save` and
`export_hf` write the released names, which transformers opens as well. With `save(...,
precision="released")` the tensors are in the released formats too. `open_released` gives single
tensors as they are stored, without reading the others. Names: `names.py`.
"""

from minidsv4.checkpoint.loading import load
from minidsv4.checkpoint.names import from_released, released_name, to_released, to_transformers, transformers_name
from minidsv4.checkpoint.released import ReleasedFolder, StoredTensor, layout, open_released
from minidsv4.checkpoint.saving import export_hf, save

__all__ = [
    "ReleasedFolder",
    "StoredTensor",
    "export_hf",
    "from_released",
    "layout",
    "load",
    "open_released",
    "released_name",
    "save",
    "to_released",
    "to_transformers",
    "transformers_name",
]
