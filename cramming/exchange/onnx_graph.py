"""The encoder as an ONNX graph, checked before it is kept. (onnx and onnxruntime: the optional extra ``onnx``.)"""

from pathlib import Path

from cramming.errors import UserError
from cramming.model import Model


def write(model: Model, path: Path, family: str) -> None:
    raise UserError("soon")
