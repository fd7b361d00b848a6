"""What llama.cpp says after a prompt: `python llama_next_token.py JOB` in the peer's environment. Writes the logits
(vocabulary,) to a file of numpy and prints the most likely token.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def silent(_level, _text, _data):
    pass


def main(job):
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = False  # as of llama_slots.py
    model = llama.llama_model_load_from_file(job["gguf"].encode(), loading)
    prompt = job["prompt"]
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = len(prompt)
    params.n_threads = params.n_threads_batch = job["threads"]
    context = llama.llama_init_from_model(model, params)
    tokens = (llama.llama_token * len(prompt))(*prompt)
    assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(prompt))) == 0
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(vocabulary,))
    np.save(job["file"], logits)
    print(json.dumps(int(logits.argmax())))


main(json.loads(Path(sys.argv[1]).read_text()))
