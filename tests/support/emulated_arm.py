"""The compiled kernels of an ARM processor, emulated: `native` calls them in another process.

From Debian's packages gcc-aarch64-linux-gnu and qemu-user.
"""

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from types import ModuleType

import torch

from pac_ops.backends import native
from pac_ops.backends.native import compiled, convolution, double

GCC, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SOURCES = Path(native.__file__).parents[2] / "csrc"
MODULES = [
    value for value in (*vars(native).values(), double) if isinstance(value, ModuleType) and hasattr(value, "run")
]


def missing():
    """What has to be installed, or None."""
    programs = [program for program in (GCC, QEMU) if shutil.which(program) is None]
    return f"needs {' and '.join(programs)} (Debian: gcc-aarch64-linux-gnu, qemu-user)" if programs else None


class Arm:
    """Takes the place of `compiled.run`."""

    def __init__(self, folder):
        names = list(compiled._ARGUMENTS)
        declared = "".join(f"int {name}();\n" for name in names)
        listed = "".join(f'    {{"{name}", (void *){name}}},\n' for name in names)
        (folder / "kernels.h").write_text(
            f"{declared}static const struct {{ const char *name; void *kernel; }} KERNELS[] = {{\n{listed}}};\n"
        )
        program = folder / "arm"
        files = [*SOURCES.glob("*.c"), Path(__file__).with_name("arm.c")]
        flags = ("-O3", "-fopenmp", "-static", "-Wno-psabi", "-w", f"-I{folder}")
        subprocess.run([GCC, *flags, *map(str, files), "-o", str(program), "-lm"], check=True)
        self.process = subprocess.Popen([QEMU, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.calls = set()

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)

    def run(self, function, shapes, *arguments):
        self.calls.add(function)
        blocks, given, real = [bytearray(shapes)], [(0, 0)], 0.0
        storages = {}  # address -> its block, and the storage to write to afterwards
        for kind, x in zip(compiled._ARGUMENTS[function], arguments, strict=True):
            if isinstance(x, tuple):  # of `pointer`, below
                tensor, offset = x
            elif isinstance(x, torch.Tensor):
                tensor, offset = x, 0
            else:
                if kind == "f":
                    real = x
                else:
                    given.append((-1, int(x or 0)))
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in storages:
                storages[storage.data_ptr()] = (len(blocks), storage)
                blocks.append(bytearray(ctypes.string_at(storage.data_ptr(), storage.nbytes())))
            at = (tensor.storage_offset() + offset) * tensor.element_size()
            given.append((storages[storage.data_ptr()][0], at))
        given.append((-1, torch.get_num_threads()))
        name = function.encode()
        sent = [struct.pack("<q", len(name)), name, struct.pack("<q", len(blocks))]
        for block in blocks:
            sent += [struct.pack("<q", len(block)), bytes(block)]
        sent += [
            struct.pack("<q", len(given)),
            *(struct.pack("<qq", *pair) for pair in given),
            struct.pack("<f", real),
        ]
        self.process.stdin.write(b"".join(sent))
        self.process.stdin.flush()
        (failed,) = struct.unpack("<q", self._taken(8))
        found = [self._taken(len(block)) for block in blocks]
        for number, storage in storages.values():
            ctypes.memmove(storage.data_ptr(), found[number], storage.nbytes())
        assert failed == 0, f"{function}: {failed}"

    def _taken(self, size):
        taken = self.process.stdout.read(size)
        assert len(taken) == size, "the emulated process has ended"
        return taken


def pointer(weights):
    """In the place of `Weights.pointer`: the tensor, and how many elements further on."""
    return weights.of, weights.first


def patch(monkeypatch, arm):
    for module in MODULES:
        monkeypatch.setattr(module, "run", arm.run)
    monkeypatch.setattr(convolution.Weights, "pointer", property(pointer))
    monkeypatch.setattr(compiled, "lanes", lambda: 8)
