# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Models, adapters, data sets and metrics go to the Hub and come back: on the stand-in of `tests/hub_server.py`.

One process uploads, partly by the commands of `docs/publishing.md`, and another one, with empty caches, loads. Both
are this file run as a script: libraries read the Hub's address as they are imported. The tests look at what came back,
and at what is on the server.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from tests.hub_server import USER, hub  # noqa: F401

ROOT = Path(__file__).parent.parent
REAL_TOKEN = "TRL_TEMPORAL_HUB_TOKEN"
ANSWERS = [{"id": "0", "text": "(A)"}]
QUESTIONS = [{"id": "0", "task": "a", "answer": "(A) up", "options": ["up", "down"]}]


# --- What runs in the other processes ---


def inputs_of(processor) -> dict:
    import numpy as np

    video = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    times = [number / 2 for number in range(len(video))]
    return processor(text=text, videos=[video], timestamps_s=[times], duration_s=[4.0])


def logits_of(model, processor) -> list[float]:
    """Of a question about a video; of a model that is no D2VLM, of the question alone."""
    import torch

    has_evidence = model.config.model_type == "d2vlm"
    inputs = inputs_of(processor) if has_evidence else processor.tokenizer("When?", return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits.flatten().tolist()


def blocks_of(markdown: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE)


def stir(model) -> None:
    """Moves what is trained, so that it matters that it comes back."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)


def lora(processor, **settings):
    from peft import LoraConfig

    rows = [processor.evidence_token_id, processor.evidence_end_token_id]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=r".*(language_model|text_model).*\.(q_proj|v_proj)$",
        modules_to_save=["evi_head", "frame_head"],
        trainable_token_indices={"embed_tokens": rows, **settings.pop("rows_of", {})},
        **settings,
    )


def train(trainer_class, config_class, output: str, model, processor, collator, rows, peft_config=None, **settings):
    """A short training from `model`, a name or a folder of a model or the model."""
    from datasets import Dataset

    settings = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "save_strategy": "no", **settings}
    trainer = trainer_class(
        model,
        args=config_class(output, bf16=False, use_cpu=True, report_to="none", cache_frames=False, **settings),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        peft_config=peft_config,
    )
    if peft_config is not None:
        stir(trainer.model)
    trainer.train()
    return trainer


def upload() -> dict:
    """Uploads everything; what is to be found again."""
    from tests.torchvision_shim import load_torchvision

    load_torchvision()
    from datasets import Dataset, DatasetDict

    from tests.helpers import MIXED_PAIRS, MIXED_ROWS, noise_video
    from tests.test_backbones import PAIRS, ROWS
    from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
    from trl_temporal.data.chat_collator import ChatPreferenceCollator
    from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator
    from trl_temporal.evaluation.loading import load_model
    from trl_temporal.hub.push import push
    from trl_temporal.models.d2vlm import D2VLMBackboneProcessor, D2VLMForConditionalGeneration

    # A D2VLM, changed and uploaded again: what is trained on the first commit must not meet the second.
    model, processor = load_model("tiny", "float32")
    first = push("tiny", f"{USER}/tiny").oid
    found = {"tiny": logits_of(model, processor), "commit": first}
    stir(model)
    model.save_pretrained("tiny", max_shard_size="20KB")
    Path("tiny", "model.safetensors").unlink(missing_ok=True)
    push("tiny", f"{USER}/tiny")
    found["tiny now"] = logits_of(model, processor)
    push("tiny", f"{USER}/hidden", private=True, revision="v1")

    # A whole D2VLM, and an adapter.
    collator = PreferenceCollator(processor, noise_video)
    pushed = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 2, "hub_model_id": f"{USER}/whole"}
    trainer = train(FPOTrainer, FPOConfig, "outputs/whole", "start", processor, collator, MIXED_PAIRS, **pushed)
    trainer.push_to_hub()
    found["whole"] = logits_of(trainer.model, processor)
    base, processor = load_model(f"{USER}/tiny", "float32", revision=first)
    peft_config = lora(processor, revision=first)
    pairs = [{**row, "source": "noise"} for row in MIXED_PAIRS]
    saved = {"save_strategy": "steps", "save_steps": 2}
    trainer = train(FPOTrainer, FPOConfig, "outputs/fpo", base, processor, collator, pairs, peft_config, **saved)
    trainer.save_model()
    found["fpo"] = logits_of(trainer.model, processor)

    # A model of transformers: as it is, and as the backbone of a D2VLM with an adapter.
    backbone = f"{USER}/backbone"
    push("backbone", backbone)
    model, processor = load_model(backbone, "float32")
    collator = ChatPreferenceCollator(processor, noise_video)
    pushed = {"grounding_coef": 0, "num_frames": 8, "hub_model_id": f"{USER}/dpo"}
    trainer = train(FPOTrainer, FPOConfig, "outputs/dpo", model, processor, collator, PAIRS, **pushed)
    trainer.push_to_hub()
    found["dpo"] = logits_of(trainer.model, processor)
    processor = D2VLMBackboneProcessor.from_backbone(backbone, fps=2.0)
    model = D2VLMForConditionalGeneration.from_backbone(backbone, processor, dtype="float32", capture_layer=2)
    rows_of = {"lm_head": [processor.evidence_token_id, processor.evidence_end_token_id]}
    peft_config = lora(processor, rows_of={} if model.config.tie_word_embeddings else rows_of)
    collator = EvidenceCollator(processor, noise_video)
    pushed = {"hub_model_id": f"{USER}/sft"}
    trainer = train(
        EvidenceSFTTrainer, EvidenceSFTConfig, "outputs/sft", model, processor, collator, ROWS, peft_config, **pushed
    )
    found["sft"] = logits_of(trainer.model, processor)

    splits = {"train": Dataset.from_list(MIXED_ROWS), "test": Dataset.from_list(MIXED_ROWS[:2])}
    DatasetDict(splits).save_to_disk("rows")
    found["printed"] = follow((ROOT / "docs" / "publishing.md").read_text(encoding="utf-8"), {"trainer": trainer})
    return found


def follow(page: str, names: dict) -> str:
    """Does what a page of the docs says, from top to bottom; what it has printed."""
    from trl_temporal.cli import main

    printed = StringIO()
    with redirect_stdout(printed):
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
            block = block.replace("you/", f"{USER}/")
            if language == "python":
                exec(compile(block, "docs", "exec"), names)
                continue
            for line in block.splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "trl-temporal" and main(words) == 0, line
    return printed.getvalue()


def download(found: dict) -> dict:
    """Loads all of it, without the package first."""
    from tests.torchvision_shim import load_torchvision

    load_torchvision()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    sys.modules["trl_temporal"] = None  # as if it were not installed
    loaded, now = {}, {"tiny": found["commit"], "tiny now": "main", "hidden": "v1", "model": "v1"}
    for name, revision in {**now, "whole": "main"}.items():
        options = {"trust_remote_code": True, "revision": revision}
        repository = f"{USER}/{name.removesuffix(' now')}"
        model = AutoModelForImageTextToText.from_pretrained(repository, dtype="float32", **options)
        processor = AutoProcessor.from_pretrained(repository, **options)
        assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
        loaded[name] = logits_of(model, processor)
        if name == "tiny":
            template, ids = processor.chat_template, inputs_of(processor)["input_ids"].tolist()
            loaded["processor"] = {"chat_template": template, "input_ids": ids}
    model = AutoModelForImageTextToText.from_pretrained(f"{USER}/dpo")
    loaded["dpo"] = logits_of(model, AutoProcessor.from_pretrained(f"{USER}/dpo"))
    del sys.modules["trl_temporal"]

    import evaluate
    from datasets import load_dataset
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    from trl_temporal.evaluation.loading import describe_model, load_config, load_model
    from trl_temporal.hub.merge import merge_adapter

    for name in ("fpo", "sft"):
        repository = f"{USER}/{name}"
        commit = HfApi().model_info(repository).sha
        model, processor = load_model(repository, "float32", revision=commit)
        loaded[name], described = logits_of(model, processor), describe_model(model, repository, None)
        loaded[f"{name} is"] = {"of": load_config(repository).model_type, "base": described["base"]}
        assert described["commit"] == commit
        merge_adapter(repository, f"merged {name}", revision=commit)
        loaded[f"merged {name}"] = logits_of(*load_model(f"merged {name}"))
    model, _ = load_model(f"{USER}/tiny", revision=found["commit"])
    loaded["described"] = describe_model(model, f"{USER}/tiny", found["commit"])["commit"]

    loaded["dataset"] = {split: part.to_list() for split, part in load_dataset(f"{USER}/rows").items()}
    metric = evaluate.load(f"{USER}/mvbench", revision="main")
    loaded["metric"] = metric.compute(predictions=ANSWERS, references=QUESTIONS)["Total"]
    try:
        HfApi(token=False).model_info(f"{USER}/hidden")
    except RepositoryNotFoundError:
        loaded["hidden is private"] = True

    loaded["cards"], loaded["answers"] = {}, {}
    for name in ("fpo", "sft", "dpo", "model", "whole"):
        card = Path(hf_hub_download(f"{USER}/{name}", "README.md")).read_text(encoding="utf-8")
        loaded["cards"][name], printed = card, StringIO()
        with redirect_stdout(printed):
            exec(compile(blocks_of(card)[0], name, "exec"), {})
        loaded["answers"][name] = printed.getvalue()
    return loaded


def there_and_back() -> dict:
    """On the real Hub: a private model that is removed at the end."""
    from huggingface_hub import HfApi, snapshot_download

    from trl_temporal.evaluation.loading import load_model
    from trl_temporal.hub.push import push

    repository = f"{HfApi().whoami()['name']}/trl-temporal-test-{uuid.uuid4().hex[:8]}"
    try:
        commit = push("tiny", repository, private=True)
        expected = logits_of(*load_model("tiny", "float32"))
        found = logits_of(*load_model(repository, "float32", revision=commit.oid))
        files = os.listdir(snapshot_download(repository, revision=commit.oid))
    finally:
        HfApi().delete_repo(repository, missing_ok=True)
    return {"expected": expected, "found": found, "files": files}


# --- The tests ---


def run_step(step: str, folder: Path, environment: dict[str, str]) -> dict:
    """What a function above returns in a process of its own, which works in `folder`."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.test_hub", step],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    return json.loads((folder / f"{step}.json").read_text())


@pytest.fixture(scope="module")
def round_trip(hub, tiny_dir, event_world, tmp_path_factory):  # noqa: F811
    """What was uploaded and what another machine has loaded."""
    from tests.families import build

    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for name in ("tiny", "start"):
        shutil.copytree(tiny_dir, here / name)
    for part in build("smolvlm"):
        part.save_pretrained(here / "backbone")
    sent = run_step("upload", here, hub.environment(here / "home"))
    (there / "upload.json").write_text(json.dumps(sent))
    shutil.copyfile(event_world["train"][0]["videos"][0]["path"], there / "video.mp4")
    return sent, run_step("download", there, hub.environment(there / "home"))


@pytest.mark.parametrize("name", ["tiny", "tiny now", "whole", "fpo", "dpo", "sft"])
def test_a_model_comes_back(round_trip, name):
    sent, got = round_trip
    assert got[name] == pytest.approx(sent[name], abs=1e-5)


def test_a_merged_adapter_comes_back(round_trip):
    """From the Hub and, as the docs merge and push it, to the Hub and as remote code."""
    sent, got = round_trip
    assert got["merged fpo"] == pytest.approx(sent["fpo"], abs=1e-4)
    assert got["merged sft"] == pytest.approx(sent["sft"], abs=1e-4)
    assert got["model"] == pytest.approx(sent["sft"], abs=1e-4)


def test_a_revision_pins_the_model(round_trip):
    sent, got = round_trip
    assert got["tiny"] != pytest.approx(got["tiny now"], abs=0.1)
    assert got["described"] == sent["commit"]
    assert got["hidden"] == pytest.approx(sent["tiny now"], abs=1e-5)


def test_an_adapter_finds_its_base(round_trip):
    """That of `fpo` at the commit that it was trained on, not what is there by now; that of `sft` is a backbone."""
    assert round_trip[1]["fpo is"] == {"of": "d2vlm", "base": f"{USER}/tiny"}
    assert round_trip[1]["sft is"] == {"of": "d2vlm", "base": f"{USER}/backbone"}


def test_the_processor_comes_back(round_trip, tiny):
    processor = tiny[1]
    ids = inputs_of(processor)["input_ids"].tolist()
    assert round_trip[1]["processor"] == {"chat_template": processor.chat_template, "input_ids": ids}


def test_a_data_set_comes_back(round_trip):
    from datasets import Dataset

    from tests.helpers import MIXED_ROWS

    expected = Dataset.from_list(MIXED_ROWS).to_list()
    assert round_trip[1]["dataset"] == {"train": expected, "test": expected[:2]}


def test_a_metric_comes_back(round_trip):
    assert round_trip[1]["metric"] == 100


def test_what_is_on_the_hub(round_trip, hub):  # noqa: F811
    repositories = hub.repositories
    assert hub.unknown == []
    tiny = repositories["model", f"{USER}/tiny"]
    first, now = tiny.files(round_trip[0]["commit"]), tiny.files()
    assert "model.safetensors" in first and "modeling_d2vlm.py" in first
    # The shards of the second upload stand alone: `model.safetensors` would be loaded in their place.
    assert "model.safetensors" not in now and "model.safetensors.index.json" in now
    hidden = repositories["model", f"{USER}/hidden"]
    assert hidden.private and set(hidden.branches) == {"main", "v1"} and list(hidden.files()) == [".gitattributes"]
    assert round_trip[1]["hidden is private"] and repositories["model", f"{USER}/model"].private
    assert repositories["space", f"{USER}/mvbench"].sdk == "gradio"
    pushed = repositories["model", f"{USER}/fpo"].files()
    assert "adapter_model.safetensors" in pushed and not [name for name in pushed if name.endswith(".bin")]
    commit = repositories["model", f"{USER}/fpo"].branches["main"]
    assert f"Pin it by revision={commit}" in round_trip[0]["printed"]


def test_what_a_trainer_uploads(round_trip, hub):  # noqa: F811
    repository = hub.repositories["model", f"{USER}/whole"]
    assert "Training in progress, step 2" in repository.messages.values()
    files = repository.files()
    assert {"model.safetensors", "config.json", "processor_config.json", "modeling_d2vlm.py"} <= files.keys()
    assert not [name for name in files if name.startswith("checkpoint-")]


@pytest.mark.parametrize("name", ["fpo", "sft", "dpo", "model", "whole"])
def test_a_card_on_the_hub(round_trip, name):
    """Its quick start has run on the machine that had loaded nothing yet, and has answered."""
    from huggingface_hub import ModelCard

    card = round_trip[1]["cards"][name]
    data = ModelCard(card).data
    base = {"fpo": "tiny", "sft": "backbone", "dpo": "backbone", "model": "backbone"}.get(name)
    assert data.base_model == (base and f"{USER}/{base}")
    assert data.library_name == ("peft" if name in ("fpo", "sft") else "transformers")
    assert f'load_model("{USER}/{name}")' in card and "path/to" not in card and "Hash of the settings" in card
    assert ("2512.24097" in card and "d2vlm" in card) == (name != "dpo")
    assert "TextAnswer(" in round_trip[1]["answers"][name] if name == "dpo" else round_trip[1]["answers"][name]


def make_card(folder, method="fpo", family=None, start="tiny", **settings) -> str:
    """The card of a short training."""
    from tests.families import build
    from tests.helpers import MIXED_PAIRS, MIXED_ROWS, noise_video
    from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer, FPOConfig, FPOTrainer
    from trl_temporal.data.chat_collator import ChatCollator, ChatPreferenceCollator
    from trl_temporal.data.collator import EvidenceCollator, PreferenceCollator
    from trl_temporal.evaluation.loading import load_model

    model, processor = build(family) if family else load_model(str(start), "float32")
    classes = (EvidenceSFTTrainer, EvidenceSFTConfig) if method == "sft" else (FPOTrainer, FPOConfig)
    collators = (ChatCollator, ChatPreferenceCollator) if family else (EvidenceCollator, PreferenceCollator)
    rows = MIXED_ROWS if method == "sft" else MIXED_PAIRS
    rows = [{**row, "source": "noise"} for row in rows]
    settings = {"disable_tqdm": True, "max_steps": 1, **settings}
    collator = collators[method == "fpo"](processor, noise_video)
    trainer = train(*classes, str(folder), model, processor, collator, rows, **settings)
    trainer.create_model_card("short", f"{USER}/pairs")
    return (folder / "README.md").read_text()


def test_the_card_of_a_training(tiny_dir, tmp_path):
    from huggingface_hub import ModelCard
    from peft import LoraConfig

    lora = LoraConfig(r=3, target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
    settings = {"start": tiny_dir, "peft_config": lora, "learning_rate": 0.125}
    card = make_card(tmp_path / "a", **settings)
    data = ModelCard(card).data
    assert (data.pipeline_tag, data.library_name, data.datasets) == ("video-text-to-text", "peft", f"{USER}/pairs")
    assert "@inproceedings{d2vlm" in card and "@inproceedings{rafailov2023direct" in card and "d2vlm" in data.tags
    assert 'load_model("path/to/this/folder")' in card and "trl-temporal merge" in card and "time machine" not in card
    assert "4 rows, fingerprint" in card and "from noise." in card and "Its base is not on the Hub" in card
    for line in ("`learning_rate` | 0.125", "`lora: r` | 3", "`beta` | 0.1", "`loss/grounding` | ", "trl_temporal: "):
        assert line in card, line
    assert str(tmp_path) not in card and str(tiny_dir) not in card and "None" not in card

    def hash_of(card):
        return re.search("Hash of the settings: `([0-9a-f]{12})`", card).group(1)

    again = make_card(tmp_path / "b", **settings, logging_steps=5)
    other = make_card(tmp_path / "c", **{**settings, "learning_rate": 0.25})
    assert hash_of(card) == hash_of(again) != hash_of(other)


def test_the_card_of_a_grounded_videodit(event_world, tmp_path, monkeypatch):
    """Its quick start answers, with frame encoders that it finds by their names."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from trl_temporal import EvidenceSFTConfig, EvidenceSFTTrainer
    from trl_temporal.models.tiny import build_tiny_grounded_videodit

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "tower")
    tower, small = {"name": str(tmp_path / "tower"), "hidden_size": 8}, {"hidden_size": 32, "num_hidden_layers": 1}
    model, processor = build_tiny_grounded_videodit(["When?"], tower, 280, num_frames=4, image_size=16, **small)
    rows = [dict(row, task=None) for row in event_world["train"] if len(row["spans"]) == 1][:2]
    settings = {"max_steps": 1, "feature_cache": str(tmp_path / "features"), "disable_tqdm": True}
    folder = str(tmp_path / "model")
    trainer = train(EvidenceSFTTrainer, EvidenceSFTConfig, folder, model, processor, None, rows, **settings)
    trainer.save_model()
    trainer.create_model_card("short")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "papers/2508.15641" in card and "grounded-videodit" in card and "d2vlm" not in card.lower()
    shutil.copy(rows[0]["videos"][0]["path"], tmp_path / "video.mp4")
    monkeypatch.chdir(tmp_path)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(blocks_of(card)[0].replace("path/to/this/folder", folder), {})
    assert printed.getvalue()


NO_EVIDENCE = {"evidence_coef": 0.0, "consistency_coef": 0.0}


@pytest.mark.filterwarnings("ignore:row .* frames per second")
@pytest.mark.parametrize(
    ("method", "settings", "cited"),
    [
        ("fpo", {"grounding_coef": 0, "fps": 4.0}, {"2305.18290"}),
        ("fpo", {"grounding_log_prob": "span_tokens"}, {"2512.24097"}),
        ("sft", {**NO_EVIDENCE, "num_frames": 8}, set()),
    ],
)
def test_the_card_of_a_stock_model(method, settings, cited, tmp_path):
    """What it was trained by is cited, and nothing that it has no part of."""
    card = make_card(tmp_path, method, "qwen2_5_vl", **settings)
    assert set(re.findall(r"papers/(\d+\.\d+)", card)) == cited
    assert ("d2vlm" in card.lower()) == ("2512.24097" in cited)
    assert "generate_texts" in card and "evi>" not in card and "remote" not in card
    sampling = {"fps": "fps=4.0, max_frames=128", "num_frames": "num_frames=8"}
    assert all(line in card for name, line in sampling.items() if name in settings)


def test_the_card_of_a_merged_stock_model(tmp_path):
    from tests.families import build
    from trl_temporal.hub.card import write_merged_card, write_plain_card

    build("smolvlm")[0].config.save_pretrained(tmp_path)
    write_plain_card(tmp_path, "me/stock", "org/base")
    card = (tmp_path / "README.md").read_text()
    assert "generate_texts" in card and "base_model: org/base" in card
    assert "evi" not in card.lower() and "d2vlm" not in card.lower() and "papers" not in card
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "README.md").write_text(
        "---\ntags: [trl, lora]\nbase_model: org/base\n---\n# A\n\nAbout\n\n## Quick start\n\n"
        'load_model("me/a")\n\nIt is an adapter: for now.\n\n## Training procedure\n'
    )
    write_merged_card(tmp_path, str(tmp_path / "adapter"), "org/base")
    card = (tmp_path / "README.md").read_text()
    assert "lora" not in card and "from [org/base](https://huggingface.co/org/base) and `adapter`." in card
    assert 'load_model("path/to/this/folder")\n\n## Training procedure' in card and "base_model: org" in card


def test_pickles_are_refused(tiny_dir, tmp_path, capsys):
    from trl_temporal.cli import main

    for kind, name in (("model", "pytorch_model.bin"), ("dataset", "rows.pkl"), ("model", "global_step1/state.pt")):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
        assert main(["push", str(folder), "me/it", "--kind", kind]) == 1
        error = capsys.readouterr().err
        assert f"holds pickles ({name})" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({}, [], "neither config.json nor adapter_config.json"),
        ({"config.json": "{}"}, [], "has no weights"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": null}', "adapter_model.safetensors": ""},
            [],
            "which nobody else has",
        ),
        ({"mvbench.py": ""}, ["--kind", "metric"], "is loaded by the name of its repository"),
    ],
)
def test_what_others_could_not_load_is_refused(files, words, message, tmp_path, capsys):
    from trl_temporal.cli import main

    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["push", str(tmp_path), "me/it", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "me/it"], "no such folder"),
        (["nowhere", "it"], "is no repository"),
        (["rouge", "me/rouge", "--kind", "metric"], "the metrics are charades_sta"),
    ],
)
def test_wrong_words(words, message, capsys):
    from trl_temporal.cli import main

    assert main(["push", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(REAL_TOKEN not in os.environ, reason=f"set {REAL_TOKEN} to a token of the real Hub that may write")
def test_the_real_hub(tiny_dir, tmp_path):
    """The only test that says whether the Hub takes it; it was never run. Makes a private model and removes it."""
    shutil.copytree(tiny_dir, tmp_path / "tiny")
    environment = {"HF_TOKEN": os.environ[REAL_TOKEN], "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    result = run_step("there_and_back", tmp_path, environment)
    assert result["found"] == pytest.approx(result["expected"], abs=1e-5)
    assert "model.safetensors" in result["files"]


if __name__ == "__main__":
    step = sys.argv[1]
    if step == "download":
        found = download(json.loads(Path("upload.json").read_text()))
    else:
        found = {"upload": upload, "there_and_back": there_and_back}[step]()
    Path(f"{step}.json").write_text(json.dumps(found))
