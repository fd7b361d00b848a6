"""The trunk that reads a reply for its features: the quantised base up to two thirds of its depth. The chat and
training share it; what is made of the features is `scorer.py`'s.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from playground.models import adapter_reading, adapters, loading, lora, structure
from playground.models.batches import pad
from playground.settings import Settings
from playground.system import gpu_share

DEPTHS = (0.03, 0.1, 1 / 3, 2 / 3)  # of the layers read, as fractions of the blocks, where the setting names none
BATCH_TOKENS = 1024  # read at once on a CPU, padding included: more of them leave its cache
GPU_BATCH_TOKENS = 16384  # on a GPU, which small batches keep waiting
GPU_BATCH = 4  # times as many replies are read at once on a GPU

TokenisedReply = tuple[list[int], list[int]]  # (prompt ids, completion ids)


def _ignore_progress(_done: int, _total: int) -> None:
    pass


class FeatureTrunk:
    """The quantised base up to the deepest layer read; turns a reply into D features. `parts` are the features' widths:
    one for each layer, and a last one for the length.
    """

    def __init__(self, settings: Settings, model: PreTrainedModel | None = None) -> None:
        """The trunk is loaded, or it is `model`, in the format of `reward.quantisation`, whose upper blocks go."""
        self.model = model or loading.load_trunk(settings, settings.reward.quantisation, lean=True)
        blocks = structure.blocks(self.model)
        depths = [settings.reward.layer] if settings.reward.layer else DEPTHS
        self.layers = sorted({max(1, round(depth * len(blocks))) for depth in depths})
        self._hidden: dict[int, torch.Tensor] = {}  # states (N, L, width) after each layer, of the last forward
        for layer in self.layers:
            blocks[layer - 1].register_forward_hook(partial(self._keep, layer))
        del blocks[self.layers[-1] :]
        self.targets = lora.linear_targets(self.model)
        larger = GPU_BATCH if self.model.device.type == "cuda" else 1
        self.batch = larger * settings.reward.batch
        self.batch_tokens = GPU_BATCH_TOKENS if larger > 1 else BATCH_TOKENS
        self.most = structure.positions(self.model.config)
        width = structure.input_embeddings(self.model).embedding_dim
        self.parts = [width] * len(self.layers) + [1]
        self.peft: PeftModel | None = None

    def _keep(
        self,
        layer: int,
        _module: torch.nn.Module,
        _inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor | tuple[torch.Tensor, ...],
    ) -> None:
        self._hidden[layer] = output[0] if isinstance(output, tuple) else output

    def batch_features(self, replies: Sequence[TokenisedReply]) -> torch.Tensor:
        """Features of replies, cut to what the model takes: (N, D) fp32, with gradients where they are enabled."""
        gpu_share.between_units()
        replies = [loading.cut(prompt, completion, self.most) for prompt, completion in replies]
        device = next(self.model.parameters()).device
        ids, mask = pad([[*prompt, *completion] for prompt, completion in replies], device=device)  # (N, L)
        in_completion, _ = pad(
            [[0] * len(prompt) + [1] * len(completion) for prompt, completion in replies], device=device
        )
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        trunk = self.model.base_model
        trunk(**structure.inputs(trunk, input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False))
        weights = in_completion[..., None].float()  # (N, L, 1)
        length = weights.sum(1).clamp(min=1)  # (N, 1)
        means = [(self._hidden[layer].float() * weights).sum(1) / length for layer in self.layers]  # (N, width) each
        return torch.cat([*means, length.log()], -1)

    @torch.no_grad()
    def features(
        self, replies: Sequence[TokenisedReply], on_batch: Callable[[int, int], None] = _ignore_progress
    ) -> torch.Tensor:
        """Features (N, D) of replies, fp32 on the CPU, in the order given. `on_batch(done, total)` is called after each
        batch. Batches are of similar lengths, which saves time and changes nothing else.
        """
        out = torch.zeros(len(replies), sum(self.parts))
        order = sorted(range(len(replies)), key=lambda i: sum(map(len, replies[i])))
        done = 0
        while done < len(order):
            rows = order[done : done + self.batch]
            while len(rows) > 1 and len(rows) * sum(map(len, replies[rows[-1]])) > self.batch_tokens:
                rows.pop()
            out[rows] = self.batch_features([replies[i] for i in rows]).cpu()
            done += len(rows)
            on_batch(done, len(order))
        return out

    def attach_lora(self, rank: int, tensors: adapter_reading.Tensors | None = None) -> dict[str, torch.nn.Parameter]:
        """Put an fp32 LoRA below the features (zero, or with the given tensors); returns its parameters by name."""
        if self.peft is None:
            self.peft = lora.with_lora(self.model, rank=rank, alpha=2 * rank, targets=self.targets)
        parameters = lora.lora_parameters(self.peft)
        if tensors is not None:
            adapters.copy_strictly(tensors, parameters)
        return parameters
