"""Linear layers in int4, for targets on CPUs.

The time of a short pass is the time for reading the weights. In int4 they have a third of their
size in float16. torch's kernel unpacks them in registers, so up to four rows share one reading. It
takes inputs and returns outputs in bfloat16, adds up in float32, and computes each row by itself.
"""

import torch
from torch import Tensor, nn

from outrider.engine.cpu.packed_linear import RowLinear, pack, replace_linears

GROUP = 32
"""Neighbouring weights of a row that share a scale and a minimum, as in GGUF's Q4_1."""

# The kernel computes that many outputs at a time.
_OUTPUTS = 16

# Of the layout on GPUs; on CPUs it has no effect.
_INNER_TILES = 2


class Int4Linear(RowLinear):
    """`input @ weight.T + bias`, with each weight rounded to one of 16 values of its group.

    The values are equally spaced between the group's smallest and largest weight, so weights that
    come from a file in Q4_1 keep their values, but for the rounding of scales to bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.dtype = torch.bfloat16
        self.group = GROUP
        self.bias = None if bias is None else bias.float()
        groups = weight.float().unflatten(1, (-1, GROUP))  # [out_features, num_groups, GROUP]
        least, most = groups.aminmax(dim=-1, keepdim=True)
        scales = ((most - least) / 15).clamp(min=torch.finfo(torch.float32).tiny)
        steps = ((groups - least) / scales).round_().clamp_(0, 15)
        middles = least + 8 * scales  # the kernel counts steps from -8
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            steps.flatten(1).to(torch.int32), _INNER_TILES
        )
        # [num_groups, out_features, 2]
        self.scales = torch.cat((scales, middles), dim=-1).transpose(0, 1).bfloat16().contiguous()

    def multiply(self, rows: Tensor) -> Tensor:
        output = torch._weight_int4pack_mm_for_cpu(
            rows.to(torch.bfloat16), self.packed, self.group, self.scales
        ).float()
        bias = self.bias
        return output if bias is None else output + bias


def pack_in_int4(module: nn.Module, vocab_size: int) -> None:
    """Replaces every linear layer within `module` by an `Int4Linear`, or as `pack` chooses.

    The latter where sizes do not fit the kernel, and for the head, whose rounding would go straight
    into the logits: `vocab_size` is the number of its outputs. GGUF files, too, store it in 8 bits.
    """

    def choose(weight: Tensor, bias: Tensor | None) -> RowLinear:
        out_features, in_features = weight.shape
        fits = in_features % GROUP == 0 and out_features % _OUTPUTS == 0
        if fits and out_features != vocab_size:
            return Int4Linear(weight, bias)
        return pack(weight, bias)

    replace_linears(module, choose)
