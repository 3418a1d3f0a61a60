"""The ways from a network to a runtime, each in its own words: what a user of that runtime would write."""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hotswap

Run = Callable[[], Tensor]  # one inference, its first output
WEB = Path(__file__).with_name("web.mjs")


@dataclass(frozen=True)
class Route:
    """A way to run a network on one image."""

    version: Callable[[], str | None]  # of the runtime; None where it is not installed
    # Called with the network, an image and an empty folder; None where this machine can convert but not run.
    load: Callable[[nn.Module, Tensor, Path], Run | None]
    exact: bool = True  # computes what PyTorch does, to the rounding of float32


def first(outputs: Any) -> Any:
    """The first output of a network, a tensor or an array, whatever holds it."""
    while not isinstance(outputs, Tensor | np.ndarray):
        outputs = next(iter(outputs.values() if isinstance(outputs, dict) else outputs))
    return outputs


def _exported(network: nn.Module, image: Tensor, file: Path, *, dynamic: bool = False) -> Path:
    hotswap.export(network, file, example_inputs=image, dynamic=dynamic)
    return file


def _program(network: nn.Module, image: Tensor, folder: Path) -> torch.export.ExportedProgram:
    return torch.export.load(_exported(network, image, folder / "network.pt2"))


def _onnxruntime(network: nn.Module, image: Tensor, folder: Path, *, dynamic: bool) -> Run:
    return session(_exported(network, image, folder / "network.onnx", dynamic=dynamic), image)


def session(file: Path, image: Tensor) -> Run:
    """A file in onnxruntime, on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opened = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {opened.get_inputs()[0].name: image.numpy()}
    return lambda: torch.from_numpy(opened.run(None, feed)[0])


def _quantised(network: nn.Module, image: Tensor, folder: Path) -> Run:
    """Weights and inputs of convolutions in 8 bits; calibrated on images like the one given."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.left = iter([{name: torch.rand_like(image).numpy()} for _ in range(8)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    file = _exported(network, image, folder / "network.onnx")
    quant_pre_process(file, folder / "prepared.onnx", skip_symbolic_shape=True)  # it knows no ReduceMin
    torch.manual_seed(1)
    quantization.quantize_static(
        folder / "prepared.onnx",
        folder / "quantised.onnx",
        Images(onnx.load(file).graph.input[0].name),
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm"],
    )
    return session(folder / "quantised.onnx", image)


def _web(network: nn.Module, image: Tensor, folder: Path) -> Run:
    file = _exported(network, image, folder / "network.onnx")
    image.numpy().astype("<f4").tofile(folder / "input")
    words: list[str | Path] = [
        "node",
        WEB,
        file,
        folder / "input",
        folder / "output",
        ",".join(map(str, image.shape)),
    ]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603 (our own)
    _expect(process, "ready")
    with torch.no_grad():
        shape = first(network(image)).shape

    def run() -> Tensor:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        _expect(process, "done")
        return torch.from_numpy(np.fromfile(folder / "output", "<f4")).view(shape)

    return run


def _expect(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline().strip() != word:
        raise RuntimeError(process.stderr.read().strip())


def _node() -> str | None:
    """The version of onnxruntime-web that node finds from this folder."""
    if shutil.which("node") is None:
        return None
    code = "process.stdout.write(require('module').createRequire(process.cwd()+'/').resolve('onnxruntime-web'))"
    found = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if found.returncode:
        return None
    package = next(folder for folder in Path(found.stdout).parents if (folder / "package.json").exists())
    return str(json.loads((package / "package.json").read_text())["version"])


def _openvino(network: nn.Module, image: Tensor, folder: Path, *, onnx: bool) -> Run:
    import openvino

    source = _exported(network, image, folder / "network.onnx") if onnx else _program(network, image, folder)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(openvino.convert_model(source), "CPU", options)
    return lambda: torch.from_numpy(compiled(image.numpy())[0].copy())


def _coreml(network: nn.Module, image: Tensor, folder: Path) -> None:
    import coremltools

    program = _program(network, image, folder).run_decompositions({})
    coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS17)


def _executorch(network: nn.Module, image: Tensor, folder: Path, *, xnnpack: bool) -> Run:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    partitioner = [XnnpackPartitioner()] if xnnpack else None
    lowered = to_edge_transform_and_lower(_program(network, image, folder), partitioner=partitioner).to_executorch()
    (folder / "network.pte").write_bytes(lowered.buffer)
    method = Runtime.get().load_program(folder / "network.pte").load_method("forward")
    return lambda: first(method.execute([image]))


def _aot_inductor(network: nn.Module, image: Tensor, folder: Path) -> Run:
    file = torch._inductor.aoti_compile_and_package(
        _program(network, image, folder), package_path=str(folder / "network_aot.pt2")
    )
    loaded = torch._inductor.aoti_load_package(file)
    return lambda: first(loaded(image))


def _inductor(network: nn.Module, image: Tensor, _: Path) -> Run:
    compiled = torch.compile(network)

    def run() -> Tensor:
        with torch.no_grad():
            result: Tensor = first(compiled(image))
            return result

    return run


def _litert(network: nn.Module, image: Tensor, folder: Path) -> Run:
    import litert_torch

    model = litert_torch.convert(_program(network, image, folder).module(), (image,))
    return lambda: torch.from_numpy(first(model(image)))


def _package(module: str, name: str | None = None) -> str | None:
    return metadata.version(name or module) if importlib.util.find_spec(module) else None


def _torch() -> str | None:
    """PyTorch's version, where there is a C++ compiler."""
    return torch.__version__ if shutil.which(os.environ.get("CXX", "g++")) else None


ROUTES = {
    "onnxruntime": Route(partial(_package, "onnxruntime"), partial(_onnxruntime, dynamic=False)),
    "onnxruntime, open sizes": Route(partial(_package, "onnxruntime"), partial(_onnxruntime, dynamic=True)),
    "onnxruntime, 8 bits": Route(partial(_package, "onnxruntime"), _quantised, exact=False),
    "onnxruntime-web, wasm": Route(_node, _web),
    "OpenVINO, from ONNX": Route(partial(_package, "openvino"), partial(_openvino, onnx=True)),
    "OpenVINO, from `.pt2`": Route(partial(_package, "openvino"), partial(_openvino, onnx=False)),
    "CoreML, converted": Route(partial(_package, "coremltools"), _coreml),
    "ExecuTorch, portable": Route(partial(_package, "executorch"), partial(_executorch, xnnpack=False)),
    "ExecuTorch, XNNPACK": Route(partial(_package, "executorch"), partial(_executorch, xnnpack=True)),
    "LiteRT": Route(partial(_package, "litert_torch", "litert-torch"), _litert),
    "AOTInductor": Route(_torch, _aot_inductor),
    "`torch.compile`": Route(_torch, _inductor),
}
