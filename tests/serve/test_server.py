"""A server is asked over TLS too, and whatever becomes of what it prints, it is read on."""

from __future__ import annotations

import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.serve.command import ServerCommand
from lengthwise.serve.vllm_server import Server, fetch


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


def printing(folder: Path, source: str) -> ServerCommand:
    """A server whose child runs this instead of vLLM's API server."""
    module = folder / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    for package in (module.parent, *module.parent.parents[:2]):
        (package / "__init__.py").touch()
    module.write_text(source)
    path = os.pathsep.join([str(folder), *sys.path])
    return ServerCommand([], os.environ | {"PYTHONPATH": path}, "127.0.0.1", 9)


MUCH = "for number in range(5000): print('a line that fills the pipe', number, flush=True)"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk is Linux's")
def test_a_server_with_a_log_on_a_full_disk_goes_on_and_says_why_it_ended(tmp_path: Path) -> None:
    with (
        Server(printing(tmp_path, MUCH), Path("/dev/full")) as server,
        pytest.raises(LengthwiseError, match="fills the pipe 4999"),
    ):
        server.wait_ready(timeout_s=60.0)


def test_a_server_goes_on_without_the_reader_of_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w"))
    with (
        Server(printing(tmp_path, MUCH), None) as server,
        pytest.raises(LengthwiseError, match="fills the pipe 4999"),
    ):
        server.wait_ready(timeout_s=60.0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # so that it can be closed


def test_what_is_lost_is_said_when_somebody_reads_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)
    endless = "import itertools, time\nfor number in itertools.count():\n"
    command = printing(tmp_path, endless + "    print(number, flush=True); time.sleep(0.01)")
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    with Server(command, log) as server:

        def until_printed(number: int) -> int:
            deadline = time.monotonic() + 60.0
            while (printed := int(server._last_words.reason() or -1)) < number:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return printed

        until_printed(3)
        assert os.read(reader, 1000).startswith(b"0\n1\n")
        os.close(reader)
        until_printed(until_printed(0) + 10)
        with log.open("rb") as again:
            lines = iter(again.readline, b"")
            assert any(b"lines are missing above" in line for line in lines)
            assert next(lines).strip().isdigit()


def test_a_log_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the server's log"):
        Server(printing(tmp_path, MUCH), tmp_path)
