# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Model of Grounded-VideoDiT. This file travels to the Hub as remote code: torch and transformers only.

What encodes the frames is frozen and stays outside: the model takes its features, see `load_frame_encoder`.
Letters in shapes: `rows` sequences, `videos` distinct videos, `T` frames, `P` places of a frame, `d_v` size of their
features, `M` tracked objects, `L` tokens of a row, `W` tokens of a question, `E` `<evi>` of a row, `H` hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils import ModelOutput

from .configuration_grounded_videodit import GroundedVideoDiTConfig
from .dtl_feature import DtlDenoiser
from .evidence_head import EvidenceHead, decode_evidence
from .feature_alignment import FeatureAlignment
from .frame_encoders import FrameProjection
from .grounding_heads import SpanHead, decode_spans
from .object_tokens import ObjectTokens, TimeAnchors, weave_anchors
from .temporal_embedding import MLPTimeEmbedding, SinusoidalTimeEmbedding, TemporalFusion, normalized_times

# What describes the videos of the rows, and is needed for the prompt only.
VIDEO_INPUTS = (
    "video_features",
    "frame_mask",
    "timestamps_s",
    "duration_s",
    "noise_seeds",
    "union_masks",
    "object_masks",
    "object_boxes",
    "object_scores",
)
ROW_INPUTS = ("video_index", "question_input_ids", "question_attention_mask")
# Parts that are trained beside the LoRA of the language model, where the configuration has them (Fig. 2, reading 30).
TRAINED_PARTS = (
    "frame_projection",
    "time_embedding",
    "fusion",
    "object_tokens",
    "time_anchors",
    "span_head",
    "evidence_head",
    "feature_alignment",
)


@dataclass
class GroundedVideoDiTModelOutput(ModelOutput):
    """
    Output of [`GroundedVideoDiTModel`].

    Args:
        last_hidden_state (`torch.Tensor` of shape `(rows, L, H)`):
            States of the last layer.
        past_key_values (`Cache`, *optional*):
            Keys and values of the language model.
        frame_mask (`torch.BoolTensor` of shape `(rows, T)`, *optional*):
            Frames that each row has.
        start_logits, end_logits (`torch.Tensor` of shape `(rows, T)`, *optional*):
            Of the start/end head (Eq. 15), `-inf` at padding.
        evidence_logits (`torch.Tensor` of shape `(rows, E, T)`, *optional*):
            Of the evidence head, for each `<evi>` of the row in order.
        evidence_queries (`torch.Tensor` of shape `(rows, E, H)`, *optional*):
            Projected states that predict each `<evi>`.
        evidence_mask (`torch.BoolTensor` of shape `(rows, E)`, *optional*):
            Which `<evi>` exist.
        kl_divergence (`torch.Tensor` of shape `(videos,)`, *optional*):
            Eq. 20 for each video, in nats.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    frame_mask: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    evidence_logits: torch.Tensor | None = None
    evidence_queries: torch.Tensor | None = None
    evidence_mask: torch.Tensor | None = None
    kl_divergence: torch.Tensor | None = None


@dataclass
class GroundedVideoDiTCausalLMOutput(GroundedVideoDiTModelOutput):
    """
    Output of [`GroundedVideoDiTForConditionalGeneration`]: the fields of [`GroundedVideoDiTModelOutput`] and

    Args:
        loss (`torch.Tensor`, *optional*):
            Mean negative log-likelihood of the labels. The losses of the heads are the trainers'.
        logits (`torch.Tensor` of shape `(rows, L, vocabulary)`):
            Next-token logits.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class GroundedVideoDiTGenerateOutput(GenerateDecoderOnlyOutput):
    """
    Output of [`GroundedVideoDiTForConditionalGeneration.generate`] with `return_dict_in_generate=True`: the fields of
    `GenerateDecoderOnlyOutput`, those of [`GroundedVideoDiTModelOutput`] for the whole sequence, and

    Args:
        span_frames (`torch.LongTensor` of shape `(rows, 2)`, *optional*):
            First and last frame by the start/end head (Eq. 16).
        span_log_probs (`torch.Tensor` of shape `(rows,)`, *optional*):
            Log-probability of that span, in nats.
        evidence_frames (`torch.LongTensor` of shape `(rows, E, 2)`, *optional*):
            First and last frame of each `<evi>` by the evidence head.
    """

    frame_mask: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    span_frames: torch.Tensor | None = None
    span_log_probs: torch.Tensor | None = None
    evidence_logits: torch.Tensor | None = None
    evidence_mask: torch.Tensor | None = None
    evidence_frames: torch.Tensor | None = None


def positions_of(mask: torch.Tensor, size: int) -> torch.LongTensor:
    r"""
    Positions of the true entries of each row, in order, filled up with -1.

    Args:
        mask (`torch.BoolTensor` of shape `(rows, L)`):
            The entries.
        size (`int`):
            How many to give of each row.

    Returns:
        `torch.LongTensor` of shape `(rows, size)`.

    Example:

    ```python
    >>> positions_of(torch.tensor([[False, True, True]]), 3).tolist()
    [[1, 2, -1]]
    ```
    """
    order = mask.cumsum(-1) - 1
    slots = torch.where(mask & (order < size), order, size)
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    found = torch.full((len(mask), size + 1), -1, dtype=torch.long, device=mask.device)
    return found.scatter(1, slots, positions)[:, :size]


def _gather(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`states (rows, L, H)` at `positions (rows, N)`; those of -1 have to be masked."""
    return states.gather(1, positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1]))


class GroundedVideoDiTPreTrainedModel(PreTrainedModel):
    config_class = GroundedVideoDiTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text", "video")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = "past_key_values"


class GroundedVideoDiTModel(GroundedVideoDiTPreTrainedModel):
    """
    Grounded-VideoDiT without its language-model head: from features of frames to states and spans.

    A row is the question, then `num_object_tokens` object tokens, then the frames with time anchors between them, then
    the answer (Fig. 2). Each frame is fused with the question and its time (Eq. 13).
    """

    def __init__(self, config: GroundedVideoDiTConfig):
        super().__init__(config)
        hidden_size = config.text_config.hidden_size
        self.language_model = AutoModel.from_config(config.text_config)
        if "dtl_feature" in config.frame_encoders:
            self.denoiser = DtlDenoiser(config.clip_config["hidden_size"], **config.dtl_config or {})
        self.frame_projection = FrameProjection(config.encoder_size, config.feature_size)
        time_size = 0 if config.temporal_embedding == "none" else config.time_embedding_size
        if config.temporal_embedding == "sinusoidal":
            self.time_embedding = SinusoidalTimeEmbedding(time_size, config.temporal_embedding_base, config.time_scale)
        elif config.temporal_embedding == "mlp":
            self.time_embedding = MLPTimeEmbedding(time_size)
        self.fusion = TemporalFusion(config.feature_size, hidden_size, time_size, hidden_size)
        if config.num_object_tokens:
            self.object_tokens = ObjectTokens(config.feature_size, hidden_size, config.num_object_tokens)
        if config.num_time_anchors:
            self.time_anchors = TimeAnchors(hidden_size, time_size, config.num_time_anchors)
        if "span" in config.grounding_head:
            self.span_head = SpanHead(hidden_size, config.span_head_context)
        if "evidence" in config.grounding_head:
            self.evidence_head = EvidenceHead(hidden_size)
        if config.use_kl:
            self.feature_alignment = FeatureAlignment(
                config.feature_size, config.clip_config["hidden_size"], config.kl_temperature, config.kl_direction
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        # Unit gain: at transformers' usual 0.02, logits of a head that is much narrower than a large language model
        # start at zero and stay there for long. The language model initialises itself.
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def get_decoder(self):
        return self.language_model

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        video_features: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        timestamps_s: torch.Tensor | None = None,
        duration_s: torch.Tensor | None = None,
        noise_seeds: torch.LongTensor | None = None,
        union_masks: torch.Tensor | None = None,
        object_masks: torch.Tensor | None = None,
        object_boxes: torch.Tensor | None = None,
        object_scores: torch.Tensor | None = None,
        video_index: torch.LongTensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> GroundedVideoDiTModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(rows, L)`):
                Tokens, with a `video_token_id` for each token of the row's video.
            attention_mask (`torch.Tensor` of shape `(rows, L)`, *optional*):
                1 for tokens, 0 for padding on either side.
            position_ids (`torch.LongTensor` of shape `(rows, L)`, *optional*):
                Positions; by default those of the tokens that are not padding.
            past_key_values (`Cache`, *optional*):
                Keys and values of what came before.
            video_features (`torch.Tensor` of shape `(videos, T, P, d_v)`, *optional*):
                Features of the frozen frame encoders, each distinct video once.
            frame_mask (`torch.BoolTensor` of shape `(videos, T)`):
                Frames that are not padding.
            timestamps_s (`torch.Tensor` of shape `(videos, T)`):
                Timestamps of the frames in seconds.
            duration_s (`torch.Tensor` of shape `(videos,)`):
                Durations in seconds.
            noise_seeds (`torch.LongTensor` of shape `(videos,)`, *optional*):
                With `"dtl_feature"`: what the noise of Eq. 7 is drawn from; the same seed draws the same noise.
            union_masks (`torch.Tensor` of shape `(videos, T, P)`, *optional*):
                With `"dtl_feature"`: share of each place that tracked objects cover, M_t of Eq. 6.
            object_masks (`torch.Tensor` of shape `(videos, M, T, P)`, *optional*):
                Share of each place that each object covers. Without objects all object tokens are "no object".
            object_boxes (`torch.Tensor` of shape `(videos, M, T, 4)`, *optional*):
                Centre, width and height of the objects in shares of the frame.
            object_scores (`torch.Tensor` of shape `(videos, M)`, *optional*):
                Mean detection scores.
            video_index (`torch.LongTensor` of shape `(rows,)`):
                Video of each row, -1 for none.
            question_input_ids, question_attention_mask (`torch.LongTensor` of shape `(rows, W)`):
                The question alone, for its embedding (Eq. 10).

        Returns:
            [`GroundedVideoDiTModelOutput`]

        Raises:
            ValueError: if the placeholders of a row and the tokens of its video differ in number, or an input is
                missing.
        """
        embeds = self.get_input_embeddings()(input_ids)
        is_video = input_ids == self.config.video_token_id
        frames = None
        output = GroundedVideoDiTModelOutput()
        if video_features is not None:
            needed = {"frame_mask": frame_mask, "timestamps_s": timestamps_s, "duration_s": duration_s}
            needed |= {"video_index": video_index, "question_input_ids": question_input_ids}
            missing = [name for name, value in needed.items() if value is None]
            if missing:
                raise ValueError(f"with `video_features` the model needs {', '.join(missing)}: see the processor")
            z, features = self._frame_features(video_features, frame_mask, noise_seeds, union_masks)
            if self.config.use_kl:
                aux = video_features[..., : self.config.clip_config["hidden_size"]].mean(2)
                output.kl_divergence = self.feature_alignment(features, aux, frame_mask)
            question = self._question(question_input_ids, question_attention_mask)
            times = None
            if self.config.temporal_embedding != "none":
                times = self.time_embedding(normalized_times(timestamps_s, duration_s, frame_mask), frame_mask)
            objects = self._objects(z, frame_mask, object_masks, object_boxes, object_scores)
            tokens, token_mask, frames = self._video_tokens(
                features, times, frame_mask, objects, question, video_index
            )
            self._check_placeholders(is_video, token_mask)
            embeds = embeds.masked_scatter(is_video.unsqueeze(-1), tokens[token_mask].to(embeds.dtype))
        elif is_video.any():
            raise ValueError("the rows have placeholders of videos, but `video_features` are missing")
        if position_ids is None and attention_mask is not None and past_key_values is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)  # padding on the left shifts no token
        reads_evidence = video_features is not None and "evidence" in self.config.grounding_head
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=reads_evidence,
        )
        output.last_hidden_state, output.past_key_values = outputs.last_hidden_state, outputs.past_key_values
        if frames is None:
            return output
        positions = self._frame_positions(is_video, frames, frame_mask.shape[1])
        output.frame_mask = positions >= 0
        if "span" in self.config.grounding_head:
            output.start_logits, output.end_logits = self._span_logits(outputs.last_hidden_state, positions)
        if reads_evidence:
            self._read_evidence(output, outputs.hidden_states[-2], input_ids, positions)
        return output

    def _frame_features(self, video_features, frame_mask, noise_seeds, union_masks):
        """z_t behind g_phi (Eq. 9) for each place `(videos, T, P, d)`, and their mean `(videos, T, d)`."""
        config = self.config
        if video_features.shape[2:] != (config.tokens_per_frame, config.frozen_size):
            raise ValueError(
                f"`video_features` have {video_features.shape[2]} places of size {video_features.shape[3]} a frame, "
                f"but the configuration says {config.tokens_per_frame} of size {config.frozen_size} (of "
                f"{', '.join(config.frozen_encoders)}): they are of other frame encoders."
            )
        dtype = self.frame_projection.norm.weight.dtype
        features = video_features.to(dtype).masked_fill(~frame_mask[..., None, None], 0)
        clip_size = config.clip_config["hidden_size"] if "clip" in config.frozen_encoders else 0
        clip, vace = features[..., :clip_size], features[..., clip_size:]
        parts = {"clip": clip, "vace": vace}
        if "dtl_feature" in config.frame_encoders:
            parts["dtl_feature"] = self._latents(clip, frame_mask, noise_seeds, union_masks)
        z = self.frame_projection(torch.cat([parts[name] for name in config.frame_encoders], dim=-1))
        return z, z.mean(2)

    def _latents(self, clip, frame_mask, noise_seeds, union_masks):
        """Latent tokens of the denoiser (Eq. 7 and 8), the same for each place: `(videos, T, P, width)`."""
        if noise_seeds is None:
            raise ValueError("the encoder 'dtl_feature' needs `noise_seeds`, from which its noise is drawn")
        keys = [str(seed) for seed in noise_seeds.tolist()]
        latents = self.denoiser(**self.denoiser_inputs(clip, frame_mask, union_masks), keys=keys)
        return latents.unsqueeze(2).expand(-1, -1, clip.shape[2], -1)

    def denoiser_inputs(
        self, video_features: torch.Tensor, frame_mask: torch.Tensor, union_masks: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        r"""
        What the denoiser takes, in training and in [`~.dtl_feature.pretrain`]: the mean of each frame's features, and
        of those under the objects' masks.

        Args:
            video_features, frame_mask, union_masks:
                As of [`GroundedVideoDiTModel.forward`].

        Returns:
            `dict[str, torch.Tensor]`: `features` `(videos, T, d)`, `frame_mask`, and with masks `object_features` of
            the same shape and `object_mask` `(videos, T)`, false where no object is seen.
        """
        clip = video_features[..., : self.config.clip_config["hidden_size"]].float()
        inputs = {"features": clip.mean(2), "frame_mask": frame_mask}
        if union_masks is None:
            return inputs
        share = union_masks.to(clip.dtype).unsqueeze(-1)
        area = share.sum(2)
        return {
            **inputs,
            "object_features": (clip * share).sum(2) / area.clamp(min=1e-6),
            "object_mask": area[..., 0] > 0,
        }

    def _question(self, input_ids, attention_mask):
        """e_text (Eq. 10): the mean of the question's input embeddings (reading 20), `(rows, H)`."""
        embeds = self.get_input_embeddings()(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not mask.any(1).all():
            raise ValueError("a row has an empty question: the frames are fused with its embedding (Eq. 13)")
        mask = mask.unsqueeze(-1).to(embeds.dtype)
        return (embeds * mask).sum(1) / mask.sum(1)

    def _objects(self, z, frame_mask, masks, boxes, scores):
        """Object tokens `(videos, N, H)`, or none."""
        if not self.config.num_object_tokens:
            return None
        if masks is None:
            masks, boxes = z.new_zeros(len(z), 1, *z.shape[1:3]), z.new_zeros(len(z), 1, z.shape[1], 4)
            scores = z.new_zeros(len(z), 1)
        return self.object_tokens(z, masks, boxes, scores, frame_mask)

    def _video_tokens(self, features, times, frame_mask, objects, question, video_index):
        """The tokens of each row's video `(rows, N, H)`, which of them there are, and the frame of each, else -1."""
        shown = video_index.clamp(min=0)
        has_video = (video_index >= 0).unsqueeze(1)
        frame_mask = frame_mask[shown]
        times = None if times is None else times[shown]
        tokens = self.fusion(features[shown], question, times)
        if self.config.num_time_anchors:
            anchors, positions = self.time_anchors(frame_mask, times)
            tokens, mask, frames = weave_anchors(anchors, positions, tokens, frame_mask)
        else:
            frame = torch.arange(frame_mask.shape[1], device=frame_mask.device)
            mask, frames = frame_mask, torch.where(frame_mask, frame, -1)
        if objects is not None:
            num_objects = objects.shape[1]
            tokens = torch.cat([objects[shown].to(tokens.dtype), tokens], dim=1)
            mask = nn.functional.pad(mask, (num_objects, 0), value=True)
            frames = nn.functional.pad(frames, (num_objects, 0), value=-1)
        return tokens, mask & has_video, torch.where(has_video, frames, -1)

    def _check_placeholders(self, is_video, token_mask):
        wrong = is_video.sum(1) != token_mask.sum(1)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            given, needed = int(is_video[row].sum()), int(token_mask[row].sum())
            raise ValueError(
                f"Row {row} has {given} placeholders, but its video has {needed} tokens (objects, anchors, frames). "
                "Make both with this model's processor, and cut nothing off."
            )

    @staticmethod
    def _frame_positions(is_video, frames, num_frames):
        """Where each frame stands in its row, `(rows, T)`; -1 for those that it does not have."""
        places = positions_of(is_video, frames.shape[1])
        slots = torch.where(frames >= 0, frames, num_frames)
        # Tokens of a video stand in the order of its placeholders; padding, at the end, has none.
        found = torch.full((len(frames), num_frames + 1), -1, dtype=torch.long, device=frames.device)
        return found.scatter(1, slots, torch.where(frames >= 0, places, -1))[:, :num_frames]

    def _span_logits(self, states, positions):
        """Of the rows with a video; those without have `-inf`."""
        has_video = (positions >= 0).any(1)
        shape = positions.shape
        start, end = (states.new_full(shape, -torch.inf, dtype=torch.float32) for _ in range(2))
        if has_video.any():
            frame_states = _gather(states[has_video], positions[has_video])
            start[has_video], end[has_video] = self.span_head(frame_states, positions[has_video] >= 0)
        return start, end

    def _read_evidence(self, output, states, input_ids, positions):
        is_evidence = input_ids == self.config.evidence_token_id
        places = positions_of(is_evidence, int(is_evidence.sum(1).max()))
        output.evidence_mask = places >= 0
        # The state before an `<evi>` is the one that predicts it.
        logits, queries = self.evidence_head(_gather(states, places - 1), _gather(states, positions))
        output.evidence_logits = logits.masked_fill(~output.frame_mask[:, None], 0.0)
        output.evidence_queries = queries


class GroundedVideoDiTForConditionalGeneration(GroundedVideoDiTPreTrainedModel, GenerationMixin):
    """
    Grounded-VideoDiT with its language-model head.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> model = AutoModelForCausalLM.from_pretrained("org/name", trust_remote_code=True)  # doctest: +SKIP
    >>> output = model.generate(**inputs, return_dict_in_generate=True)  # doctest: +SKIP
    >>> processor.post_process_grounded(output, inputs, timestamps_s, duration_s)[0]["evidence"]  # doctest: +SKIP
    [[3.0, 5.5]]
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: GroundedVideoDiTConfig):
        super().__init__(config)
        self.model = GroundedVideoDiTModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, save_directory, **kwargs):
        # One auto class can be registered per model class; the others are named here.
        self.config.auto_map = {
            auto_class: "modeling_grounded_videodit.GroundedVideoDiTForConditionalGeneration"
            for auto_class in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
        }
        return super().save_pretrained(save_directory, **kwargs)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @property
    def trained_parts(self) -> list[str]:
        """Names of the modules that train beside a LoRA: `modules_to_save` of peft's `LoraConfig`."""
        children = self.model.named_children()
        return [name for name, part in children if name in TRAINED_PARTS and next(part.parameters(), None) is not None]

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        video_features: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        timestamps_s: torch.Tensor | None = None,
        duration_s: torch.Tensor | None = None,
        noise_seeds: torch.LongTensor | None = None,
        union_masks: torch.Tensor | None = None,
        object_masks: torch.Tensor | None = None,
        object_boxes: torch.Tensor | None = None,
        object_scores: torch.Tensor | None = None,
        video_index: torch.LongTensor | None = None,
        question_input_ids: torch.LongTensor | None = None,
        question_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
        inputs_embeds: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> GroundedVideoDiTCausalLMOutput:
        r"""
        See [`GroundedVideoDiTModel.forward`]; in addition

        Args:
            labels (`torch.LongTensor` of shape `(rows, L)`, *optional*):
                Token ids, -100 where no loss is wanted.
            logits_to_keep (`int`, *optional*, defaults to `0`):
                Compute the logits of the last positions only; 0 for all.
            num_items_in_batch (`int`, *optional*):
                Divide the summed loss by this count instead of the batch's own labels (gradient accumulation).
        """
        # The last three are there for peft, which hands them on to every language model.
        if inputs_embeds is not None or output_attentions or output_hidden_states:
            raise ValueError("`inputs_embeds`, `output_attentions` and `output_hidden_states` are not supported here.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            video_features=video_features,
            frame_mask=frame_mask,
            timestamps_s=timestamps_s,
            duration_s=duration_s,
            noise_seeds=noise_seeds,
            union_masks=union_masks,
            object_masks=object_masks,
            object_boxes=object_boxes,
            object_scores=object_scores,
            video_index=video_index,
            question_input_ids=question_input_ids,
            question_attention_mask=question_attention_mask,
            use_cache=use_cache,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
            )
        return GroundedVideoDiTCausalLMOutput(loss=loss, logits=logits, **outputs)

    @torch.no_grad()
    def generate(self, inputs: torch.LongTensor | None = None, generation_config=None, **kwargs):
        r"""
        Generates answers, batched with left padding; see `GenerationMixin.generate`. Where the answer is there, the
        whole sequence runs once more for the heads.

        Returns:
            Token ids, or [`GroundedVideoDiTGenerateOutput`] with `return_dict_in_generate=True`.
        """
        output = super().generate(inputs, generation_config=generation_config, **kwargs)
        if not isinstance(output, GenerateDecoderOnlyOutput) or kwargs.get("video_features") is None:
            return output
        prompt = inputs if inputs is not None else kwargs["input_ids"]
        videos = {name: kwargs[name] for name in (*VIDEO_INPUTS, *ROW_INPUTS) if kwargs.get(name) is not None}
        repeats = len(output.sequences) // len(prompt)  # `num_return_sequences`
        for name in ROW_INPUTS:
            if name in videos:
                videos[name] = videos[name].repeat_interleave(repeats, dim=0)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(prompt) if mask is None else mask
        mask = mask.repeat_interleave(repeats, dim=0)
        answered = mask.new_ones(len(output.sequences), output.sequences.shape[1] - prompt.shape[1])
        heads = self.model(
            input_ids=output.sequences, attention_mask=torch.cat([mask, answered], dim=1), use_cache=False, **videos
        )
        grounded = {"frame_mask": heads.frame_mask}
        if heads.start_logits is not None:
            shown = heads.frame_mask.any(1)
            frames = torch.full((len(shown), 2), -1, dtype=torch.long, device=shown.device)
            log_probs = heads.start_logits.new_zeros(len(shown))
            if shown.any():
                frames[shown], log_probs[shown] = decode_spans(heads.start_logits[shown], heads.end_logits[shown])
            grounded |= {"start_logits": heads.start_logits, "end_logits": heads.end_logits}
            grounded |= {"span_frames": frames, "span_log_probs": log_probs}
        if heads.evidence_logits is not None:
            # Of the prompt, `<evi>` are asked about; those of the answer are its own.
            asked = (prompt == self.config.evidence_token_id).sum(1).repeat_interleave(repeats)
            places = positions_of(output.sequences == self.config.evidence_token_id, heads.evidence_mask.shape[1])
            generated = torch.arange(places.shape[1], device=asked.device) >= asked[:, None]
            grounded["evidence_mask"] = heads.evidence_mask & generated
            grounded["evidence_logits"] = heads.evidence_logits
            grounded["evidence_frames"] = decode_evidence(
                heads.evidence_logits, heads.frame_mask, self.config.salience_threshold
            )
        return GroundedVideoDiTGenerateOutput(**output, **grounded)

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in (*VIDEO_INPUTS, *ROW_INPUTS):  # the prompt is in the cache
                kwargs.pop(name, None)
        return super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        # `num_return_sequences` repeats rows; the videos stay as they are, since `video_index` points to them.
        videos = {name: model_kwargs.pop(name) for name in VIDEO_INPUTS if name in model_kwargs}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **videos}


__all__ = [
    "GroundedVideoDiTForConditionalGeneration",
    "GroundedVideoDiTGenerateOutput",
    "GroundedVideoDiTModel",
    "GroundedVideoDiTModelOutput",
    "GroundedVideoDiTPreTrainedModel",
    "positions_of",
]
