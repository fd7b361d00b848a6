"""The usual small reward model, as a peer of ours on the same votes: a LoRA on all linear layers and a scalar head on a
reply's last token (InstructGPT, Ouyang et al. 2022; TRL's RewardTrainer), trained with the Bradley–Terry loss on the
votes that decided.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from playground.models import loading, lora
from playground.settings import Settings
from training import preferences, reward_validation
from training.preferences import Pair, Preferences

EPOCHS = 3
PAIRS = 4  # of one optimizer step
LR = 1e-4

Reply = tuple[list[int], list[int]]  # prompt ids, completion ids


class LastToken:
    """The base with a fresh LoRA and head; scores replies."""

    def __init__(self, settings: Settings, seed: int) -> None:
        torch.manual_seed(seed)
        trunk = loading.load_trunk(settings, training=True)
        self.peft = lora.with_lora(
            trunk, rank=settings.ppo.lora_rank, alpha=settings.ppo.lora_alpha, targets=lora.linear_targets(trunk)
        )
        self.trunk = self.peft.get_base_model().base_model
        self.head = torch.nn.Linear(trunk.get_input_embeddings().embedding_dim, 1, bias=False)
        self.parameters = [*lora.lora_parameters(self.peft).values(), *self.head.parameters()]

    def __call__(self, replies: Sequence[Reply]) -> torch.Tensor:
        """Scores (N,) of replies, with gradients where enabled."""
        rows = [torch.tensor([*prompt, *completion]) for prompt, completion in replies]
        ids, mask = (pad_sequence(x, batch_first=True) for x in (rows, [torch.ones_like(row) for row in rows]))
        hidden = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.head(hidden[torch.arange(len(rows)), mask.sum(-1) - 1].float())[:, 0]


def accuracies(
    prefs: Preferences, replies: Sequence[Reply], pairs: Sequence[Pair], settings: Settings, seed: int
) -> list[float]:
    """Train on `prefs`; after each epoch the accuracy on `pairs` of other `replies`."""
    model, order = LastToken(settings, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters, lr=LR, weight_decay=0.0)
    decided = [pair for pair in prefs.pairs if pair.outcome != preferences.TIE]
    by_epoch = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(decided), generator=order).split(PAIRS):
            batch = [decided[i] for i in rows]
            # the better one first
            ordered = [(p.left, p.right) if p.outcome == preferences.A else (p.right, p.left) for p in batch]
            scores = model([prefs.replies[i] for pair in ordered for i in pair])
            optimizer.zero_grad()
            torch.nn.functional.softplus(scores[1::2] - scores[0::2]).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters, settings.ppo.max_grad_norm)
            optimizer.step()
        by_epoch.append(reward_validation.Predictions.of(all_scores(model, replies), 0.0, pairs).accuracy())
    return by_epoch


@torch.no_grad()
def all_scores(model: LastToken, replies: Sequence[Reply], rows: int = 16) -> torch.Tensor:
    """Scores (N,) of all replies, `rows` of like length at once."""
    scores = torch.zeros(len(replies))
    order = sorted(range(len(replies)), key=lambda i: sum(map(len, replies[i])))
    for start in range(0, len(order), rows):
        at = order[start : start + rows]
        scores[at] = model([replies[i] for i in at])
    return scores
