"""The other process on a GPU: a chat that holds its memory, or a worker that trains without end. A benchmark starts it.

`python -m benchmarks.gpu_side serve|train FILE`, with settings from the environment. It appends a line to FILE when it
is ready, with the time on the monotonic clock, and `train` one more after each PPO iteration.
"""

import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import gpu_decode
from playground.decoding.graph_forward import GraphForward
from playground.decoding.sampling import Sampling
from playground.models import loading
from playground.settings import read
from playground.system import memory
from playground.system.child import Child
from training import gpu as gpu_memory
from training import ppo, program, rollout
from training.policy import PolicyModel

READY_SECONDS = 120  # that the process may take until it is ready
SLOTS, SLOT_TOKENS = 2, 1410  # of the chat: two messages of the longest context and replies at once


@contextmanager
def running(role, settings, name=""):
    """(Child, its file) of a process that has said that it is ready; it is ended afterwards."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    file = settings.data_dir / f"{role}.lines"
    file.write_text("")
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **settings.environ(), "PYTHONPATH": path}
    child = Child([sys.executable, "-m", "benchmarks.gpu_side", role, str(file), name], env).start()
    try:
        yield child, file
    finally:
        child.stop()


def wait_until_ready(file):
    """The line by which the process says that it is ready, as a dict."""
    end = time.monotonic() + READY_SECONDS
    while not lines(file):
        if time.monotonic() > end:
            raise TimeoutError(f"the other process was not ready within {READY_SECONDS} s")
        time.sleep(0.05)
    return lines(file)[0]


def lines(file):
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def say(file, **values):
    with open(file, "a") as out:
        out.write(json.dumps({"time": time.monotonic(), **values}) + "\n")


def serve(settings, file, name):
    """A base of the named shape and of random weights in 16 bit, which has answered a message."""
    device = loading.device_of(settings)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = gpu_decode.build(gpu_decode.config(name), device, dtype)
    memory.release()
    forward = GraphForward(model, SLOTS, SLOT_TOKENS)
    decodings = gpu_decode.decodings_of(forward, 1, Sampling(max_tokens=8))
    while not all(decoding.done for decoding in decodings):
        gpu_decode.decoder.step(decodings)
    memory.release()
    say(file, gb=torch.cuda.memory_reserved(device) / 1e9 if device.type == "cuda" else 0.0)
    while True:
        time.sleep(60)


def train(settings, file, _name):
    """PPO on shipped prompts with random rewards, as a worker does it, without end."""
    program.be_quiet(settings)
    program.share_gpu(settings)
    tokenizer = loading.load_tokenizer(settings)
    policy = PolicyModel(loading.load_trunk(settings, settings.ppo.quantisation, training=True), settings)
    prompts = rollout.seed_prompts("train", tokenizer, settings.ppo.rollout_context)
    endless = settings.with_values(ppo={"iterations": 10000, "kl_target": 1e9})
    trainer = ppo.Trainer(policy, gpu_memory.with_room_used(endless))

    def score(episodes):
        return torch.randn(len(episodes), generator=torch.Generator().manual_seed(len(trainer.history)))

    ppo.train_ppo(
        trainer,
        lambda n, rng: rng.sample(prompts, n),
        score,
        frozenset(),  # replies of one length, so that iterations take the same time
        lambda trainer, metrics: say(file, iteration=trainer.iteration),
    )


def main():
    role, file, name = sys.argv[1:4]
    settings = read([], prog="python -m benchmarks.gpu_side")
    memory.return_freed_memory()
    memory.let_gpu_segments_grow()
    {"serve": serve, "train": train}[role](settings, file, name)


if __name__ == "__main__":
    main()
