"""Standalone scorers for runtimes without this package: torch.export and ONNX.

Both take user indices and the item indices to exclude for each user, and return the k best items.
The order of ties depends on the runtime: ONNX Runtime prefers the smaller index, torch may not.

Legend: U users, I items, D embedding dim, B requested users, S excluded items.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.extras import require

_OPSET = 18


class DotProducts(nn.Module):
    """Module that ranks items by dot product.

    Args:
        user: (U, D) user vectors.
        item: (I, D) item vectors.
        k: Length of the lists, at most I.
    """

    def __init__(self, user: Tensor, item: Tensor, k: int) -> None:
        super().__init__()
        self.register_buffer("user", user.contiguous())
        self.register_buffer("item", item.contiguous())
        self.k = k

    def forward(self, users: Tensor, exclude: Tensor) -> tuple[Tensor, Tensor]:
        """Rank the items of each user.

        Args:
            users: (B,) int64 user indices.
            exclude: (B, S) int64 item indices to exclude, padded with -1.

        Returns:
            Scores (B, k) float32, highest first and padded with -inf, and items (B, k) int64.
        """
        user, item = self.get_buffer("user"), self.get_buffer("item")
        score = user[users] @ item.T
        # The padding -1 is redirected to an additional column.
        score = torch.cat([score, score.new_zeros(score.shape[0], 1)], 1)
        column = torch.where(exclude < 0, item.shape[0], exclude)
        score = score.scatter(1, column, -torch.inf)[:, : item.shape[0]]
        best = score.topk(self.k, dim=1)
        return best.values, best.indices


def torch_export_bytes(scorer: DotProducts) -> bytes:
    """Serialize the scorer with dynamic B and S for ``torch.export.load``."""
    batch, width = torch.export.Dim("batch"), torch.export.Dim("seen")
    example = torch.arange(2), torch.full((2, 3), -1)
    program = torch.export.export(
        scorer, example, dynamic_shapes=({0: batch}, {0: batch, 1: width}), strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_bytes(scorer: DotProducts) -> bytes:
    """Serialize the scorer as an ONNX model.

    Its inputs are ``users`` and ``exclude``, its outputs ``scores`` and ``items``. The few nodes
    are written by hand, which avoids the dependencies of torch's exporter.

    Raises:
        InputError: onnx is not installed.
    """
    require("onnx", "onnx", "format onnx needs onnx")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    user, item = scorer.get_buffer("user"), scorer.get_buffer("item")
    num_items = item.shape[0]

    def constant(name: str, value: Any) -> Any:
        return numpy_helper.from_array(torch.as_tensor(value).numpy(), name)

    nodes = [
        helper.make_node("Gather", ["user", "users"], ["query"], axis=0),
        helper.make_node("MatMul", ["query", "item"], ["score"]),
        helper.make_node("Pad", ["score", "pads"], ["padded"]),
        helper.make_node("Less", ["exclude", "zero"], ["is_padding"]),
        helper.make_node("Where", ["is_padding", "num_items", "exclude"], ["column"]),
        helper.make_node("Shape", ["exclude"], ["shape"]),
        helper.make_node("Expand", ["minus_infinity", "shape"], ["update"]),
        helper.make_node("ScatterElements", ["padded", "column", "update"], ["masked"], axis=1),
        helper.make_node("Slice", ["masked", "start", "end", "axis"], ["kept"]),
        helper.make_node("TopK", ["kept", "k"], ["scores", "items"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mmssl_scorer",
        [
            helper.make_tensor_value_info("users", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("exclude", TensorProto.INT64, ["batch", "seen"]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", scorer.k]),
            helper.make_tensor_value_info("items", TensorProto.INT64, ["batch", scorer.k]),
        ],
        [
            constant("user", user),
            constant("item", item.T.contiguous()),
            constant("pads", [0, 0, 0, 1]),
            constant("zero", 0),
            constant("num_items", num_items),
            constant("minus_infinity", -torch.inf),
            constant("start", [0]),
            constant("end", [num_items]),
            constant("axis", [1]),
            constant("k", [scorer.k]),
        ],
    )
    model = helper.make_model(
        graph, producer_name="mmssl", opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
