# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
A stand-in for the Hugging Face Hub on this machine: repositories in memory, behind the routes that clients use.

`huggingface_hub`, `transformers`, `datasets` and `evaluate` talk to it unmodified, with the environment of
[`HubServer.environment`]. They read that environment when they are imported, so what talks to it runs in a process of
its own.

It proves that the client's side works: what is sent, what is found again, under which name and revision. It does not
prove that the real Hub accepts it, for its behaviour is written here. Not in it: Xet (with it on, uploads fail),
multipart uploads, pull requests, tags, quotas, gated repositories, the check of a card's metadata, the data set
viewer, and running a space. One user, `tester`, may write; whoever has no token sees public repositories only.
"""

import base64
import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

USER, TOKEN = "tester", "hf_of_the_stand_in"
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
# What the `.gitattributes` of a new repository puts into LFS, as far as it matters here.
IN_LFS = (".arrow", ".bin", ".mp4", ".npy", ".parquet", ".pkl", ".pt", ".pth", ".safetensors")


class HubError(Exception):
    """An answer other than 200; `code` is what the client tells kinds of 404 by."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: str):
        super().__init__(message or code)
        self.status, self.code, self.more = status, code, more


@dataclass(frozen=True)
class Blob:
    """A file's content."""

    content: bytes
    in_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of it; the pointer file stands for what is in LFS."""
        content = self.content
        if self.in_lfs:
            lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(content)}")
            content = "\n".join([*lines, ""]).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def entry(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.in_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """A repository: commits, each the files after it, and the branches that point to them."""

    kind: str
    name: str
    private: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str:
        """The commit of a branch, or of a hash or its beginning."""
        if revision in self.branches:
            return self.branches[revision]
        found = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found[0]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What is in a revision, by path; for tests to look at."""
        return {path: blob.content for path, blob in self.commits[self.resolve(revision)].items()}

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        parent = self.branches.get(branch, "")
        listing = "".join(f"{path} {files[path].oid}\n" for path in sorted(files))
        commit = hashlib.sha1(f"{parent}\n{len(self.commits)}\n{message}\n{listing}".encode()).hexdigest()
        self.commits[commit], self.messages[commit], self.branches[branch] = files, message, commit
        return commit


class HubServer:
    """
    The stand-in, running until the end of its `with` block.

    Attributes:
        url (`str`):
            Its address.
        repositories (`dict[tuple[str, str], Repository]`):
            What is on it, by kind (`"model"`, `"dataset"`, `"space"`) and name.
        requests (`list[str]`):
            Method and path of every request.
        unknown (`list[str]`):
            Those of them that no route was found for.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | os.PathLike) -> dict[str, str]:
        """
        What a process needs that is to use the stand-in for the Hub.

        Args:
            home (`str` or `os.PathLike`):
                Folder of all its caches; another one is a machine that has loaded nothing yet.

        Returns:
            `dict[str, str]`: to update `os.environ` with.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(Path(home)),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
        }


@pytest.fixture(scope="module")
def hub():
    """A stand-in with nothing on it."""
    with HubServer() as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content leave together: apart, each answer waits 40 ms for an acknowledgement

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass

    def _answer(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.body = self._read_body()
        self.hub.requests.append(f"{self.command} {address.path}")
        try:
            with self.hub.lock:
                status, headers, content = self._route(address.path.strip("/"))
        except HubError as error:
            status, content = error.status, json.dumps({"error": str(error), **error.more}).encode()
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)} if error.code else {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of the answer."""
        parts = path.split("/")
        if parts[0] == "api":
            return _json(self._api(parts[1:]))
        if parts[0] == "lfs":
            return self._large_file(parts[1])
        if path.endswith(".git/info/lfs/objects/batch"):
            return _json(self._lfs_batch())
        kind = next((kind for kind, prefix in PREFIXES.items() if prefix and path.startswith(prefix)), "model")
        parts = path.removeprefix(PREFIXES[kind]).split("/", 4)
        if len(parts) < 5 or parts[2] != "resolve":
            raise self._no_route()
        return self._resolve(self._repository(kind, "/".join(parts[:2])), unquote(parts[3]), unquote(parts[4]))

    def _no_route(self) -> HubError:
        self.hub.unknown.append(f"{self.command} {self.path}")
        return HubError(404, "", f"the stand-in has no route {self.command} {self.path}")

    def _may_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubError(401, "", "Invalid username or password.")

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        may_read = repository and (not repository.private or self.headers.get("Authorization") == f"Bearer {TOKEN}")
        if not may_read:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return repository

    def _api(self, parts: list[str]):
        if parts == ["whoami-v2"]:
            self._may_write()
            token = {"displayName": "stand-in", "role": "write"}
            return {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}
        if parts == ["validate-yaml"]:
            return {"errors": [], "warnings": []}
        if parts == ["repos", "create"]:
            return self._create()
        if parts[0] not in ("models", "datasets", "spaces") or len(parts) < 3:
            raise self._no_route()
        repository = self._repository(parts[0][:-1], "/".join(parts[1:3]))
        verb, *rest = [unquote(part) for part in parts[3:]] or [""]
        if self.command == "POST" and verb in ("preupload", "commit", "branch"):
            self._may_write()
            return {"preupload": self._preupload, "commit": self._commit, "branch": self._branch}[verb](
                repository, rest[0]
            )
        if verb in ("", "revision"):
            return self._info(repository, rest[0] if rest else "main")
        if verb == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in repository.branches.items()
            ]
            return {"branches": branches, "tags": [], "converts": []}
        if verb == "tree":
            return self._tree(repository, rest[0], "/".join(rest[1:]))
        if verb == "paths-info":
            return self._paths_info(repository, rest[0])
        raise self._no_route()

    def _create(self) -> dict:
        self._may_write()
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.url}/{PREFIXES[kind]}{name}"
        if (kind, name) in self.hub.repositories:
            raise HubError(409, "", "You already created this repo", url=url)
        repository = Repository(kind, name, private=asked.get("visibility") == "private", sdk=asked.get("sdk"))
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in IN_LFS)
        repository.commit("main", {".gitattributes": Blob(attributes.encode(), in_lfs=False)}, "initial commit")
        self.hub.repositories[kind, name] = repository
        return {"url": url, "name": name, "id": name}

    def _preupload(self, repository: Repository, revision: str) -> dict:
        if revision not in repository.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        there = repository.commits[repository.resolve(revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(IN_LFS) or file["size"] > 10 * 2**20 else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in there:
                blob = there[file["path"]]
                answer["oid"] = blob.sha256 if blob.in_lfs else blob.oid
            answers.append(answer)
        return {"files": answers}

    def _commit(self, repository: Repository, revision: str) -> dict:
        if revision not in repository.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = dict(repository.commits[repository.branches[revision]])
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", repository.branches[revision]) != repository.branches[revision]:
                    raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
            elif operation["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), in_lfs=False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise HubError(400, "", f"LFS object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = Blob(self.hub.large_files[value["oid"]], in_lfs=True)
            elif operation["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(400, "", f"{value['path']} is not there and cannot be deleted")
            elif operation["key"] == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"] + "/")}
            else:
                raise HubError(400, "", f"the stand-in does not know the operation {operation['key']}")
        commit = repository.commit(revision, files, message)
        url = f"{self.hub.url}/{PREFIXES[repository.kind]}{repository.name}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}

    def _branch(self, repository: Repository, branch: str) -> dict:
        if branch in repository.branches:
            raise HubError(409, "", f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = repository.resolve(json.loads(self.body or b"{}").get("startingPoint", "main"))
        return {}

    def _info(self, repository: Repository, revision: str) -> dict:
        commit = repository.resolve(revision)
        return {
            "id": repository.name,
            "author": repository.name.split("/")[0],
            "sha": commit,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in repository.commits[commit]],
        }

    def _tree(self, repository: Repository, revision: str, folder: str) -> list[dict]:
        files = repository.commits[repository.resolve(revision)]
        inside = f"{folder}/" if folder else ""
        below = {path: blob for path, blob in files.items() if path.startswith(inside)}
        if not below:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        is_recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries = [_folder_entry(path) for path in _folders(below) if path.startswith(inside)]
        entries += [blob.entry(path) for path, blob in below.items()]
        return [entry for entry in entries if is_recursive or "/" not in entry["path"].removeprefix(inside)]

    def _paths_info(self, repository: Repository, revision: str) -> list[dict]:
        files = repository.commits[repository.resolve(revision)]
        asked = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        entries = [files[path].entry(path) for path in asked if path in files]
        return entries + [_folder_entry(path) for path in asked if path in _folders(files)]

    def _lfs_batch(self) -> dict:
        self._may_write()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large_files:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _large_file(self, oid: str) -> tuple[int, dict[str, str], bytes]:
        if self.command != "PUT":
            return self._range(self.hub.large_files[oid], {})
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "", "the content is not that of its SHA-256")
        self.hub.large_files[oid] = self.body
        return 200, {}, b""

    def _resolve(self, repository: Repository, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit}
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        if blob.in_lfs:  # on another host, as on the Hub
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            storage = self.hub.url.replace("127.0.0.1", "localhost")
            return 302, {**headers, "Location": f"{storage}/lfs/{blob.sha256}"}, b""
        return self._range(blob.content, {**headers, "ETag": f'"{blob.oid}"'})

    def _range(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """All of a file, or the part that is asked for."""
        headers = {**headers, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked is None:
            return 200, headers, content
        first, last = asked.removeprefix("bytes=").split("-")
        if not first:
            first, last = max(len(content) - int(last), 0), len(content) - 1
        last = min(int(last or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[int(first) : last + 1]


def _json(answer) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def _folders(paths) -> set[str]:
    return {str(parent) for path in paths for parent in Path(path).parents if str(parent) != "."}


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
