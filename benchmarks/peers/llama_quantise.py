"""Quantises a GGUF with llama.cpp: `python llama_quantise.py JOB` in the peer's environment. Prints the file's size."""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp as llama

TYPES = {"Q4_1": llama.LLAMA_FTYPE_MOSTLY_Q4_1, "Q4_K_M": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M}


@llama.llama_log_callback
def silent(_level, _text, _data):
    pass


def main(job):
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    params = llama.llama_model_quantize_default_params()
    params.ftype = TYPES[job["type"]]
    params.nthread = job["threads"]
    failed = llama.llama_model_quantize(job["source"].encode(), job["target"].encode(), ctypes.byref(params))
    if failed:
        sys.exit(f"{job['source']} cannot be quantised to {job['type']}")
    print(json.dumps(Path(job["target"]).stat().st_size))


main(json.loads(Path(sys.argv[1]).read_text()))
