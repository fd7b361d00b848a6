"""The peer of llama.cpp: `python llama_slots.py JOB` in the peer's environment. The embedded GGUF (Q4_1) as it is, as
many sequences in one batch as there are prompts, each reading its own, as slots of llama-server do; sampled at the
chat's temperature. Prints what each repetition took.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp as llama


@llama.llama_log_callback
def silent(_level, _text, _data):
    pass


def fill(batch, rows):
    """rows: [(token, position, sequence, wanted)]"""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = sequence


def main(job):
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    loading = llama.llama_model_default_params()
    # Weights in another layout: of Q4_1 there is one alone, for AMX, and its product ends the process with a fault.
    loading.use_extra_bufts = False
    model = llama.llama_model_load_from_file(job["gguf"].encode(), loading)
    params = llama.llama_context_default_params()
    prompts, tokens = job["prompts"], job["tokens"]
    params.n_ctx = len(prompts) * (max(map(len, prompts)) + tokens + 8)  # divided by the sequences
    params.n_batch, params.n_ubatch, params.n_seq_max = 512, 512, len(prompts)
    params.n_threads = params.n_threads_batch = job["threads"]
    context = llama.llama_init_from_model(model, params)
    batch, runs = llama.llama_batch_init(512, 0, 1), []
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_temp(0.7))
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(0))

    def sampled(row):
        return llama.llama_sampler_sample(chain, context, row)

    for _ in range(job["repeats"] + 1):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.perf_counter()
        last = {}
        for sequence, prompt in enumerate(prompts):
            for at in range(0, len(prompt), 512):
                part = prompt[at : at + 512]
                fill(batch, [(t, at + i, sequence, at + i == len(prompt) - 1) for i, t in enumerate(part)])
                assert llama.llama_decode(context, batch) == 0
            last[sequence] = sampled(-1)
            if sequence == 0:
                first = time.perf_counter() - start
        both = time.perf_counter() - start
        for n in range(1, tokens):
            fill(batch, [(last[s], len(prompt) + n - 1, s, True) for s, prompt in enumerate(prompts)])
            assert llama.llama_decode(context, batch) == 0
            last = {s: sampled(s) for s in last}
        runs.append({"seconds": time.perf_counter() - start, "first": first, "both": both})
    print(json.dumps(runs[1:]))


main(json.loads(Path(sys.argv[1]).read_text()))
