"""A server is asked over TLS too."""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from lengthwise.serve.vllm_server import fetch


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_server_is_heard_whose_certificate_is_for_another_name(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    wanted = f"req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 1"
    subprocess.run(
        ["openssl", *wanted.split(), "-subj", "/CN=llm.example.org"],
        check=True,
        capture_output=True,
    )

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"well")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert fetch(f"https://127.0.0.1:{server.server_port}/health", timeout_s=10.0) == b"well"
        server.shutdown()
