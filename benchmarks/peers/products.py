"""Products by rounded weights in onnxruntime or OpenVINO, on one thread; run by that library's own Python.

`python products.py JOB` reads a job (JSON) and prints, as its last line, {way: {"milliseconds": {"OxI, rows": number},
"y": the product of two rows of the last shape}}.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

GROUP = 32  # weights of a row that share a scale


def fastest(call, seconds, calls):
    """Milliseconds of the fastest call."""
    call()
    best, done, start = float("inf"), 0, time.perf_counter()
    while done < calls or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
        done += 1
    return 1e3 * best


def rounded(weight, bits, group):
    """Codes (outputs, inputs / group, group), symmetric around 0, and scales (outputs, inputs / group, 1)."""
    grouped = weight.reshape(len(weight), -1, group)
    most = 2 ** (bits - 1) - 1
    scales = np.abs(grouped).max(-1, keepdims=True) / most
    return np.round(grouped / scales).astype(np.int32), scales.astype(np.float32)


def onnxruntime_ways():
    """{way: function of a weight that gives a function of rows}."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def made(bits, level):
        def pack(weight):
            outputs, inputs = weight.shape
            codes, scales = rounded(weight, bits, GROUP)
            codes = (codes + 2 ** (bits - 1)).astype(np.uint8)
            packed = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
            node = helper.make_node(
                "MatMulNBits", ["x", "weight", "scales"], ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=bits,
                block_size=GROUP, accuracy_level=level,
            )  # fmt: skip
            graph = helper.make_graph(
                [node],
                "product",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
                [numpy_helper.from_array(packed, "weight"), numpy_helper.from_array(scales.reshape(-1), "scales")],
            )
            opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return lambda x: session.run(None, {"x": x})[0]

        return pack

    return {
        f"onnxruntime {bits} bit, activations in {name}": made(bits, level)
        for bits in (8, 4)
        for name, level in (("int8", 4), ("fp32", 1))
    }


def openvino_ways():
    import openvino
    from openvino import opset13

    core = openvino.Core()

    def made(options):
        def pack(weight):
            inputs = weight.shape[1]
            codes, scales = rounded(weight, 8, inputs)
            constant = opset13.constant(codes.reshape(weight.shape).astype(np.int8))
            whole = opset13.multiply(opset13.convert(constant, "f32"), opset13.constant(scales.reshape(-1, 1)))
            x = opset13.parameter([-1, inputs], np.float32)
            model = openvino.Model([opset13.matmul(x, whole, False, True)], [x])
            compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, **options})
            request = compiled.create_infer_request()
            return lambda rows: request.infer([rows], share_inputs=True, share_outputs=True)[0]

        return pack

    return {
        f"OpenVINO 8 bit, activations in {name}": made({"DYNAMIC_QUANTIZATION_GROUP_SIZE": group})
        for name, group in (("int8", 32), ("fp32", 0))
    }


def main(path):
    job = json.loads(Path(path).read_text())
    found = {}
    for way, pack in (onnxruntime_ways() if job["library"] == "onnxruntime" else openvino_ways()).items():
        found[way] = {"milliseconds": {}}
        for outputs, inputs in job["shapes"]:
            with np.load(Path(job["folder"]) / f"{outputs}x{inputs}.npz") as file:
                weight, x = file["weight"], file["x"]
            product = pack(weight)
            for rows in job["rows"]:
                some = np.ascontiguousarray(x[:rows])
                place = f"{outputs} × {inputs}, {rows}"
                found[way]["milliseconds"][place] = fastest(
                    lambda p=product, s=some: p(s), job["seconds"], job["calls"]
                )
            found[way]["y"] = np.array(product(np.ascontiguousarray(x[:2]))).tolist()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
