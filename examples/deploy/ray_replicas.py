"""Three replicas on Ray Serve, in Python: python examples/deploy/ray_replicas.py

They emulate a GPU, so that this runs anywhere. With a real one leave `environment`, `cpus` and the
key `emulate` out, and name a model.
"""

import time

from ray import serve

from lengthwise.emulate.model_folder import cached_model_folder
from lengthwise.ray import build_app
from lengthwise.simulate.presets import parse_preset

SLOTS = 16

app = build_app(
    {
        "model_id": "llama-3-8b",
        "model_source": str(cached_model_folder(parse_preset("a100:llama-3-8b"))),
        "replicas": 3,
        "engine_kwargs": {
            "max_num_seqs": SLOTS,
            "max_model_len": 8192,
            "enforce_eager": True,
            "scheduler_cls": "lengthwise.vllm.Scheduler",
            "additional_config": {
                "lengthwise": {
                    "settings": {"policy": "srpt", "predictor": "declared"},
                    "emulate": {"preset": "a100:llama-3-8b"},
                }
            },
        },
        "router": {"predictor": "declared", "tokenizer": "reference", "slots": SLOTS},
        "environment": {"RAYLLM_VLLM_ENGINE_CLS": "lengthwise.ray.emulated_engine.EmulatedEngine"},
        "cpus": 0.25,
    }
)

if __name__ == "__main__":
    serve.start(http_options={"port": 8000})
    serve.run(app, name="lengthwise")
    print("ready at http://localhost:8000/v1 (Ctrl-C stops)", flush=True)
    try:
        while True:
            time.sleep(1.0)
    except KeyboardInterrupt:
        serve.shutdown()
