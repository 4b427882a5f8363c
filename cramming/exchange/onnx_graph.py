"""The encoder as an ONNX graph, for sequences of any number and length, checked before it is kept.

onnx, onnxscript and onnxruntime are the optional extra ``onnx``. The graph computes padding and lets nothing attend to
it; long convolutions are written out, because ONNX has no transform that exporters know how to use.

Shape legend: B sequences, S positions, H hidden.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cramming.architectures.encoder import Encoder
from cramming.architectures.hf import TransformersEncoder
from cramming.architectures.hf_head import Inputs, accepted
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.unpadding import Layout
from cramming.errors import UserError
from cramming.kernels.backends import REFERENCE
from cramming.model import Model

TOLERANCE = 1e-4  # between torch and onnxruntime, relative to the largest hidden state
_LENGTHS = (7, 64)  # positions that are compared, beside those that were traced
_ONE_FILE_BYTES = 1 << 30  # beyond this the weights lie beside the graph: the format ends at 2 GiB


class _Graph(nn.Module):
    """Hidden states of every position: (B, S) ids, (B, S) nonzero where a token is -> (B, S, H)."""

    def __init__(self, model: Model, attend_padding: bool) -> None:
        super().__init__()
        self.model, self.attend_padding = model, attend_padding

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        model = self.model
        if isinstance(model, TransformersEncoder):
            base = model.network.base_model
            given: Inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            states: Tensor = base(**accepted(base, given))[0]
            return states
        assert isinstance(model, Encoder)
        # Both inputs stay in the graph, also where padding is taken for text.
        mask = (attention_mask != 0) | self.attend_padding
        layout = Layout(input_ids.shape[0], input_ids.shape[1], mask=mask)
        return layout.pad(model.encode(input_ids, layout)[0])


def write(model: Model, path: Path) -> None:
    """Export a model's encoder and compare what onnxruntime makes of it with torch.

    Args:
        model: in evaluation mode; how it computes attention and convolutions is changed.
        path: of the graph.

    Raises:
        UserError: the optional packages are missing, ONNX cannot express the model, or the graph computes something
            else; nothing is kept.
    """
    kind = type(model).__name__
    _check_installed()
    attend_padding = _plain(model)
    graph = _Graph(model, attend_padding)
    # Long enough for a window to end within it, and so short that the window is not yet worked on in pieces.
    windows = [module.window for module in model.modules() if isinstance(module, SelfAttention) and module.window]
    traced = 2 * max(windows, default=6)
    ids, mask = _inputs(model, 2, traced)
    sizes = {0: "batch", 1: "length"}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with _quiet():
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    graph,
                    (ids, mask),
                    input_names=["input_ids", "attention_mask"],
                    output_names=["hidden_states"],
                    dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
                    dynamo=True,
                    verbose=False,
                )
            assert program is not None
            program.save(path, external_data=size > _ONE_FILE_BYTES)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            path.unlink(missing_ok=True)
            raise UserError(f"ONNX cannot express {kind}: {_line(error)}; leave onnx=true out") from error
        _compare(graph, path, kind, [*_LENGTHS, traced, 5 * traced])


def _plain(model: Model) -> bool:
    """Choose forms that a graph can have; says whether the model takes padding for text."""
    if hasattr(model, "attention"):
        model.attention = "math"
    model.use_kernels(dict.fromkeys(model.kernel_ops, REFERENCE))
    if isinstance(model, TransformersEncoder):
        if hasattr(model.network, "set_attn_implementation"):
            model.network.set_attn_implementation("eager")
        return False
    assert isinstance(model, Encoder)
    ids, mask = _inputs(model, 2, 4)
    return model.layout(ids, mask).mask is None


def _inputs(model: Model, sequences: int, length: int) -> tuple[Tensor, Tensor]:
    """Random ids, the last sequence with padding: 2 x (B, S) int64."""
    length = min(length, int(model.max_positions))
    random = torch.Generator().manual_seed(length)
    ids = torch.randint(int(model.vocab_size), (sequences, length), generator=random)
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return ids, mask


def _compare(graph: _Graph, path: Path, kind: str, lengths: list[int]) -> None:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for sequences, length in enumerate(lengths, start=1):
            ids, mask = _inputs(graph.model, sequences, length)
            (made,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
            with torch.no_grad():
                expected = graph(ids, mask)
            error = (torch.from_numpy(made) - expected)[mask.bool()].abs().max() / expected.abs().max()
            if not error <= TOLERANCE:
                raise UserError(f"the ONNX graph of {kind} is off by {error:.1e} on {sequences} x {length} tokens")
    except UserError:
        path.unlink()
        raise
    except Exception as error:  # the runtime's errors have no base class of their own
        path.unlink()
        raise UserError(f"onnxruntime cannot run the graph of {kind}: {_line(error)}") from error


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"onnx=true needs {error.name}: pip install 'budget-bert[onnx]'") from error


class _quiet:  # noqa: N801 (a context)
    """The exporter speaks of what other exporters would do."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("torch.onnx").setLevel(self._level)
        self._warnings.__exit__(*error)  # type: ignore[arg-type]


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]
