# SPDX-License-Identifier: Apache-2.0
"""A mock of the Hugging Face Hub's HTTP interface, in the standard library only, with faults to choose.

In:   the port to listen on, 0 for a free one, which is then the first line it writes.
Out:  models and datasets that huggingface_hub, transformers, datasets and fsspec create, list, commit to and read.
      Everything is in memory and lost when the process ends.

    python tests/mini_hub.py 8099 &
    HF_ENDPOINT=http://127.0.0.1:8099 HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_test HF_HOME=/tmp/hf NO_PROXY=127.0.0.1 ...

The clients read these variables when they are imported. Xet, the Hub's chunked storage, is not mocked.

    GET  /_state   {"repositories": {"models/me/x": {"head", "private", "commits": [{"oid", "message"}],
                   "files": {path: bytes}, "refs": {branch or tag: commit}}},
                   "log": [{"request", "authorized", "bytes"}], "faults": [with the "times" that are left]}
    POST /_faults  a list of faults, replacing earlier ones, or with ?add added to them: "match" (regular expression on
                   "METHOD /path?query token"), "skip" (default 0: requests before it), "times" (default 1),
                     "status": 503, "headers": {}, "answer": {}      answer this instead; only status is required;
                                                                     a string as answer is sent unchanged
                     "action": "hang", "seconds": 5                  wait first, then answer as usual
                     "action": "drip", "seconds": 0.5                answer as usual, with a pause after each byte
                     "action": "drop"                                close the connection without an answer
                     "action": "cut"                                 close it half-way through the answer
                     "action": "alter"                               answer with one byte of the content changed
                     "action": "after", "status": 500                do the request, then answer that it failed
                     "action": "kill", "pid": 17, "after": false     kill a process before, or after, doing it
                     "action": "intrude", "path": "x", "text": "y"   commit a file as someone else first
"""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".gz", ".zst")
LFS_FROM_BYTES = 10_000_000
LOCK = threading.RLock()
REPOSITORIES: dict[str, "Repository"] = {}  # by "models/me/name" or "datasets/me/name"
LFS_OBJECTS: dict[str, bytes] = {}  # by sha256
FAULTS: list[dict] = []
LOG: list[dict] = []
COMMIT_NUMBERS = count()


def git_oid(content: bytes) -> str:
    """Return git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def blob(content: bytes) -> dict:
    return {"content": content, "oid": git_oid(content), "lfs": None}


def choose_fault(request: str) -> dict:
    """Return the first fault that a request meets, {} for none, and count it."""
    for fault in FAULTS:
        if fault.get("times", 1) > 0 and re.search(fault["match"], request):
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                continue
            fault["times"] = fault.get("times", 1) - 1
            return fault
    return {}


class Repository:
    """The commits of one repository, each the whole of its files, and what points at them."""

    def __init__(self, name: str, private: bool):
        self.name, self.private = name, private
        self.trees: dict[str, dict[str, dict]] = {}  # by commit: path -> {"content", "oid", "lfs"}
        self.refs: dict[str, str] = {}
        self.tags: set[str] = set()
        self.messages: list[dict] = []
        self.commit("main", "initial commit", {})

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, tag or commit id means, or None."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.trees else None

    def commit(self, branch: str, message: str, files: dict[str, dict]) -> str:
        oid = hashlib.sha1(f"{self.name} {next(COMMIT_NUMBERS)} {message}".encode()).hexdigest()
        self.trees[oid], self.refs[branch] = files, oid
        self.messages.append({"oid": oid, "message": message})
        return oid


class HubHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits up to 40 ms, for the client to confirm its headers
    spoiling: dict | None = None  # the fault that the next answer's body shall have

    def log_message(self, *arguments) -> None:
        pass  # LOG holds every request; the terminal is the tests'

    def handle_request(self) -> None:
        body = self.read_body() if self.command in ("POST", "PUT", "DELETE") else b""
        if self.path == "/_state":
            return self.send({"repositories": dict(self.describe_repositories()), "log": LOG, "faults": FAULTS})
        if self.path.startswith("/_faults"):
            FAULTS[:] = (FAULTS if self.path.endswith("?add") else []) + json.loads(body)
            return self.send({})
        request = f"{self.command} {self.path}"
        with LOCK:
            LOG.append({"request": request, "authorized": self.is_authorized(), "bytes": len(body)})
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            fault = choose_fault(f"{request} {token}".strip())
        action = fault.get("action", "status" if "status" in fault else None)
        if action == "status":
            answer = fault.get("answer", {"error": "injected"})
            text = answer.encode() if isinstance(answer, str) else None
            return self.send(answer, fault["status"], fault.get("headers"), text)
        if action == "drop":
            self.close_connection = True
            return self.connection.close()
        if action == "hang":
            time.sleep(fault["seconds"])
        if action == "intrude":
            name, text = "/".join(self.path.split("/")[2:5]), fault.get("text", "by someone else")
            repository = REPOSITORIES[name]
            files = {**repository.trees[repository.refs["main"]], fault["path"]: blob(text.encode())}
            repository.commit("main", "another hand", files)
        if action == "after" or (action == "kill" and fault.get("after")):
            self.send = lambda *arguments, **named: None
            self.answer(body)
            del self.send
        if action == "kill":
            os.kill(fault["pid"], signal.SIGKILL)
        if action == "after":
            return self.send({"error": "injected after success"}, fault["status"])
        self.spoiling = fault if action in ("drip", "cut", "alter") else None
        return self.answer(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send(self, value: object = None, status: int = 200, headers: dict | None = None, content: bytes | None = None):
        data = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        standard = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, text in {**standard, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # a client that timed out no longer listens
                self.write_spoiled(data) if self.spoiling else self.wfile.write(data)

    def write_spoiled(self, data: bytes) -> None:
        fault, self.spoiling = self.spoiling, None
        if fault["action"] == "alter":
            return self.wfile.write(bytes([data[0] ^ 1]) + data[1:])
        if fault["action"] == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return self.connection.close()
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(fault["seconds"])
        return None

    def fail(self, status: int, code: str, message: str) -> None:
        self.send({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def is_authorized(self) -> bool:
        return self.headers.get("Authorization", "").startswith("Bearer ")

    def host(self) -> str:
        return f"http://{self.headers['Host']}"

    def describe_repositories(self) -> Iterator[tuple[str, dict]]:
        for name, repository in REPOSITORIES.items():
            head = repository.refs["main"]
            files = {path: len(file["content"]) for path, file in repository.trees[head].items()}
            described = {"head": head, "private": repository.private, "commits": repository.messages, "files": files}
            described["refs"] = dict(repository.refs)
            yield name, described

    def answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        for pattern, method in ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                return method(self, body, **found.groupdict())
        return self.fail(404, "", f"no such route: {self.command} {path}")

    def find(self, kind: str | None, name: str, revision: str = "main") -> tuple[Repository, str] | None:
        """Return a repository and the commit that a revision means; where there is none, send so and return None."""
        repository = REPOSITORIES.get(f"{kind or 'models'}/{name}")
        if repository is None or (repository.private and not self.is_authorized()):
            self.fail(404, "RepoNotFound", "Repository not found")
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    # Accounts and repositories

    def whoami(self, body: bytes) -> None:
        if not self.is_authorized():
            return self.fail(401, "", "Invalid credentials in Authorization header")
        return self.send({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self, body: bytes) -> None:
        self.send({"warnings": [], "errors": []})

    def create(self, body: bytes) -> None:
        if not self.is_authorized():
            return self.fail(401, "", "Invalid credentials in Authorization header")
        asked = json.loads(body)
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.host()}/{'' if kind == 'models' else kind + '/'}{name}"
        with LOCK:
            if f"{kind}/{name}" in REPOSITORIES:
                return self.send({"error": "You already created this repo", "url": url}, 409)
            REPOSITORIES[f"{kind}/{name}"] = Repository(name, asked.get("visibility") == "private")
        return self.send({"url": url, "name": name})

    def describe(self, body: bytes, kind: str, name: str, revision: str = "main") -> None:
        if found := self.find(kind, name, revision or "main"):
            repository, commit = found
            siblings = [{"rfilename": path} for path in sorted(repository.trees[commit])]
            described = {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}
            self.send({**described, "tags": [], "downloads": 0, "likes": 0})

    def list_refs(self, body: bytes, kind: str, name: str) -> None:
        if found := self.find(kind, name):
            refs: dict[str, list] = {"branches": [], "tags": [], "converts": []}
            for ref, commit in found[0].refs.items():
                family, folder = ("tags", "tags") if ref in found[0].tags else ("branches", "heads")
                refs[family].append({"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": commit})
            self.send(refs)

    def make_tag(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            tag = json.loads(body)["tag"]
            found[0].refs[tag] = found[1]
            found[0].tags.add(tag)
            self.send({})

    def make_branch(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, (json.loads(body) if body else {}).get("startingPoint") or "main"):
            found[0].refs.setdefault(revision, found[1])
            self.send({})

    def change_settings(self, body: bytes, kind: str, name: str) -> None:
        if found := self.find(kind, name):
            found[0].private = json.loads(body).get("visibility", "private") == "private"
            self.send({})

    # Uploads: what goes through LFS, LFS itself, and the commit

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            files = found[0].trees[found[1]]
            answers = []
            for asked in json.loads(body)["files"]:
                is_lfs = asked["size"] and (asked["path"].endswith(LFS_SUFFIXES) or asked["size"] > LFS_FROM_BYTES)
                known = files.get(asked["path"])
                answers.append(
                    {
                        "path": asked["path"],
                        "uploadMode": "lfs" if is_lfs else "regular",
                        "shouldIgnore": False,
                        "oid": known and (known["lfs"] or known["oid"]),
                    }
                )
            self.send({"files": answers})

    def lfs_batch(self, body: bytes, kind: str | None, name: str) -> None:
        objects = json.loads(body)["objects"]
        for entry in objects:
            if entry["oid"] not in LFS_OBJECTS:  # "actions" is left out where there is nothing to do: null is an error
                upload = {"href": f"{self.host()}/_lfs/{entry['oid']}?of={name}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.host()}/_lfs_verify"}}
        self.send({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.fail(400, "", "sha256 mismatch")
        LFS_OBJECTS[oid] = body
        return self.send({})

    def lfs_verify(self, body: bytes) -> None:
        asked = json.loads(body)
        known = len(LFS_OBJECTS.get(asked["oid"], b"")) == asked["size"]
        self.send({}, 200 if known else 404)

    def make_commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if not self.is_authorized():
            return self.fail(401, "", "Invalid credentials in Authorization header")
        found = self.find(kind, name, revision)
        if found is None:
            return None
        header, *operations = [json.loads(line) for line in body.splitlines() if line.strip()]
        with LOCK:
            repository, head = found[0], found[0].resolve(revision)
            parent = header["value"].get("parentCommit")
            if parent and not head.startswith(parent):
                return self.fail(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(repository.trees[head])
            for operation in operations:
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = blob(base64.b64decode(value["content"]))
                elif operation["key"] == "lfsFile":
                    if value["oid"] not in LFS_OBJECTS:
                        return self.fail(400, "", f"lfs object {value['oid']} was not uploaded")
                    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\n"
                    pointer += f"size {len(LFS_OBJECTS[value['oid']])}\n"
                    entry = {"content": LFS_OBJECTS[value["oid"]], "oid": git_oid(pointer.encode())}
                    files[value["path"]] = {**entry, "lfs": value["oid"]}
                elif operation["key"] == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        return self.fail(404, "EntryNotFound", f"no file {value['path']} to delete")
                elif operation["key"] == "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {path: file for path, file in files.items() if not path.startswith(folder)}
            oid = repository.commit(revision, header["value"]["summary"], files)
        url = f"{self.host()}/{'' if kind == 'models' else kind + '/'}{name}/commit/{oid}"
        return self.send({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # Reading

    def list_tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        if found := self.find(kind, name, revision):
            files = found[0].trees[found[1]]
            base = f"{folder.rstrip('/')}/" if folder and folder != "/" else ""
            below = sorted(path for path in files if path.startswith(base))
            if base and not below:
                return self.fail(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            query = parse_qs(urlsplit(self.path).query)
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            folders: dict[str, None] = {}
            for path in below:
                parts = path.removeprefix(base).split("/")
                for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                    folders[base + "/".join(parts[:depth])] = None
            direct = [path for path in below if recursive or "/" not in path.removeprefix(base)]
            self.send([*map(describe_folder, folders), *(describe_file(path, files[path]) for path in direct)])
        return None

    def list_paths(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.find(kind, name, revision):
            files = found[0].trees[found[1]]
            asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
            known = [describe_file(path, files[path]) for path in asked if path in files]
            folders = [path for path in asked if any(file.startswith(f"{path.rstrip('/')}/") for file in files)]
            self.send([*known, *map(describe_folder, folders)])

    def download(self, body: bytes, kind: str | None, name: str, revision: str, path: str) -> None:
        if found := self.find(kind, name, revision):
            repository, commit = found
            headers = {"X-Repo-Commit": commit}
            file = repository.trees[commit].get(path)
            if file is None:
                return self.send({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
            headers |= {"ETag": f'"{file["lfs"] or file["oid"]}"', "Accept-Ranges": "bytes"}
            headers["Content-Type"] = "application/octet-stream"
            content = file["content"]
            asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None:
                return self.send(content=content, headers=headers)
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.send(status=206, content=content[start : end + 1], headers=headers)
        return None


def describe_folder(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}


def describe_file(path: str, file: dict) -> dict:
    entry = {"type": "file", "path": path, "size": len(file["content"]), "oid": file["oid"]}
    if file["lfs"]:
        entry["lfs"] = {"oid": file["lfs"], "size": entry["size"], "pointerSize": 134}
    return entry


NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
ROUTES = [
    (r"/api/whoami-v2", HubHandler.whoami),
    (r"/api/validate-yaml", HubHandler.validate_yaml),
    (r"/api/repos/create", HubHandler.create),
    (rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    (r"/_lfs/(?P<oid>[0-9a-f]{64})", HubHandler.lfs_upload),
    (r"/_lfs_verify", HubHandler.lfs_verify),
    (rf"{API}", HubHandler.describe),
    (rf"{API}/revision/(?P<revision>.+)", HubHandler.describe),
    (rf"{API}/preupload/(?P<revision>.+)", HubHandler.preupload),
    (rf"{API}/commit/(?P<revision>.+)", HubHandler.make_commit),
    (rf"{API}/tag/(?P<revision>.+)", HubHandler.make_tag),
    (rf"{API}/branch/(?P<revision>.+)", HubHandler.make_branch),
    (rf"{API}/refs", HubHandler.list_refs),
    (rf"{API}/settings", HubHandler.change_settings),
    (rf"{API}/paths-info/(?P<revision>.+)", HubHandler.list_paths),
    (rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", HubHandler.list_tree),
    (rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)", HubHandler.download),
]


@contextmanager
def start_hub() -> Iterator[tuple[subprocess.Popen, str]]:
    """Run the mock Hub on a free port; yield its process and its endpoint."""
    with subprocess.Popen([sys.executable, __file__, "0"], stdout=subprocess.PIPE, text=True) as hub:
        try:
            yield hub, f"http://127.0.0.1:{hub.stdout.readline().strip()}"
        finally:
            hub.kill()


def hub_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Return the environment of a process that uses the mock Hub and imports recipes/ and tests/.

    Args:
        endpoint: of the mock Hub.
        home: an empty folder for the caches.
    """
    tests = Path(__file__).resolve().parent
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    folders = [tests.parent / "recipes", tests, tests / "sources", tests / "publishing"]
    return kept | settings | {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def ask_hub(path: str, faults: list[dict] | None = None) -> dict:
    """Read the state of the mock Hub that HF_ENDPOINT names, or with `/_faults` set its faults."""
    body = None if faults is None else json.dumps(faults).encode()
    with urllib.request.urlopen(os.environ["HF_ENDPOINT"] + path, data=body) as response:
        return json.loads(response.read())


def main(argv: list[str] | None = None) -> None:
    (port,) = sys.argv[1:] if argv is None else argv
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), HubHandler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
