"""A GGUF file to a folder that `hf.py` reads, by the libraries that know the format.

`gguf` says what the file holds, `transformers` undoes its quantization and makes fp32 weights, config.json
and tokenizer.json of it. Both are an extra, and this file alone knows them. What they pass over in silence
though it changes the model (scaled rotary positions kept as a tensor, a tensor too few or too many) is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file

from peerlm.errors import ConfigError
from peerlm.model.export import WEIGHTS
from peerlm.model.hf import CONFIG
from peerlm.model.llama import HEAD
from peerlm.types import printable

NEEDED = "reading GGUF needs transformers, gguf and accelerate: pip install 'peerlm[hf]'"

FACTORS = "rope_freqs.weight"
"""The tensor that scales rotary positions, as Llama 3.1 has it."""

PLAIN = {"rope.scaling.type": "none", "rope.scale_linear": 1.0, "expert_count": 0}
"""Key below the architecture's name → the value that means nothing is special; absent means it too."""

ENDS = ("token_embd.weight", "output_norm.weight")
"""Tensors of every Llama outside its blocks."""

OUTPUT = "output.weight"
"""The head; absent where it is the embedding."""

BLOCK = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
"""Tensors of each block."""


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder` as fp32 safetensors. The whole of it is in memory meanwhile.

    Raises:
        ConfigError: no such file, not GGUF, not a Llama, something the libraries cannot read, or
            the libraries are not there.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    try:
        import accelerate  # noqa: F401
        import gguf
        import transformers
    except ImportError as error:
        raise ConfigError(f"{file}: {NEEDED} ({printable(str(error))})") from None
    transformers.utils.logging.set_verbosity_error()
    try:
        for complaint in _complaints(gguf.GGUFReader(file)):
            raise ConfigError(f"{file}: {complaint}")
        _convert(transformers, file.absolute(), folder)
    except (ConfigError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever the damage leads to; a panic in Rust is no Exception
        reason = printable((str(error).splitlines() or [type(error).__name__])[0][:200])
        raise ConfigError(f"{file}: cannot be read as GGUF: {reason}") from None


def _complaints(reader: Any) -> Iterator[str]:
    """What makes it another model than what would come out."""
    architecture = _value(reader, "general.architecture")
    if architecture != "llama":
        yield f'general.architecture = {printable(str(architecture))}: only "llama" can be had'
    for key, plain in PLAIN.items():
        value = _value(reader, f"llama.{key}")
        if value not in (None, plain):
            yield f"llama.{key} = {printable(str(value))}: only {plain} can be had"
    for tensor in reader.tensors:
        if tensor.name == FACTORS:
            yield f"tensor {FACTORS}: scaled rotary positions cannot be had"
        if tensor.name.endswith(".bias"):
            yield f"tensor {printable(tensor.name)}: biases cannot be had"
    yield from _misfits(
        [tensor.name for tensor in reader.tensors], _value(reader, "llama.block_count")
    )
    if _value(reader, "tokenizer.ggml.model") is None:
        yield "tokenizer.ggml.model is missing: the file has no tokenizer"


def _misfits(names: Sequence[str], blocks: Any) -> Iterator[str]:
    """Missing tensors would be made up, and others passed over."""
    if type(blocks) is not int or blocks < 1:
        yield f"llama.block_count = {printable(str(blocks)[:80])}: must be a number from 1"
    there, wanted = set(names), {OUTPUT}
    for name in _wanted(blocks):
        if name not in there:
            yield f"tensor {name} is missing"
        wanted.add(name)
    for name in names:
        if name not in wanted:
            yield f"tensor {printable(name)}: no tensor of a Llama with llama.block_count = {blocks}"


def _wanted(blocks: int) -> Iterator[str]:
    """One after another: the number is the file's word alone."""
    yield from ENDS
    for block in range(blocks):
        yield from (f"blk.{block}.{name}.weight" for name in BLOCK)


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _convert(transformers: Any, file: Path, folder: Path) -> None:
    """The file is shown to the library alone in a folder, so that nothing beside it is looked at."""
    with TemporaryDirectory(prefix="peerlm-") as alone:
        (Path(alone) / "model.gguf").symlink_to(file)
        named = {"gguf_file": "model.gguf", "local_files_only": True}
        model = transformers.LlamaForCausalLM.from_pretrained(alone, dtype="float32", **named)
        transformers.AutoTokenizer.from_pretrained(alone, **named).save_pretrained(folder)
    config = model.config.to_dict()
    del config["quantization_config"]  # of the file: it is undone
    (folder / CONFIG).write_text(json.dumps(config))
    tensors = model.state_dict()
    if config["tie_word_embeddings"]:
        del tensors[HEAD]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
