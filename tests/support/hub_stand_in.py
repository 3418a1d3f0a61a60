"""A small stand-in of the hub's HTTP interface: repositories of models with commits, in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_may_write"  # noqa: S105 (the stand-in's own)


class Hub:
    def __init__(self):
        self.repositories = {}  # owner/name, or owner/name@branch -> commits, each (sha, {file: bytes})
        self.gated = set()
        self.objects = {}  # of large files, by their sha256
        self.requests = []
        self.bodies = []  # of POST, with their paths
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def put(self, repository, **files):
        """A commit, by whoever else; a file name's dots are written as __."""
        commits = self.repositories.setdefault(repository, [])
        before = commits[-1][1] if commits else {}
        after = before | {name.replace("__", "."): content for name, content in files.items()}
        return self.commit(repository, after)

    def commit(self, repository, files):
        commits = self.repositories[repository]
        sha = hashlib.sha256(f"{repository}{len(commits)}".encode()).hexdigest()[:40]
        commits.append((sha, files))
        return sha

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def named(repository, branch):
    """Where the commits of a branch are kept."""
    return repository if branch == "main" else f"{repository}@{branch}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def found(self, repository, revision):
        """A commit's name and files; None where the answer was given."""
        hub = self.hub
        if repository not in hub.repositories:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if repository in hub.gated:
            return self.answer(403, X_Error_Code="GatedRepo")
        if revision == "main" or f"{repository}@{revision}" in hub.repositories:
            return hub.repositories[named(repository, revision)][-1]
        for name, commits in hub.repositories.items():
            for sha, files in commits if name.partition("@")[0] == repository else ():
                if revision == sha:
                    return sha, files
        return self.answer(404, X_Error_Code="RevisionNotFound")

    def do_GET(self):
        self.hub.requests.append((self.command, self.path))
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (found := self.found(match[1], match[2])) is None:
                return
            sha, files = found
            if match[3] not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
                return
            content = files[match[3]]
            self.answer(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=sha)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if (found := self.found(match[1], match[2])) is not None:
                self.answer(
                    200, [{"type": "file", "path": n, "size": len(x), "oid": "0"} for n, x in found[1].items()]
                )
        else:
            self.answer(404, f"no {path}".encode())

    do_HEAD = do_GET  # noqa: N815 (http.server's names)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def do_POST(self):
        self.hub.requests.append((self.command, self.path))
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.bodies.append((path, body))
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            data = json.loads(body)
            repository = "/".join(filter(None, (data.get("organization"), data["name"])))
            if repository in hub.repositories:
                self.answer(409, {"url": f"{hub.url}/{repository}"})
                return
            hub.repositories[repository] = []
            hub.commit(repository, {".gitattributes": b""})
            self.answer(200, {"url": f"{hub.url}/{repository}"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            modes = [
                (x["path"], "lfs" if x["path"].endswith(".safetensors") else "regular")
                for x in json.loads(body)["files"]
            ]
            self.answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**x, "actions": {"upload": {"href": f"{hub.url}/put/{x['oid']}"}}}
                for x in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            if named(*match.groups()) in hub.repositories:
                self.answer(409, {"error": "Reference already exists"})
                return
            hub.repositories[named(*match.groups())] = hub.repositories[match[1]][-1:]
            self.answer(200, {})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            where = named(*match.groups())
            files = dict(hub.repositories[where][-1][1])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = hub.commit(where, files)
            self.answer(200, {"commitUrl": f"{hub.url}/{match[1]}/commit/{sha}", "commitOid": sha})
        else:
            self.answer(404, f"no {path}".encode())
