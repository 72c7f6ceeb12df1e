"""A local stub of the hub with one model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONFIG = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 500,
    "tie_word_embeddings": True,
}  # fmt: skip
FILES = [{"rfilename": f"model-0000{n}-of-00002.safetensors", "size": n * 10**9} for n in (1, 2)]
ANSWERS = {
    "/org/model/resolve/main/config.json": CONFIG,
    "/org/adapters/resolve/main/adapter_config.json": {"base_model_name_or_path": "org/model"},
    "/api/models/org/model?blobs=true": {"siblings": [*FILES, {"rfilename": "README.md", "size": 5}]},
    "/api/models/org/pickled?blobs=true": {"siblings": [{"rfilename": "pytorch_model.bin", "size": 5}]},
}


@contextmanager
def serving(asked: list[str]) -> Iterator[str]:
    """The URL of the stub; requested paths are appended to `asked`."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = ANSWERS.get(self.path)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            if answer is not None:
                self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
