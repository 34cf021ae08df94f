# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal merge` and `push`."""

import argparse

from .common import DTYPES


def add_merge_parser(verbs) -> None:
    parser = verbs.add_parser("merge", help="an adapter and its base as one model, for serving")
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or Hub repository of an adapter")
    parser.add_argument("output", metavar="OUTPUT", help="folder to write; must not exist, or be empty")
    parser.add_argument("--model", metavar="BASE", help="what it goes onto (default: as the adapter says)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="type of the weights")
    parser.add_argument("--revision", help="revision of ADAPTER on the Hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code of the base's repository")
    parser.set_defaults(run=_merge)


def _merge(args: argparse.Namespace) -> int:
    from ..hub.merge import merge_adapter

    from_hub = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    print(f"Wrote {merge_adapter(args.adapter, args.output, model=args.model, dtype=args.dtype, **from_hub)}")
    return 0


def add_push_parser(verbs) -> None:
    parser = verbs.add_parser("push", help="upload a model, a data set or a metric to the Hub")
    parser.add_argument("folder", metavar="FOLDER", help="what to upload; of a metric also its name, e.g. mvbench")
    parser.add_argument("repository", metavar="REPO", help="user/name; made where there is none")
    parser.add_argument(
        "--kind", choices=("model", "dataset", "metric"), default="model", help="default: model, also for adapters"
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    parser.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> int:
    from ..hub.push import push

    commit = push(args.folder, args.repository, kind=args.kind, private=args.private, revision=args.revision)
    print(f"Uploaded {args.folder} to {commit.repo_url}\nPin it by revision={commit.oid}")
    return 0
