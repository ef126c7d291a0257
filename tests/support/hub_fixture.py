"""A hub as a small server, for the real client to ask."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

COMMIT = "8abb296c09123345b09de57dbc2830b6a12134b1"
COMMITS = (COMMIT, "abcdefa1" + COMMIT[8:], "abcdefa2" + COMMIT[8:])
REVISIONS = {COMMIT, "main", "beefbee"}  # a commit whole, and branches: as the hub takes them


@contextmanager
def hub_of(directory: Path, model: str = "someone/tiny") -> Iterator[SimpleNamespace]:
    """A hub with one model, of the files of `directory`; notes requests, obeys `fault`."""
    hub = SimpleNamespace(requests=[], fault=None, code="RepoNotFound")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            if self.path.startswith(f"/api/models/{model}/revision/"):
                return self.listing()
            if self.path.startswith("/api/datasets/"):
                known = self.path.startswith("/api/datasets/abisee/cnn_dailymail") and hub.fault is None
                return self.send({"id": "abisee/cnn_dailymail"}) if known else self.refuse(hub.fault or 404, hub.code)
            if self.path.startswith(f"/api/models/{model}/commits/main"):
                return self.send([{"id": commit, "title": "", "message": "", "date": "2026-01-13T00:00:00.000Z",
                                   "authors": []} for commit in COMMITS])  # fmt: skip
            file = directory / self.path.rpartition("/")[2]
            if not re.fullmatch(rf"/{model}/resolve/{COMMIT}/[^/]+", self.path) or not file.is_file():
                return self.refuse(404, "RepoNotFound")
            data = file.read_bytes()
            start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                if hub.fault == "damaged" and file.suffix == ".safetensors":
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.wfile.write(data[start:])

        def listing(self):
            if hub.fault in (404, 403, 500):
                return self.refuse(hub.fault, {404: "RevisionNotFound", 403: "GatedRepo", 500: ""}[hub.fault])
            if re.split(r"[/?]", self.path)[-2 if "?" in self.path else -1] not in REVISIONS:
                return self.refuse(404, "RevisionNotFound")
            files = []
            for path in sorted(directory.iterdir()):
                entry = {"rfilename": path.name, "size": path.stat().st_size, "blobId": "0" * 40}
                if path.suffix == ".safetensors":
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": entry["size"], "pointerSize": 134}
                files.append(entry)
            files.append({"rfilename": "modeling.py", "size": 3, "blobId": "0" * 40})
            self.send({"id": model, "sha": COMMIT, "siblings": files})

        def send(self, answer):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
