"""File formats of an export: how each is written, and how it is run again.

Metadata is one JSON text under the name `zoo`: among the `metadata_props` of an ONNX file, the extra files of
torch.export, or the metadata of safetensors.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from zoo.errors import UserError, one_line
from zoo.models.exports import Export

METADATA = "zoo"
#: Version of the ONNX operators. The exporter of torch is written for it, and every runtime since 2023 has it.
OPSET = 18
#: Bytes of weights that one ONNX file can hold: a protobuf message has less than 2 GiB, of which the graph needs some.
ONNX_LIMIT = 2**31 - 2**26
#: Function of the inputs of a part, in their order.
Run = Callable[..., Tensor]


class Format(NamedTuple):
    """A file format.

    Attributes:
        ending: ending of its files.
        title: what a user calls it.
        write: from a part and its metadata as JSON to the content of a file.
        runtime: name and version of the package that runs it; None if it is not installed, empty if it cannot be run.
        run: from the content of a file to a function.
    """

    ending: str
    title: str
    write: Callable[[Export, str], bytes]
    runtime: Callable[[], str | None]
    run: Callable[[bytes], Run]


# torch.export


def trace(export: Export) -> ExportedProgram:
    """The graph of a part, for every number of samples and every length of its axes with names.

    Raises:
        UserError: the part cannot be traced.
    """
    with _quiet():
        try:
            program = torch.export.export(
                export.module, export.examples(batch=2), dynamic_shapes=_dynamic_shapes(export), strict=False
            )
        except Exception as error:  # networks of others raise anything
            raise UserError(f"torch.export cannot trace it: {_explain(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of files on this machine
    return program


def _dynamic_shapes(export: Export) -> tuple[Any, ...]:
    """The axes of variable length of every input, as torch.export wants them for a function of `*inputs`."""
    # An axis whose length is at most 1 is no variable.
    dims = {name: Dim(name, min=1, max=longest) for name, longest in export.longest.items() if longest > 1}
    dims["batch"] = Dim("batch")
    shapes = [("batch", *value.shape) for value in export.inputs.values()]
    found = ({axis: dims[side] for axis, side in enumerate(shape) if side in dims} for shape in shapes)
    return (tuple(found),)


def _explain(error: Exception) -> str:
    """First sentence of an error of the tracer."""
    text = one_line(str(error))
    if "specialized it to be a constant" in text:
        return "it works for one batch size only; use x.shape[0] in place of len(x), and no loop over samples"
    return text[:200] or type(error).__name__


def _write_program(export: Export, metadata: str) -> bytes:
    content = io.BytesIO()
    with _quiet():
        torch.export.save(trace(export), content, extra_files={METADATA: metadata})
    return content.getvalue()


def _run_program(content: bytes) -> Run:
    with _quiet():
        return torch.export.load(io.BytesIO(content)).module()


# ONNX


def _write_onnx(export: Export, metadata: str) -> bytes:
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"the format onnx needs {' and '.join(missing)}: pip install lightning-zoo[onnx]")
    size = sum(tensor.numel() * tensor.element_size() for tensor in export.module.state_dict().values())
    if size > ONNX_LIMIT:
        raise UserError(
            f"one ONNX file holds less than 2 GiB, and this model has {size / 2**30:.1f} GiB of weights: use the "
            "format torch_export"
        )
    with _quiet():
        try:
            program = torch.onnx.export(
                trace(export),
                input_names=list(export.inputs),
                output_names=[export.output],
                dynamic_shapes=_dynamic_shapes(export),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except UserError:
            raise
        except Exception as error:  # as above
            raise UserError(f"it cannot be expressed in ONNX: {one_line(str(error))[:200]}") from error
    assert program is not None
    program.model.metadata_props[METADATA] = metadata
    return program.model_proto.SerializeToString()


def _onnx_runtime() -> str | None:
    return f"onnxruntime {version('onnxruntime')}" if find_spec("onnxruntime") else None


def _run_onnx(content: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {n: x.cpu().numpy() for n, x in zip(names, inputs, strict=True)})[0])

    return run


# safetensors


def _write_weights(export: Export, metadata: str) -> bytes:
    """The weights of a part's network, under the names that they have in it."""
    from safetensors.torch import save

    # Copies, since safetensors refuses tensors that share memory.
    state = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in export.module.network.state_dict().items()
    }
    return save(state, {METADATA: metadata})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of the exporters, which are about their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _cannot_run(content: bytes) -> Run:
    raise NotImplementedError("weights alone cannot be run")


FORMATS = {
    "onnx": Format(".onnx", f"ONNX opset {OPSET}", _write_onnx, _onnx_runtime, _run_onnx),
    "torch_export": Format(".pt2", "torch.export", _write_program, lambda: f"torch {torch.__version__}", _run_program),
    "safetensors": Format(".safetensors", "safetensors, weights only", _write_weights, lambda: "", _cannot_run),
}
