"""A Hugging Face Hub on 127.0.0.1, as far as creating, uploading to and downloading from model repositories goes.

Point ``HF_ENDPOINT`` at `LoopbackHub.url`. Every file is a regular one (no LFS, no Xet); all commits are kept.
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repo:
    """Commits of one repository, oldest first: hash and files of each."""

    private: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=lambda: [("0" * 40, {})])

    def at(self, revision: str) -> tuple[str, Files] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def commit(self, lines: list[dict]) -> str:
        files = dict(self.commits[-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        listing = json.dumps([len(self.commits), *sorted(map(blob_hash, files.values()))])
        self.commits.append((hashlib.sha1(listing.encode()).hexdigest(), files))
        return self.commits[-1][0]


def blob_hash(content: bytes) -> str:
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub:
    """The server, running while inside the ``with`` block.

    Args:
        token: What a request must carry to write, or to read a private repository.
    """

    def __init__(self, token: str = "hf_loopback"):
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []  # "METHOD path" of each, in order
        self.faults: dict[str, list[int]] = {}  # by pattern of "METHOD path": statuses of the next answers, 0 for none

    def __enter__(self) -> "LoopbackHub":
        hub = self
        handler = type("Handler", (HubRequest,), {"hub": hub})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()


class HubRequest(BaseHTTPRequestHandler):
    """One request to the hub."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._note()
        if self._fails():
            return
        if parts[:2] == ["api", "models"]:
            self._model(parts[2:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "EntryNotFound", "no such address")

    def do_POST(self) -> None:
        parts = self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._fails():
            return
        if not self._allowed():
            self._error(401, None, "Invalid username or password.")
        elif parts[:3] == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            self._preupload("/".join(parts[2:4]), [file["path"] for file in json.loads(body)["files"]])
        elif parts[4:5] == ["commit"]:
            repo_id = "/".join(parts[2:4])
            sha = self.hub.repos[repo_id].commit([json.loads(line) for line in body.splitlines()])
            self._json({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True})
        else:
            self._error(404, "EntryNotFound", "no such address")

    def _create(self, wanted: dict) -> None:
        repo_id = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if repo_id in self.hub.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"}, 409)
            return
        self.hub.repos[repo_id] = Repo(private=wanted.get("visibility") == "private")
        self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def _preupload(self, repo_id: str, paths: list[str]) -> None:
        """How to send each file, and the hash of what is there already."""
        there = self.hub.repos[repo_id].commits[-1][1]
        answers = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
        for answer in answers:
            if answer["path"] in there:
                answer["oid"] = blob_hash(there[answer["path"]])
        self._json({"files": answers})

    def _model(self, parts: list[str]) -> None:
        """Information about a repository, or the list of its files."""
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        found = self._find(repo_id, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return
        sha, files = found
        if rest[:1] == ["tree"]:
            self._json([{"type": "file", "path": p, "size": len(c), "oid": blob_hash(c)} for p, c in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            private = self.hub.repos[repo_id].private
            self._json({"id": repo_id, "sha": sha, "private": private, "siblings": siblings, "tags": []})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        """The content of a file, or only its headers."""
        found = self._find(repo_id, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob_hash(files[path])}"'}
        self._send(200, files[path], "application/octet-stream", headers)

    def _find(self, repo_id: str, revision: str) -> tuple[str, Files] | None:
        """A commit's hash and files; answers by itself where there is none to be seen."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._allowed()):
            self._error(404, "RepoNotFound", "Repository not found")
            return None
        commit = repo.at(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _note(self) -> list[str]:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        return path.split("/")

    def _fails(self) -> bool:
        """Whether the hub was told to fail this request, which has its answer then."""
        due = next((due for key, due in self.hub.faults.items() if fnmatch(self.hub.requests[-1], key)), None)
        if not due:
            return False
        if status := due.pop(0):
            self._error(status, None, "come back later")
        else:
            self.close_connection = True
        return True

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    def _error(self, status: int, code: str | None, message: str, headers: dict | None = None) -> None:
        headers = {**(headers or {}), "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
