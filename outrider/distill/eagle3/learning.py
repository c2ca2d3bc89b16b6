"""A feature draft learns to guess what the target will find likeliest, several tokens ahead.

The steps of drafting are unrolled while it trains (EAGLE-3, arXiv 2503.01840): in each it reads
its own output in place of the target's hidden states. Matrices are updated by Muon
(K. Jordan, 2024), head and norms by AdamW.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW, Muon
from transformers import AutoConfig

from outrider.distill.eagle3.draft import FeatureDraft, layer_config
from outrider.distill.shared.fake_int8 import fake_int8, remove_fake_int8
from outrider.distill.shared.material import Batch, Material
from outrider.distill.shared.settings import Recipe
from outrider.distill.shared.stages import Reading
from outrider.distill.shared.training import Course, History, Schedule, fast_products, train
from outrider.engine.device import choose_device
from outrider.engine.loading.weights import load_model
from outrider.errors import ConfigurationError, ModelNotFound

# A later step is reached less often: the share of its loss, and of the places behind a wrong
# guess that count all the same.
_DECAY = 0.9
_WRONG_SHARE = 0.15
# Of AdamW, for the head (which begins as the target's embedding) and for norms.
_HEAD_RATE = 0.15
_NORM_RATE = 0.6

_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


class FeatureLearner:
    """Makes a draft that reads hidden states; `record` is its part of the run's record.

    Raises:
        ModelNotFound: the target's configuration cannot be read.
        ConfigurationError: the target lacks these layers, or the draft to start from is none or
            is of another target.
    """

    def __init__(self, recipe: Recipe, target: str) -> None:
        self._recipe, self._target = recipe, target
        try:
            self._config = AutoConfig.from_pretrained(target).get_text_config()
        except (OSError, ValueError) as error:
            raise ModelNotFound(f"cannot read what {target} is: {error}") from error
        count = self._config.num_hidden_layers
        start = recipe.start_from and _layers_read(recipe.start_from, self._config)
        self.reads = start or recipe.read or default_layers(count)
        """The layers of the target whose hidden states it reads."""
        if max(self.reads) >= count:
            raise ConfigurationError(f"the target has {count} layers, which count from 0")
        self.record = {"hidden_layers": self.reads}

    def learn(
        self,
        reading: Reading,
        schedule: Schedule,
        checkpoint: Path,
        progress: Progress,
        show: Callable[[History], None],
    ) -> History:
        recipe = self._recipe
        draft = self._beginning(reading)
        self._draft = draft
        material = Material(reading.texts, reading.lesson, draft.vocabulary, reading.num_held_out)
        if recipe.int8:
            fake_int8(draft)
        lessons = feature_course(draft, material, reading, schedule, recipe.unrolled_steps)
        every = recipe.checkpoint_every
        history = train(draft, lessons, schedule, checkpoint, every, show)
        remove_fake_int8(draft)
        return history

    def shown(self, history: History) -> str:
        if not history.scores:
            return ""
        *accepted, tokens = history.scores[-1][1]
        return f", accepted {' '.join(f'{rate:.2f}' for rate in accepted)}, {tokens:.2f} a step"

    def export(self) -> None:
        self._draft.save(self._recipe.out, self._recipe.target)

    def _beginning(self, reading: Reading) -> FeatureDraft:
        recipe, start = self._recipe, self._recipe.start_from
        device = choose_device(recipe.device)
        target = load_model(self._target, device, torch.float32)
        embedding = target.get_input_embeddings().weight.detach()
        weights = load_file(start / "model.safetensors") if start else None
        if weights is None:
            vocabulary = reading.texts.frequent_tokens(len(embedding), recipe.draft_vocabulary)
        else:
            vocabulary = (weights["d2t"] + torch.arange(len(weights["d2t"]))).tolist()
        layer = layer_config(self._config, recipe.max_length)
        torch.manual_seed(recipe.seed)
        draft = FeatureDraft(layer, self.reads, embedding, vocabulary).to(device)
        if weights is not None:
            _load(draft, weights, str(start))
        return draft


def default_layers(count: int) -> tuple[int, ...]:
    """Layers to read of a target of `count`: an early one, the middle and the last."""
    return tuple(sorted({max(1, count // 7), min(count // 2 + 1, count - 1), count - 1}))


def _layers_read(draft: Path, target: Any) -> tuple[int, ...]:
    """The layers that a draft of the target with this configuration reads."""
    try:
        config = json.loads((draft / "config.json").read_text())
        layer, layers = config["transformer_layer_config"], config[_LAYER_IDS]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{draft} is no feature draft, by its config.json") from error
    if any(layer[name] != getattr(target, name) for name in ("hidden_size", "vocab_size")):
        raise ConfigurationError(f"{draft} is the draft of another target")
    return tuple(layers)


def _load(draft: FeatureDraft, weights: dict[str, Tensor], name: str) -> None:
    trained = dict(draft.named_parameters())
    if any(name not in weights or weights[name].shape != p.shape for name, p in trained.items()):
        raise ConfigurationError(f"{name} has weights of another architecture")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def feature_course(
    draft: FeatureDraft, material: Material, reading: Reading, schedule: Schedule, num_steps: int
) -> Course:
    """What a feature draft learns, and how."""
    matrices: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    head = [p for name, p in draft.named_parameters() if name.startswith("lm_head")]
    for name, parameter in draft.named_parameters():
        if not name.startswith("lm_head"):
            (matrices if parameter.ndim == 2 else norms).append(parameter)
    rate = schedule.learning_rate
    optimizers = [
        Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        AdamW(
            [
                {"params": head, "lr": _HEAD_RATE * rate},
                {"params": norms, "lr": _NORM_RATE * rate},
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]

    def loss(step: int) -> Tensor:
        indices = material.training_indices(step, schedule.batch_size, schedule.seed)
        batch = material.batch(indices, draft.device)
        states = _hidden_states(reading, indices, draft.device)
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        return unrolled_loss(draft, batch, states, num_steps, generator)

    return Course(
        optimizers, loss, lambda: acceptance(draft, material, reading, schedule, num_steps)
    )


def _hidden_states(reading: Reading, indices: list[int], device: torch.device) -> Tensor:
    """[batch, length, num_layers * hidden_size] of these texts, padded behind their ends."""
    rows = [reading.hidden_states(*reading.texts.bounds(index)) for index in indices]
    return pad_sequence(rows, batch_first=True).to(device).float()


def unrolled_loss(
    draft: FeatureDraft, batch: Batch, states: Tensor, num_steps: int, generator: torch.Generator
) -> Tensor:
    """Cross-entropy under the target's probabilities, in nats for each token of the answers.

    Step j counts where the steps before it guessed right, as only there it would be of use, and
    at a few other places.

    Args:
        states: [batch, length, num_layers * hidden_size], the target's at each token.
    """
    # At place i the draft reads token i + 1 and the hidden states of token i.
    columns, probs, is_learned = batch.columns[:, 1:], batch.probs[:, 1:], batch.weights[:, 1:] > 0
    total = probs.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    is_learned = is_learned & (total[..., 0] > 0.3)  # the draft's vocabulary has what matters
    probs = probs / total
    is_right = torch.ones_like(is_learned)
    loss = torch.zeros((), device=draft.device)
    with fast_products(draft.device):
        outputs = draft.unrolled(states[:, :-1], batch.token_ids[:, 1:], num_steps)
        for step, output in enumerate(outputs):
            kept = torch.rand(is_right.shape, generator=generator).to(draft.device) < _WRONG_SHARE
            places = is_learned & (is_right | kept)
            places[:, :step] = False  # what comes before the text is not known
            logits = draft.logits(output[places]).float()
            log_probs = logits.log_softmax(dim=-1).gather(-1, columns[places].clamp(min=0))
            by_place = -(probs[places] * log_probs).sum(dim=-1)
            loss = loss + _DECAY**step * by_place.sum() / is_learned.sum()
            hits = torch.zeros_like(is_right)
            hits[places] = logits.argmax(dim=-1) == columns[places][:, 0]
            is_right = (is_right & hits).roll(1, 1)
    return loss


@torch.inference_mode()
def acceptance(
    draft: FeatureDraft, material: Material, reading: Reading, schedule: Schedule, num_steps: int
) -> list[float]:
    """Shares of verifications that would accept 1, 2, ... `num_steps` draft tokens, in greedy
    decoding of the held-out texts, and the tokens that one commits."""
    counts = [0] * num_steps
    num_verifications = num_tokens = 0
    for index in material.held_out:
        batch = material.batch([index], draft.device)
        states = _hidden_states(reading, [index], draft.device)
        outputs = draft.unrolled(states[:, :-1], batch.token_ids[:, 1:], num_steps)
        guesses = [draft.vocabulary[draft.logits(out)[0].argmax(-1)].tolist() for out in outputs]
        tokens = batch.token_ids[0].tolist()
        place = int(batch.weights[0].argmax())  # the prompt's last token
        while place + 2 < len(tokens):
            length = 0
            while (
                length < num_steps
                and place + length + 2 < len(tokens)
                and guesses[length][place + length] == tokens[place + length + 2]
            ):
                counts[length] += 1
                length += 1
            num_verifications += 1
            num_tokens += length + 1
            place += length + 1
    total = max(1, num_verifications)
    return [count / total for count in counts] + [num_tokens / total]
