"""A model that is split among several processes: tensor parallelism (arXiv 1909.08053).

torchrun starts the same command once per rank. Every rank holds a part of each layer and takes
part in every pass, in which the ranks add up their partial results, according to the model's plan
in transformers. Rank 0 serves requests, and broadcasts the chunks of each pass.
"""

import importlib.util
import os
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers.distributed.configuration_utils import DistributedConfig

from outrider.engine.chunk import Chunk
from outrider.engine.device import choose_device
from outrider.errors import ConfigurationError, ServiceUnavailable, UnsupportedModel, install_hint

# There may be a long time without requests between two passes.
_NO_TIMEOUT = timedelta(days=365)


class Ranks:
    """This process and the others that the model is split among.

    Raises:
        ConfigurationError: torchrun has not started `size` processes, or `device` names one
            device for all of them.
    """

    def __init__(self, size: int, device: str) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) != size:
            raise ConfigurationError(
                f"--tensor-parallel {size} needs {size} processes: torchrun --nproc-per-node "
                f"{size} -m target_service --tensor-parallel {size} ..."
            )
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigurationError("with --tensor-parallel, --device is auto, cpu or cuda")
        self.size = size
        self.is_first = os.environ["RANK"] == "0"
        has_gpu = device != "cpu" and torch.cuda.is_available()
        self.device = f"cuda:{os.environ['LOCAL_RANK']}" if has_gpu else device
        if has_gpu:
            choose_device(self.device)
            if importlib.util.find_spec("accelerate") is None:
                raise ConfigurationError(
                    "transformers loads a model onto several GPUs with a package more; "
                    + install_hint("tensor-parallel")
                )
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if has_gpu else "gloo")
        self._announcements = dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)

    def loading(self, config: Any) -> dict[str, Any]:
        """The arguments for transformers to load this rank's part of a model.

        Raises:
            UnsupportedModel: the model has no plan, or cannot be split among this many ranks.
        """
        text = config.get_text_config()
        if not getattr(text, "base_model_tp_plan", None):
            raise UnsupportedModel(f"{config.model_type}: no plan for tensor parallelism")
        num_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        if num_heads % self.size:
            raise UnsupportedModel(
                f"{num_heads} key-value heads cannot be parted evenly among {self.size} ranks"
            )
        return {"distributed_config": DistributedConfig(tp_size=self.size)}

    def least(self, value: int) -> int:
        """The minimum of `value` over all ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._announcements)
        return int(min(values))

    def announce(self, chunks: Sequence[Chunk] | None) -> None:
        """Broadcasts the chunks of the next pass; None: there is no further pass.

        Raises:
            ServiceUnavailable: a rank is gone.
        """
        if self.is_first:
            self._broadcast(chunks)

    def follow(self, run_pass: Callable[[Sequence[Chunk]], Any]) -> None:
        """Runs the passes that rank 0 announces, until it stops. Ignores SIGINT and SIGTERM.

        Raises:
            ServiceUnavailable: a rank is gone.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while (chunks := self._broadcast(None)) is not None:
            run_pass(chunks)

    def _broadcast(self, chunks: Sequence[Chunk] | None) -> Sequence[Chunk] | None:
        """The argument of rank 0, at every rank."""
        message = [chunks]
        try:
            dist.broadcast_object_list(message, src=0, group=self._announcements)
        except RuntimeError as error:
            raise ServiceUnavailable("another rank of the model is gone") from error
        return message[0]
