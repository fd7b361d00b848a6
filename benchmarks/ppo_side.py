"""Our side of `ppo_step`: `python -m benchmarks.ppo_side JOB` runs the job's PPO iterations and prints what they took,
as the peer does.

Sizes and rates are the settings that the environment names; the job adds the prompts and the reward's head.
"""

import itertools
import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from playground.models import loading
from playground.settings import read
from training import ppo
from training.policy import PolicyModel


class Reward:
    """A frozen copy of the base with a fixed linear head on the hidden state of a reply's last token: as dear as TRL's
    reward model.
    """

    def __init__(self, trunk, head, rows):
        self.trunk, self.head, self.rows, self.tokens = trunk.base_model, torch.tensor(head), rows, []

    @torch.no_grad()
    def __call__(self, episodes):
        """Scores (N,); also notes the tokens of the replies."""
        self.tokens.append(sum(len(e.completion) for e in episodes))
        scores = []
        for start in range(0, len(episodes), self.rows):
            rows = [torch.tensor(e.prompt + e.completion) for e in episodes[start : start + self.rows]]
            ids, mask = (
                pad_sequence(x, batch_first=True).to(self.trunk.device)
                for x in (rows, [torch.ones_like(row) for row in rows])
            )
            out = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False)
            last = mask.sum(-1) - 1
            scores.append(out.last_hidden_state[torch.arange(len(last)), last].float() @ self.head)
        return torch.cat(scores)


def train(job, settings):
    """All of the settings' iterations on the job's prompts, no reply ever ending by itself; returns the seconds, the
    processor's seconds and the tokens of each."""
    reward = Reward(loading.load_trunk(settings), job["reward_head"], settings.reward.batch)
    trainer = ppo.Trainer(PolicyModel(loading.load_trunk(settings, training=True), settings), settings)
    times = [(time.monotonic(), time.process_time())]

    def on_iteration(_trainer, _metrics):
        times.append((time.monotonic(), time.process_time()))

    ppo.train_ppo(trainer, lambda _n, _rng: job["prompts"], reward, frozenset(), on_iteration)
    seconds, cpu = (
        [after - before for before, after in itertools.pairwise(clock)] for clock in zip(*times, strict=True)
    )
    return {"seconds": seconds, "cpu_seconds": cpu, "tokens": reward.tokens}


def main(path):
    job, settings = json.loads(Path(path).read_text()), read([])
    torch.set_num_threads(settings.threads)
    print(json.dumps({**train(job, settings), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(sys.argv[1])
