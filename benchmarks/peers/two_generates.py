"""The peer of two `generate` calls: `python two_generates.py JOB` in the peer's environment. transformers alone, bf16,
one call a reply, as a page without an engine does. Prints what each repetition took."""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer


class First(BaseStreamer):
    """Notes when the first token of the reply comes; the prompt comes before it."""

    def __init__(self):
        self.seen, self.at = 0, None

    def put(self, _tokens):
        self.seen += 1
        if self.seen == 2:
            self.at = time.perf_counter()

    def end(self):
        pass


def main(job):
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=0)
    ids, runs = torch.tensor([job["prompt"]]), []
    for _ in range(job["repeats"] + 1):
        start, firsts = time.perf_counter(), []
        for _ in range(2):
            first = First()
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=job["tokens"],
                min_new_tokens=job["tokens"],
                do_sample=True,
                temperature=0.7,
                top_k=0,
                top_p=1.0,
                streamer=first,
            )
            assert out.shape[1] == len(job["prompt"]) + job["tokens"]
            firsts.append(first.at - start)
        runs.append({"seconds": time.perf_counter() - start, "first": firsts[0], "both": firsts[1]})
    print(json.dumps(runs[1:]))


main(json.loads(Path(sys.argv[1]).read_text()))
