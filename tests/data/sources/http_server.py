"""A real HTTP server on localhost, whose answers break as tests want."""

import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` by path, with ranges.

    Attributes:
        files: content by path.
        requests: (method, path, first byte asked for) of all that came.
        sent: bytes of content by path.
        drops: after how many bytes the next answers to GET of a path end in a broken connection (None: they do not),
            by path.
        statuses: what the next answers of a path are instead, by path.
        ranges: whether it knows Range.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.files, self.requests, self.sent = {}, [], Counter()
        self.drops, self.statuses, self.ranges = {}, {}, True
        self.url = f"http://localhost:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def asked(self, path, method="GET"):
        """The first bytes of what was asked for of a path."""
        return [first for kind, name, first in self.requests if (kind, name) == (method, path)]

    def close(self):
        self.shutdown()
        self.server_close()
        self.thread.join(5)

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        server, path = self.server, self.path
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if server.ranges else None
        server.requests.append((self.command, path, int(wanted[1]) if wanted else 0))
        status = server.statuses[path].pop(0) if server.statuses.get(path) else 200
        if path not in server.files:
            status = 404
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.files[path]
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if server.drops.get(path) and (end := server.drops[path].pop(0)) is not None:
            content, self.close_connection = content[:end], True
        server.sent[path] += len(content)
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass
