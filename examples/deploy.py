"""Classify images with onnxruntime alone: no torch, no prunerob.

python examples/deploy.py FOLDER/model.onnx, as `prunerob export` has written it.
"""

import sys

import numpy as np
import onnxruntime

if len(sys.argv) != 2:
    sys.exit("usage: python deploy.py FOLDER/model.onnx")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(images,) = session.get_inputs()
channels, height, width = images.shape[1:]

# Pixels in [0, 1]; normalisation, if there is any, is inside of the file.
x = np.random.default_rng(0).random((4, channels, height, width), dtype=np.float32)
(logits,) = session.run(None, {images.name: x})

shares = np.exp(logits - logits.max(1, keepdims=True))
shares /= shares.sum(1, keepdims=True)
for label, share in zip(logits.argmax(1), shares.max(1), strict=True):
    print(f"class {label}, {share:.1%}")
