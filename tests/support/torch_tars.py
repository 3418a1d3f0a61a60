"""Writes the tar archives that the first versions of torch.save wrote: `storages`, `tensors` and `pickle`."""

import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path

import torch

_TYPES = {torch.float32: "Float", torch.float64: "Double", torch.float16: "Half", torch.int64: "Long"}


class _Named:
    """Pickles as a global of any name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):
    def __init__(self, stream, keys=None):
        super().__init__(stream, protocol=2)
        self.keys = keys or {}

    def persistent_id(self, obj):
        return str(self.keys[id(obj)]) if isinstance(obj, torch.Tensor) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)


def _pickled(obj, keys=None) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, keys).dump(obj)
    return stream.getvalue()


def save(content: object, path: Path) -> None:
    """Write a state_dict, or what has tensors among its values."""
    tensors = [x for x in _values(content) if isinstance(x, torch.Tensor)]
    keys = {id(x): 1000 + i for i, x in enumerate(tensors)}
    storages, views = io.BytesIO(), io.BytesIO()
    storages.write(_pickled(len(tensors)))
    views.write(_pickled(len(tensors)))
    for key, x in enumerate(tensors):
        kind = _TYPES[x.dtype]
        flat = x.detach().contiguous().flatten()
        storages.write(_pickled((key, "cpu", _Named("torch", f"{kind}Storage"))))
        storages.write(struct.pack("<q", flat.numel()) + flat.numpy().tobytes())
        views.write(_pickled((keys[id(x)], key, _Named("torch", f"{kind}Tensor"))))
        views.write(struct.pack("<ii", x.dim(), 0) + struct.pack(f"<{x.dim()}q", *x.shape))
        views.write(struct.pack(f"<{x.dim()}q", *x.contiguous().stride()) + struct.pack("<q", 0))
    storages.write(_pickled([]))
    parts = {
        "sys_info": _pickled({"protocol_version": 1000}),
        "pickle": _pickled(content, keys),
        "tensors": views.getvalue(),
        "storages": storages.getvalue(),
    }
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _values(content: object) -> list[object]:
    if isinstance(content, dict | OrderedDict):
        return [x for value in content.values() for x in _values(value)]
    return [content]
