"""A Hugging Face Hub on this machine, for tests: repositories in memory, on 127.0.0.1 and a free port.

It answers what huggingface_hub and `datasets` ask when they create repositories of models and data sets, commit (small
files inline, large ones by LFS), list, and download; private ones for those with the token. A data set is called
"datasets/user/name" here, as in addresses. A test reads `hub.files(...)` directly and may cut the next transfer with
`hub.cut`.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".png", ".parquet")
TOKEN = "hf_of_the_tests"


class Hub:
    """The state of the Hub, and the server that shows it.

    Attributes:
        endpoint: its address.
        repositories: {name: {branch or commit id: {path: bytes}}}.
        blobs: {sha256: bytes}, what LFS received.
        cut: None, or "lfs" or "commit": the server hangs up in the middle of every such request.
        log: the requests, as (method, path).
    """

    def __init__(self):
        self.repositories, self.heads, self.private, self.blobs = {}, {}, set(), {}
        self.cut, self.log, self.lock = None, [], threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def create(self, name):
        self.repositories[name], self.heads[name] = {}, {}
        self.commit(name, "main", {})

    def commit(self, name, branch, files):
        digest = hashlib.sha1(f"{name} {branch} {len(self.repositories[name])}".encode()).hexdigest()
        self.repositories[name][digest] = dict(files)
        self.heads[name][branch] = digest
        return digest

    def find(self, name, revision="main"):
        """(commit id, files), or KeyError."""
        commit = self.heads[name].get(revision, revision)
        return commit, self.repositories[name][commit]

    def files(self, name, revision="main"):
        return self.find(name, revision)[1]

    def head(self, name):
        return self.heads[name]["main"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *arguments):
        """Quiet."""

    def answer(self, body=b"", status=200, headers=None, length=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body) if length is None else length, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code, status=404):
        self.answer({"error": code}, status, {"X-Error-Code": code})

    def hang_up(self):
        """Read half of the request and close the connection."""
        self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
        self.close_connection = True
        self.connection.close()

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path))
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                asks = ("validate-yaml", "/lfs/", "/paths-info/")
                writes = self.command in ("POST", "PUT") and not any(words in path for words in asks)
                if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer({"error": "Invalid username or password."}, 401)
                name = self.arguments(match).get("name")
                if name in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.missing("RepoNotFound", 401)
                if self.hub.cut is not None and function.__name__ == self.hub.cut:
                    return self.hang_up()
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    with self.hub.lock:
                        return function(self, **self.arguments(match))
                except KeyError:
                    return self.missing("RevisionNotFound" if name in self.hub.repositories else "RepoNotFound")
        return self.answer({"error": f"no route: {self.command} {path}"}, 404)

    @staticmethod
    def arguments(match):
        """What a route tells; the name of a repository begins with "datasets/" where it is one of data."""
        found = match.groupdict(default="")
        kind = found.pop("kind", "")
        return {**found, "name": kind.removeprefix("models/") + found["name"]} if "name" in found else found

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    # Routes

    def whoami(self):
        token = {"displayName": "tests", "role": "write"}
        self.answer({"type": "user", "id": "1", "name": "me", "orgs": [], "auth": {"accessToken": token}})

    def create(self):
        request = json.loads(self.body)
        kind = "datasets/" if request.get("type") == "dataset" else ""
        name = f"{kind}{request.get('organization') or 'me'}/{request['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name.removeprefix(kind)}
        if name in self.hub.repositories:
            return self.answer(
                {"error": f"You already created this {request.get('type') or 'model'} repo", **url}, 409
            )
        self.hub.create(name)
        if request.get("private") or request.get("visibility") == "private":
            self.hub.private.add(name)
        return self.answer(url)

    def branch(self, name, branch):
        if branch in self.hub.heads[name]:
            return self.answer({"error": "Reference already exists"}, 409)
        self.hub.heads[name][branch] = self.hub.head(name)
        return self.answer({})

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            good = isinstance(yaml.safe_load(block[1]), dict) if block else True
        except yaml.YAMLError:
            good = False
        errors = [] if good else [{"message": "the metadata is no YAML mapping"}]
        self.answer({"errors": errors, "warnings": []}, 200 if good else 400)

    def info(self, name, revision="main"):
        commit, files = self.hub.find(name, revision)
        self.answer(
            {
                "_id": "0",
                "id": name.removeprefix("datasets/"),
                **({} if name.startswith("datasets/") else {"modelId": name}),
                "sha": commit,
                "private": name in self.hub.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in sorted(files)],
            }
        )

    def tree(self, name, revision, path=""):
        _, files = self.hub.find(name, revision)
        folder = path.strip("/") + "/" if path.strip("/") else ""
        deep = "recursive=true" in self.path.lower()
        entries, folders = [], set()
        for file, content in sorted(files.items()):
            inside = file.removeprefix(folder)
            if not file.startswith(folder):
                continue
            parents = inside.split("/")[:-1]
            folders.update(folder + "/".join(parents[: depth + 1]) for depth in range(len(parents) if deep else 1))
            if deep or not parents:
                entries.append({"type": "file", "path": file, "size": len(content), **identity(file, content)})
        folders.discard(folder)
        if folder and not entries and not folders:
            return self.missing("EntryNotFound")
        return self.answer(
            [{"type": "directory", "path": each, "oid": "0" * 40, "size": 0} for each in sorted(folders) if each]
            + entries
        )

    def paths(self, name, revision):
        _, files = self.hub.find(name, revision)
        entries = []
        for path in parse_qs(self.body.decode())["paths"]:
            if path in files:
                entries.append({"type": "file", "path": path, "size": len(files[path]), **identity(path, files[path])})
            elif any(file.startswith(f"{path}/") for file in files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.answer(entries)

    def preupload(self, name, revision):
        _, files = self.hub.find(name, revision)
        modes = []
        for file in json.loads(self.body)["files"]:
            path, large = file["path"], file["path"].endswith(LARGE)
            known = identity(path, files[path]) if path in files else {}
            oid = known["lfs"]["oid"] if "lfs" in known else known.get("oid")
            mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            modes.append(mode)
        self.answer({"files": modes})

    def lfs_batch(self, name):
        self.hub.find(name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}}
            objects.append({"oid": item["oid"], "size": item["size"]})
            if item["oid"] not in self.hub.blobs:
                objects[-1].update(upload)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "the content has another sha256"}, 400)
        self.hub.blobs[oid] = self.body
        return self.answer({})

    def commit(self, name, revision):
        _, files = self.hub.find(name, revision)
        files = dict(files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(name, revision, files)
        self.answer({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}"})

    def download(self, name, revision, path):
        commit, files = self.hub.find(name, revision)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files:
            return self.answer({"error": "absent"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        content, known = files[path], identity(path, files[path])
        headers["ETag"] = f'"{known["oid"]}"'
        if "lfs" in known:
            headers["X-Linked-Etag"], headers["X-Linked-Size"] = f'"{known["lfs"]["oid"]}"', len(content)
        if self.command == "HEAD":
            return self.answer(b"", 200, headers, len(content))
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(content[first : last + 1], 206, headers)
        return self.answer(content, 200, headers)


def identity(path, content):
    """What git and LFS call a content."""
    if not path.endswith(LARGE):
        return {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    digest = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    return {"oid": oid, "lfs": {"oid": digest, "size": len(content), "pointerSize": len(pointer)}}


KIND, NAME, REVISION = r"(?P<kind>models/|datasets/)", r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = (  # methods, path, function
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate_yaml),
    (("POST",), f"/api/{KIND}{NAME}/branch/(?P<branch>.+)", Handler.branch),
    (("GET",), f"/api/{KIND}{NAME}", Handler.info),
    (("GET",), f"/api/{KIND}{NAME}/revision/{REVISION}", Handler.info),
    (("GET",), f"/api/{KIND}{NAME}/tree/{REVISION}(?P<path>/.*)?", Handler.tree),
    (("POST",), f"/api/{KIND}{NAME}/paths-info/{REVISION}", Handler.paths),
    (("POST",), f"/api/{KIND}{NAME}/preupload/{REVISION}", Handler.preupload),
    (("POST",), f"/api/{KIND}{NAME}/commit/{REVISION}", Handler.commit),
    (("POST",), rf"/(?P<kind>datasets/)?{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs),
    (("GET", "HEAD"), f"/(?P<kind>datasets/)?{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.download),
)
