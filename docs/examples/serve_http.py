"""Serve a bundle over HTTP with the standard library; requests look as they do for TensorFlow Serving.

python docs/examples/serve_http.py MY_BUNDLE 8501
curl localhost:8501/v1/models/model:predict -d '{"inputs": {"x": [[0.1, 0.2]]}}'
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

import refimpl
from refimpl.errors import RefimplError


def answer(bundle, body: bytes) -> tuple[int, dict]:
    """Status and reply: 400 says what is wrong with a request, and nothing else ends the server."""
    try:
        request = json.loads(body)
        spec = bundle.signature(request.get("signature_name", ""))
        dtypes = {item.name: item.numpy_dtype() for item in spec.inputs}
        inputs = {name: np.asarray(value, dtypes.get(name)) for name, value in request["inputs"].items()}
        outputs = bundle.infer(inputs, spec.key)  # any number of threads may be here at once
    except (RefimplError, ValueError, TypeError, KeyError, AttributeError) as error:
        return 400, {"error": f"{type(error).__name__}: {error}"}
    return 200, {"outputs": {name: value.tolist() for name, value in outputs.items()}}


def server(bundle, port: int) -> ThreadingHTTPServer:
    """A server, ready for ``serve_forever``; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, reply = answer(bundle, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.send_error(405, "POST to /v1/models/model:predict")

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    made = server(refimpl.load(folder), int(port))
    print(f"listening on port {made.server_port}", flush=True)
    made.serve_forever()
