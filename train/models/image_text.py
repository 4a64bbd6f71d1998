"""Models of images and texts (CLIP, arXiv 2103.00020): two towers that end in one space."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.bundles.durable import write_file
from everlearn.errors import ConfigError, InvalidInput, Unsupported

if TYPE_CHECKING:
    from train.data.store import TokenStore
    from train.models.architecture import Architecture

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in what CLIP was trained on; its models expect pictures that are brought to 0 and 1 by these."""
MAX_SCALE = math.log(100)
"""Of the logits: CLIP's authors found training unstable above 100."""
PREPROCESSOR = "preprocessor_config.json"


def clip_from_scratch(architecture: Architecture, tokenizer: Any, end: int) -> Any:
    """A CLIPModel; torch's generator decides the weights. ``end``: the id at which a text's features are read, the mark
    that the tokenizer puts behind it."""
    from transformers import CLIPConfig, CLIPModel

    images = architecture.images
    assert images
    text = {
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.ffn_size,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "max_position_embeddings": architecture.context,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": images.hidden or architecture.hidden,
        "intermediate_size": images.ffn or 4 * (images.hidden or architecture.hidden),
        "num_hidden_layers": images.layers or architecture.layers,
        "num_attention_heads": images.heads or architecture.heads,
        "image_size": images.size,
        "patch_size": images.patch,
    }
    space = architecture.projection or architecture.hidden
    return CLIPModel(
        CLIPConfig(
            text_config={**text, "projection_dim": space},
            vision_config={**vision, "projection_dim": space},
            projection_dim=space,
        )
    )


def load_clip(model_dir: Path, dropout: float | None) -> Any:
    """The base. Raises Unsupported for another kind of model."""
    from train.models.load import load_model

    model = load_model(model_dir, "image_text")
    if model.config.model_type != "clip":
        raise Unsupported(
            f"{model_dir.name} is of the kind {model.config.model_type}; of models of images and texts, CLIP is trained",
            param="base",
        )
    set_dropout(model, dropout)
    return model


def set_dropout(model: Any, dropout: float | None) -> None:
    """Of the attention in both towers: CLIP has no other. None leaves it."""
    if dropout is None:
        return
    for config in (model.config.text_config, model.config.vision_config):
        config.attention_dropout = dropout
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = dropout


def bound_temperature(model: Any) -> None:
    """Brings the learned scale of the logits back to at most 100."""
    model.logit_scale.data.clamp_(max=MAX_SCALE)


def embedding_of(model: Any) -> Any:
    """That of its tokens: a model of two towers does not say which of them it would be."""
    return getattr(model, "text_model", model).get_input_embeddings()


def end_of_text(tokenizer_dir: Path) -> int:
    """The id of the mark behind a text. Raises ConfigError where there is none that transformers reads a text at."""
    from train.data.tokenize import marks

    _, behind = marks(tokenizer_dir)
    if (
        not behind or behind[-1] == 2
    ):  # by which transformers knows the first CLIP models, and takes the largest id
        raise ConfigError(
            "CLIP reads a text at the mark behind it, and this tokenizer puts none there: tokenizer: wordpiece or "
            "unigram would do",
            param="architecture.tokenizer",
        )
    return behind[-1]


def image_size(model_dir: Path) -> int:
    """Pixels of a side of what the model sees."""
    config = json.loads((model_dir / "config.json").read_bytes())
    return int((config.get("vision_config") or {}).get("image_size", 224))


def refuse_other_images(model: Any, store: TokenStore) -> None:
    """Raises InvalidInput where the store's pictures, if it has any, are of another size than the model sees."""
    if store.card.image_size is None:
        return
    sees = model.config.vision_config.image_size
    if store.card.image_size != sees:
        raise InvalidInput(
            f"the store's pictures have {store.card.image_size} pixels a side, and the model sees {sees}: prepare them "
            f"with image_size: {sees}",
            param="data.image_size",
        )


def write_preprocessor(model: Any, target: Path) -> None:
    """What transformers' CLIPImageProcessor does, as ``everlearn.images.pixels`` and the training did."""
    size = model.config.vision_config.image_size
    said = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }
    write_file(target / PREPROCESSOR, json.dumps(said, indent=1).encode())
