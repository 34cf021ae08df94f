# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""GroundingDINO, OWLv2 and SAM 2 of transformers, with random weights: what goes in and what is read of it."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer, Sam2VideoModel

from tests.toy_objects import save_toy_grounding_dino, save_toy_owlv2, save_toy_sam2
from trl_temporal.objects.detect import ModelDetector, _load_detector, grounding_prompts
from trl_temporal.objects.nouns import NounError
from trl_temporal.objects.track import Sam2Tracker, sam2_pixels

NOUNS = ["dog", "red frisbee", "umbrella"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "grounding": str(save_toy_grounding_dino(root / "grounding")),
        "mm": str(save_toy_grounding_dino(root / "mm", "mm-grounding-dino")),
        "owl": str(save_toy_owlv2(root / "owl")),
        "sam2": str(save_toy_sam2(root / "sam2")),
    }


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["grounding", "mm", "owl"])
def test_detectors_score_every_noun_in_every_frame(folders, frames, name):
    found = ModelDetector(folders[name], device="cpu")(frames, NOUNS)
    assert found.scores.shape == (5, 3) and found.boxes.shape == (5, 3, 4)
    assert found.scores.dtype == found.boxes.dtype == np.float32
    assert ((found.scores > 0) & (found.scores < 1)).all()
    assert (found.boxes[..., :2] <= found.boxes[..., 2:]).all()
    assert found.boxes.min() >= 0 and found.boxes.max() <= 1
    assert len(np.unique(found.scores)) > 10  # frames and nouns differ


@pytest.mark.parametrize("name", ["grounding", "mm", "owl"])
def test_batches_change_nothing(folders, frames, name):
    together = ModelDetector(folders[name], device="cpu", batch_size=4)(frames, NOUNS)
    alone = [ModelDetector(folders[name], device="cpu", batch_size=1)(frame[None], NOUNS) for frame in frames]
    np.testing.assert_allclose(together.scores, np.concatenate([found.scores for found in alone]), atol=1e-5)
    np.testing.assert_allclose(together.boxes, np.concatenate([found.boxes for found in alone]), atol=1e-5)


@pytest.mark.parametrize("name", ["grounding", "mm"])
def test_a_joint_prompt_is_scored_by_the_tokens_of_each_noun(folders, frames, name):
    """The same from the text of the whole prompt, by the characters of each noun."""
    detector = ModelDetector(folders[name], device="cpu")
    found = detector(frames, NOUNS)
    model, tokenizer, image_processor = _load_detector(detector)
    text = " . ".join(NOUNS) + " ."
    tokens = tokenizer([text] * 5, return_tensors="pt", return_offsets_mapping=True)
    offsets = tokens.pop("offset_mapping")[0].tolist()
    assert grounding_prompts(tokenizer, NOUNS, 32)[0][0] == tokens["input_ids"][0].tolist()
    pixels = image_processor(images=list(frames), input_data_format="channels_last", return_tensors="pt")
    with torch.inference_mode():
        output = model(**pixels, **tokens)
    for column, noun in enumerate(NOUNS):
        first = text.index(noun)
        inside = [a >= first and first < b <= first + len(noun) for a, b in offsets]
        inside += [False] * (model.config.max_text_len - len(inside))
        of_regions = output.logits.sigmoid()[..., torch.tensor(inside)].amax(-1)
        best = of_regions.argmax(dim=1)
        np.testing.assert_allclose(found.scores[:, column], of_regions.amax(dim=1), atol=1e-6)
        x, y, width, height = output.pred_boxes[torch.arange(5), best].T
        edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1).clip(0, 1)
        np.testing.assert_allclose(found.boxes[:, column], edges, atol=1e-6)


def test_a_prompt_for_each_noun_is_that_noun_alone(folders, frames):
    detector = ModelDetector(folders["grounding"], prompt_mode="per_noun", device="cpu")
    found = detector(frames, NOUNS)
    for column, noun in enumerate(NOUNS):
        np.testing.assert_allclose(found.scores[:, column], detector(frames, [noun]).scores[:, 0], atol=1e-6)
    joint = ModelDetector(folders["grounding"], device="cpu")(frames, NOUNS)
    assert np.abs(joint.scores - found.scores).max() > 1e-5  # in one prompt nouns do change each other


def test_prompts_are_as_few_as_hold_the_nouns_and_never_cut(folders, frames):
    tokenizer = AutoTokenizer.from_pretrained(folders["grounding"])
    nouns = ["dog", "red frisbee", "a man of a cat", "ball"]
    prompts = grounding_prompts(tokenizer, nouns, max_tokens=8)
    words = [[tokenizer.convert_ids_to_tokens(ids[a:b]) for a, b in spans] for ids, spans in prompts]
    assert words == [[["dog"], ["red", "frisbee"]], [["a", "man", "of", "a", "cat"]], [["ball"]]]
    for ids, _ in prompts:
        assert len(ids) <= 8 and (ids[0], ids[-2], ids[-1]) == (101, 1012, 102)
    found = ModelDetector(folders["grounding"], device="cpu")(frames, ["red frisbee umbrella man"] * 8)
    assert found.scores.shape == (5, 8)  # 40 tokens for a model of 32


@pytest.mark.parametrize(
    ("name", "noun", "most"),
    [
        ("grounding", "", 29),
        ("grounding", ".", 29),
        ("grounding", "dog " * 40, 29),
        ("owl", "", 10),
        ("owl", "dog " * 11, 10),
    ],
)
def test_a_noun_that_the_detector_cannot_read_is_refused(folders, frames, name, noun, most):
    with pytest.raises(NounError, match=f"the noun {noun!r:.20}.* a prompt of the detector holds 1 to {most}"):
        ModelDetector(folders[name], device="cpu")(frames, ["cat", noun])


def test_a_noun_as_long_as_the_detector_reads_is_no_longer_another(folders, frames):
    """Of two that differ in their last word alone neither is cut."""
    nouns = ["dog " * 9 + "cat", "dog " * 9 + "man"]
    found = ModelDetector(folders["owl"], device="cpu")(frames, nouns)
    assert np.abs(found.scores[:, 0] - found.scores[:, 1]).max() > 1e-5


def test_marks_in_a_noun_do_not_split_it(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["grounding"])
    (ids, spans), *others = grounding_prompts(tokenizer, ["dog. cat?", "man"], 32)
    assert not others and spans == [(1, 3), (4, 5)] and ids.count(1012) == 2 and 1029 not in ids


@pytest.mark.parametrize("turn", [False, True])
def test_boxes_of_owl_are_those_of_its_processor(folders, frames, turn):
    """It pads to a square, so a box in a wide picture and in a high one is scaled differently."""
    pictures = frames.swapaxes(1, 2) if turn else frames
    height, width = pictures.shape[1:3]
    detector = ModelDetector(folders["owl"], device="cpu")
    found = detector(pictures, ["dog"])
    model, tokenizer, image_processor = _load_detector(detector)
    text = tokenizer(["a photo of a dog"] * 5, padding="max_length", max_length=16, return_tensors="pt")
    pixels = image_processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
    with torch.inference_mode():
        output = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], **pixels)
    results = image_processor.post_process_object_detection(output, 0.0, target_sizes=[(height, width)] * 5)
    for frame, result in enumerate(results):
        best = result["scores"].argmax()
        assert found.scores[frame, 0] == pytest.approx(result["scores"][best].item(), abs=1e-6)
        edges = result["boxes"][best].numpy() / [width, height, width, height]
        np.testing.assert_allclose(found.boxes[frame, 0], edges.clip(0, 1), atol=1e-5)


def test_a_model_of_another_kind_is_no_detector(folders, frames):
    with pytest.raises(ValueError, match="is a sam2_video; detection knows GroundingDINO"):
        ModelDetector(folders["sam2"], device="cpu")(frames, NOUNS)
    with pytest.raises(ValueError, match="prompt_mode is 'all'"):
        ModelDetector(folders["owl"], prompt_mode="all")


def test_new_weights_under_an_old_name_are_another_detector(folders):
    before = repr(ModelDetector(folders["owl"]))
    assert before == repr(ModelDetector(folders["owl"], device="cpu", batch_size=2))
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders["owl"])
    model.save_pretrained(folders["owl"])
    assert repr(ModelDetector(folders["owl"])) != before


BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 0.3, 1.0]])


def test_sam2_tracks_each_box_through_all_frames(folders, frames):
    masks = Sam2Tracker(folders["sam2"], device="cpu")(frames, 2, BOXES, True)
    assert masks.shape == (2, 5, 48, 64) and masks.dtype == bool


def test_sam2_without_backward_leaves_the_frames_before_empty(folders, frames, monkeypatch):
    """Random weights may mark nothing: where the model runs is what tells."""
    seen = []
    forward = Sam2VideoModel.forward

    def watched(self, session, frame_idx=None, **arguments):
        seen.append((frame_idx, arguments.get("reverse", False)))
        output = forward(self, session, frame_idx=frame_idx, **arguments)
        output.pred_masks = torch.full_like(output.pred_masks, 1.0)  # and what it says is stored there
        return output

    monkeypatch.setattr(Sam2VideoModel, "forward", watched)
    tracker = Sam2Tracker(folders["sam2"], device="cpu")
    masks = tracker(frames, 2, BOXES, False)
    assert seen == [(2, False), (2, False), (3, False), (4, False)]
    assert not masks[:, :2].any() and masks[:, 2:].all()
    seen.clear()
    assert tracker(frames, 2, BOXES, True).all()
    assert seen == [(2, False), (2, False), (3, False), (4, False), (2, True), (1, True), (0, True)]


def test_sam2_is_given_what_its_own_processor_gives(folders, frames, monkeypatch):
    pytest.importorskip("torchvision")
    from transformers import Sam2ImageProcessor, Sam2VideoProcessor, Sam2VideoVideoProcessor

    side = {"height": 128, "width": 128}
    processor = Sam2VideoProcessor(Sam2ImageProcessor(size=side), Sam2VideoVideoProcessor(size=side))
    session = processor.init_video_session(video=list(frames), inference_device="cpu", dtype=torch.float32)
    theirs = torch.stack(list(session.processed_frames.values()))
    torch.testing.assert_close(sam2_pixels(frames, 128), theirs, atol=2e-2, rtol=0)  # they round to a byte
    pixels = (BOXES * [64, 48, 64, 48]).tolist()
    processor.add_inputs_to_inference_session(session, frame_idx=2, obj_ids=[0, 1], input_boxes=[pixels])

    taken = []
    forward = Sam2VideoModel.forward

    def watched(self, ours, **arguments):
        taken.append(ours)
        return forward(self, ours, **arguments)

    monkeypatch.setattr(Sam2VideoModel, "forward", watched)
    Sam2Tracker(folders["sam2"], device="cpu")(frames, 2, BOXES, False)
    for index in range(2):
        expected, given = session.point_inputs_per_obj[index][2], taken[0].point_inputs_per_obj[index][2]
        torch.testing.assert_close(given["point_coords"], expected["point_coords"])
        assert given["point_labels"].tolist() == expected["point_labels"].tolist()
