"""A tokenizer of a corpus's own: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), trained on a sample of it.

The sample is the beginning of tasks that are evenly spread over the source, so it is the same for everyone who lists the
same files, it costs minutes at most whatever the corpus is, and it fits into memory. The training is the library's;
equal samples give equal bytes, so one may train a vocabulary twice and has the same corpus. Words, for BPE, are what
GPT-2's pattern takes for words; none becomes a token of more than `TOKEN_BYTES_MAX`, since scripts without spaces, and
what is no text, are words of any length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from peerlm.data.prepared import SAMPLE_BYTES, Job, portions
from peerlm.errors import ConfigError

TASK_BYTES = 1 << 20
"""Most of a task that is in the sample."""

END = "<|endoftext|>"
ENTRIES_MIN = 257
"""Every byte, and the end of a document."""
ENTRIES_MAX = 1 << 20
TOKEN_BYTES_MAX = 64

SPEC = "train:"


def entries_asked(spec: str, where: str = "data.tokenizer") -> int | None:
    """8192 of `train:8192`; None if it is no such word. Raises `ConfigError`: not a number of entries."""
    if not spec.startswith(SPEC):
        return None
    number = spec.removeprefix(SPEC)
    if not re.fullmatch("[0-9]{1,9}", number) or not ENTRIES_MIN <= int(number) <= ENTRIES_MAX:
        raise ConfigError(
            f"{where} = {spec!r}: a vocabulary has {ENTRIES_MIN} to {ENTRIES_MAX} entries"
        )
    return int(number)


def trained(job: Job, entries: int, progress: Callable[[int], object] = lambda _: None) -> bytes:
    """A tokenizer's JSON file with at most `entries` tokens; the job's own tokenizer is not asked.

    `progress` is told the bytes of the sample that have been read.

    Raises:
        ConfigError: the source cannot be used.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END],
        max_token_length=TOKEN_BYTES_MAX,
        show_progress=False,
    )
    texts = list(sample(job, progress))
    if not texts:
        source = job.source
        raise ConfigError(f"{source.where} = {source.url!r}: there is no text in it")
    inner.train_from_iterator(texts, trainer)
    return bytes(inner.to_str().encode())


def sample(job: Job, progress: Callable[[int], object] = lambda _: None) -> Iterator[str]:
    """Texts from all over the source, at most `SAMPLE_BYTES` and a document."""
    count = len(job.tasks)
    chosen = min(count, max(1, SAMPLE_BYTES // TASK_BYTES))
    share = max(TASK_BYTES, SAMPLE_BYTES // chosen)
    read = 0
    for place in range(chosen):
        taken = 0
        for text in _texts(job, place * count // chosen):
            yield text
            taken += len(text.encode())
            progress(read + taken)
            if taken >= share:
                break
        read += taken


def _texts(job: Job, task: int) -> Iterator[str]:
    for portion in portions(job, task):
        for document in portion.documents:
            if document.text:
                yield document.text[:TASK_BYTES]
