"""Refitting: the layers that stay take over from those removed, in closed form.

In a student with removed layers, those after a gap get inputs that they have never seen.
Least squares repair much of that before any training: layer by layer, the matrix that leads
back from the inside of the MLP is solved for, so that the layer's output comes as close as
possible to the next layer's input in the target. ReplaceMe (arXiv 2505.02819) solves for one
matrix where a block of layers was removed; here each later layer is solved for too, on the
inputs that it will have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from outrider.distill.layers.student import layer_list
from outrider.engine.layers import linear_weight
from outrider.errors import UnsupportedModel

# The weight of old values, as a share of the mean square of the matrix's inputs.
_PULL = 1e-3


@dataclass
class Passage:
    """One text on its way through the target's layers."""

    states: Tensor | None = None  # [1, num_tokens, hidden_size], the input of the first layer
    settings: dict[int, dict[str, Any]] = field(default_factory=dict)  # arguments of each layer
    goals: dict[int, Tensor] = field(default_factory=dict)  # the output of each layer


@torch.inference_mode()
def record(target: Any, texts: Sequence[list[int]], kept: Sequence[int]) -> list[Passage]:
    """Records the arguments of the target's layers `kept`, and the inputs of their successors.

    Goals are by index in `kept`, like the layers of the student.
    """
    passages = []
    for text in texts:
        passage = Passage()
        handles = list(_recorders(layer_list(target), kept, passage))
        target(input_ids=torch.tensor([text], device=target.device), use_cache=False)
        for handle in handles:
            handle.remove()
        passages.append(passage)
    return passages


def _recorders(layers: nn.ModuleList, kept: Sequence[int], passage: Passage) -> Iterator[Any]:
    goal_layers = [following - 1 for following in kept[1:]] + [len(layers) - 1]
    for place, (index, goal_layer) in enumerate(zip(kept, goal_layers, strict=True)):

        def before(module: Any, args: Any, settings: Any, place: int = place) -> None:
            if place == 0:
                passage.states = args[0] if args else settings["hidden_states"]
            passage.settings[place] = {k: v for k, v in settings.items() if k != "hidden_states"}

        def after(module: Any, args: Any, output: Any, place: int = place) -> None:
            passage.goals[place] = _states_of(output)

        yield layers[index].register_forward_pre_hook(before, with_kwargs=True)
        yield layers[goal_layer].register_forward_hook(after)


@torch.inference_mode()
def refit(student: Any, passages: Sequence[Passage], first: int) -> None:
    """Solves for the layers of `student` from index `first` on, in place.

    Raises:
        UnsupportedModel: the layers do not add the output of their MLP unchanged. Nothing has
            changed.
    """
    _check_adds(layer_list(student)[first], passages[0], first)
    all_states = [passage.states for passage in passages]
    for place, layer in enumerate(layer_list(student)):
        settings = [passage.settings[place] for passage in passages]
        if place < first:
            all_states = [
                _states_of(layer(states, **given))
                for states, given in zip(all_states, settings, strict=True)
            ]
        else:
            goals = [passage.goals[place] for passage in passages]
            all_states = _refit_layer(layer, all_states, settings, goals)


def _refit_layer(
    layer: nn.Module, all_states: list[Any], settings: list[dict[str, Any]], goals: list[Tensor]
) -> list[Any]:
    """Solves for one layer; returns its outputs, [1, num_tokens, hidden_size] each."""
    linear = _leading_back(layer, all_states[0].shape[-1])
    inner: list[tuple[Tensor, Tensor]] = []
    handle = linear.register_forward_hook(lambda _, args, output: inner.append((args[0], output)))
    outputs = [
        _states_of(layer(states, **given))
        for states, given in zip(all_states, settings, strict=True)
    ]
    handle.remove()
    rests = [output - led for output, (_, led) in zip(outputs, inner, strict=True)]
    inputs = [given for given, _ in inner]
    _solve(linear, inputs, [goal - rest for goal, rest in zip(goals, rests, strict=True)])
    return [rest + linear(given) for rest, given in zip(rests, inputs, strict=True)]


def _check_adds(layer: nn.Module, passage: Passage, place: int) -> None:
    """Raises UnsupportedModel unless the layer adds the output of its MLP unchanged."""
    linear = _leading_back(layer, passage.goals[place].shape[-1])
    before = _states_of(layer(passage.states, **passage.settings[place]))
    more = before.std() * torch.linspace(-1, 1, before.shape[-1], device=before.device)
    handle = linear.register_forward_hook(lambda _, args, output: output + more)
    after = _states_of(layer(passage.states, **passage.settings[place]))
    handle.remove()
    if not torch.allclose(after - before, more.expand_as(after), rtol=1e-2, atol=1e-2):
        raise UnsupportedModel("the layers do not add what their MLP yields as it is")


def _solve(linear: nn.Module, inputs: list[Tensor], goals: list[Tensor]) -> None:
    """Sets the weight with which `linear` comes closest to `goals`, regularised to the old one."""
    weight, bias = linear_weight(linear)
    shape = (weight.shape[1], weight.shape[1])
    products = torch.zeros(shape, dtype=torch.float64, device=weight.device)
    answers = torch.zeros(weight.t().shape, dtype=torch.float64, device=weight.device)
    for given, goal in zip(inputs, goals, strict=True):
        # The first token of a text has values hundreds of times as large as all others.
        rows = given[0, 1:].double()  # [num_tokens - 1, in_features]
        wanted = goal[0, 1:] if bias is None else goal[0, 1:] - bias
        products += rows.t() @ rows
        answers += rows.t() @ wanted.double()
    pull = _PULL * products.diagonal().mean().clamp(min=1e-12)
    products.diagonal().add_(pull)
    solved = torch.linalg.solve(products, answers + pull * weight.t()).to(weight.dtype)
    linear.get_parameter("weight").copy_(solved if isinstance(linear, Conv1D) else solved.t())


def _leading_back(layer: nn.Module, hidden_size: int) -> nn.Module:
    """The linear layer that leads back from the inside of the MLP."""
    linears = [m for m in layer.modules() if isinstance(m, nn.Linear | Conv1D)]
    shapes = [linear_weight(linear)[0].shape for linear in linears]
    found = [
        linear
        for linear, (num_out, num_in) in zip(linears, shapes, strict=True)
        if num_out == hidden_size < num_in
    ]
    if len(found) != 1:
        raise UnsupportedModel(f"the layers have {len(found)} MLPs, not one")
    return found[0]


def _states_of(output: Any) -> Tensor:
    """The states of a layer's output, which may have other results, too."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]
