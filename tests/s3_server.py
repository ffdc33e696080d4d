"""An S3 server on this machine, on a folder: as much of the protocol as object stores are used with here.

Amazon Simple Storage Service API Reference: GetObject with a range, HeadObject, PutObject, DeleteObject, ListObjectsV2,
and multipart uploads; signatures are not checked, only the name of the key.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEY, PAGE = "key", 5  # the access key; objects in an answer to a listing


class S3Server:
    """Serves a folder, whose sub-folders are its buckets, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need; the last one as it takes no checksums behind a body."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen([sys.executable, __file__, str(self.folder), str(self.port)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise TimeoutError("the S3 server does not answer")

    def stop(self) -> None:
        """Stop it: connections are refused from now on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Handler(BaseHTTPRequestHandler):
    """One connection; objects are files, and keys that end with a slash are folders."""

    protocol_version = "HTTP/1.1"
    folder: Path
    parts: Path

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _do(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.bucket, _, self.key = unquote(url.path)[1:].partition("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            self._refuse(403, "InvalidAccessKeyId")
        elif not (self.folder / self.bucket).is_dir():
            self._refuse(404, "NoSuchBucket")
        else:
            self.file = self.folder / self.bucket / self.key
            getattr(self, "_" + self.command.lower())()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    def _get(self) -> None:
        if not self.key:
            return self._list() if self.command == "GET" else self._answer()
        if not (self.file.is_dir() if self.key.endswith("/") else self.file.is_file()):
            return self._refuse(404, "NoSuchKey")
        content = b"" if self.key.endswith("/") else self.file.read_bytes()
        headers = {"Last-Modified": formatdate(self.file.stat().st_mtime, usegmt=True), "ETag": '"0"'}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            if first > last:
                return self._refuse(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], headers)
        return self._answer(200, content, headers)

    _head = _get

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        bucket = self.folder / self.bucket
        keys = {  # an empty folder is an object of no bytes
            path.relative_to(bucket).as_posix() + "/" * path.is_dir(): path
            for path in bucket.rglob("*")
            if path.is_file() or not any(path.iterdir())
        }
        entries: dict[str, str] = {}
        for key in sorted(key for key in keys if key.startswith(prefix)):
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                entries[key[: end + 1]] = f"<CommonPrefixes><Prefix>{escape(key[: end + 1])}</Prefix></CommonPrefixes>"
                continue
            status = keys[key].stat()
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))
            size = 0 if key.endswith("/") else status.st_size
            entries[key] = (
                f"<Contents><Key>{escape(key)}</Key><LastModified>{changed}</LastModified><ETag>0</ETag>"
                f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        rest = [name for name in entries if name > self.query.get("continuation-token", "")]
        page = rest[: min(PAGE, int(self.query.get("max-keys", PAGE)))]
        more = len(rest) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self._tell(
            "ListBucketResult",
            f"<Name>{self.bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}" + "".join(entries[name] for name in page),
        )

    def _put(self) -> None:
        if "uploadId" in self.query:
            (self.parts / self.query["uploadId"] / f"{int(self.query['partNumber']):05}").write_bytes(self.body)
        elif self.key.endswith("/"):
            self.file.mkdir(parents=True, exist_ok=True)
        else:
            self._store(self.body)
        self._answer(headers={"ETag": '"0"'})

    def _post(self) -> None:
        if "uploads" in self.query:
            upload = f"{time.monotonic_ns()}"
            (self.parts / upload).mkdir(parents=True)
            self._tell("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        else:
            folder = self.parts / self.query["uploadId"]
            self._store(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))
            shutil.rmtree(folder)
            self._tell("CompleteMultipartUploadResult", f"<Key>{escape(self.key)}</Key><ETag>0</ETag>")

    def _store(self, content: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.parts / f"{time.monotonic_ns()}"
        temporary.write_bytes(content)
        temporary.replace(self.file)

    def _delete(self) -> None:
        if self.key.endswith("/"):
            if self.file.is_dir() and not any(self.file.iterdir()):
                self.file.rmdir()
        else:
            self.file.unlink(missing_ok=True)
        self._answer(204)

    def _tell(self, kind: str, content: str) -> None:
        self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?><{kind}>{content}</{kind}>'.encode())

    def _refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, f'<?xml version="1.0" encoding="UTF-8"?>{content}'.encode())

    def _answer(self, status: int = 200, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[1])
    Handler.parts = Handler.folder.with_name(Handler.folder.name + ".parts")
    Handler.parts.mkdir(exist_ok=True)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
